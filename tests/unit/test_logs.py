"""Log lines: their form, what they are about, and what they leave out."""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Iterator
from typing import Any

import pytest

from shared.telemetry import Subject, formatter, setup_logging, subject

log = logging.getLogger("worker.something")


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """The loggers as they were."""
    before, make = logging.getLogger(), logging.getLogRecordFactory()
    handlers, level = before.handlers[:], before.level
    logging.setLogRecordFactory(logging.LogRecord)  # vLLM has its own, where a test before has imported it
    yield
    before.handlers[:], before.level = handlers, level
    logging.setLogRecordFactory(make)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_of_json_says_when_who_what_and_about_which_request(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO", "json", service="penstock-worker")
    token = subject.set(Subject("req_1", "a1", "t1"))
    log.info("%d tokens", 4, extra={"lane": "batch", "vllm_process_name": "MainProcess"})  # as vLLM makes records
    subject.reset(token)
    log.warning("elsewhere")
    about, elsewhere = lines(capsys)
    assert about.pop("timestamp").endswith("Z")
    assert about == {
        "level": "info",
        "logger": "worker.something",
        "event": "4 tokens",
        "service": "penstock-worker",
        "lane": "batch",
        "request_id": "req_1",
        "attempt": "a1",
        "trace_id": "t1",
    }
    assert not {"request_id", "attempt", "trace_id"} & set(elsewhere)


def test_an_exception_stays_on_its_line_of_json_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO", "json", secrets=["hunter2-hunter2"])
    error = ValueError('hunter2-hunter2 "quoted"\nAuthorization: Bearer abcdef123\nand more')
    log.error("it failed", exc_info=error)
    (line,) = lines(capsys)
    assert "ValueError" in line["exception"]
    assert "and more" in line["exception"]
    assert "hunter2" not in line["exception"]
    assert "abcdef123" not in line["exception"]


def test_a_line_of_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO", "text")
    token = subject.set(Subject("req_1"))
    log.info("it goes on")
    subject.reset(token)
    moment, line = capsys.readouterr().err.rstrip().split(" ", 1)
    assert moment.endswith("Z")
    assert line == "INFO worker.something: it goes on request_id=req_1"


def test_without_a_terminal_auto_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO")
    log.info("hello")
    assert lines(capsys)[0]["event"] == "hello"


def test_libraries_that_write_down_what_clients_send_are_kept_quiet_at_debug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging("DEBUG", "json")
    logging.getLogger("sse_starlette.sse").debug("chunk: a prompt")
    logging.getLogger("httpx2").debug("sending a prompt")
    log.debug("ours")
    assert [line["event"] for line in lines(capsys)] == ["ours"]


def test_a_dict_configuration_gets_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """As vLLM's loggers do: see worker/engines/vllm_log.py."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": "shared.telemetry.formatter", "form": "json", "service": "vllm"}},
            "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
            "loggers": {"an-engine": {"handlers": ["out"], "level": "INFO", "propagate": False}},
        }
    )
    engine = logging.getLogger("an-engine")
    engine.info("redis://:pa55word@host/0")
    engine.handlers.clear()
    (line,) = lines(capsys)
    assert (line["service"], line["logger"]) == ("vllm", "an-engine")
    assert "pa55word" not in line["event"]


def test_the_process_of_an_engine_is_named() -> None:
    record = log.makeRecord("vllm.v1", logging.INFO, __file__, 1, "loading", (), None)
    record.processName = "EngineCore_DP0"
    assert json.loads(formatter("json").format(record))["process"] == "EngineCore_DP0"

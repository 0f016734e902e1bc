"""`penstock batch`: what its arguments mean, what is made of results, how progress reads."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from cli.batches.flags import command_parser, run_parser, submission_of, where_of
from cli.batches.formats import BY_NAME, failure_of
from cli.batches.rates import Rates, count, facts_of, span
from cli.batches.results import Written, complete
from cli.batches.rows import COMPLETIONS
from cli.client import ClientSettings
from shared.errors import ConfigurationError
from shared.settings import read_settings


def submission(*argv: str) -> Any:
    return submission_of(run_parser().parse_args(["--input", "rows", *argv]))


def line(body: dict[str, Any] | None, error: dict[str, str] | None = None, status: int = 200) -> bytes:
    response = {"status_code": status, "request_id": "r", "body": body} if body is not None else None
    return json.dumps({"id": "b", "custom_id": "row-1", "response": response, "error": error}).encode()


def chat(content: str | None, **message: Any) -> bytes:
    return line({"choices": [{"finish_reason": "stop", "message": {"content": content, **message}}], "usage": {"n": 1}})


# ---- arguments


def test_the_flags_of_run_batch_work() -> None:
    arguments = run_parser().parse_args(["-i", "in", "-o", "out", "--model", "m"])
    assert (arguments.input, arguments.output, arguments.model) == ("in", "out", "m")
    assert run_parser().parse_args(["--input-file", "in", "--output-file", "out"]).output == "out"


def test_arguments_become_a_batch() -> None:
    words = "--endpoint completions --temperature 0.5 --param top_p=0.1 --param stop=x --metadata a=b=c --window 2h"
    asked = submission(*words.split(), "--start-window", "22:00-06:00,Europe/Berlin", "--start-after", "1900000000")
    assert asked.wishes.endpoint == COMPLETIONS
    assert asked.wishes.body == {"top_p": 0.1, "stop": "x", "temperature": 0.5}
    assert asked.batch == {
        "completion_window": "2h",
        "metadata": {"a": "b=c"},
        "start_after": 1_900_000_000,
        "start_window": {"from": "22:00", "to": "06:00", "timezone": "Europe/Berlin"},
    }


def test_a_start_may_be_told_from_now_on_or_as_a_date() -> None:
    assert abs(submission("--start-after", "+2h").batch["start_after"] - time.time() - 7_200) < 5
    assert submission("--start-after", "2030-01-01T00:00:00+00:00").batch["start_after"] == 1_893_456_000


@pytest.mark.parametrize(
    "argv",
    [
        ["--endpoint", "images"],
        ["--endpoint", "embeddings", "--system", "x"],
        ["--endpoint", "embeddings", "--max-tokens", "3"],
        ["--metadata", "a"],
        ["--param", "=1"],
        ["--start-after", "soon"],
        ["--start-window", "night"],
    ],
)
def test_arguments_that_mean_nothing_are_one_sentence(argv: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=argv[-2] if "images" not in argv else "--endpoint"):
        submission(*argv)


def test_a_file_is_named_once() -> None:
    for argv in ([], ["a", "--input", "b"]):
        with pytest.raises(ConfigurationError, match="one input"):
            submission_of(command_parser("submit").parse_args(argv))
    assert submission_of(command_parser("submit").parse_args(["a"])).source == "a"


def test_the_api_is_found_by_flag_then_our_name_then_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(*argv: str) -> ClientSettings:
        return read_settings(ClientSettings, where_of(command_parser("list").parse_args(argv)), "x")

    for name in ("PENSTOCK_URL", "PENSTOCK_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert settings().urls == ["http://127.0.0.1:8000"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://openai:1/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert settings().urls == ["http://openai:1"]
    assert settings().api_key.get_secret_value() == "theirs"
    monkeypatch.setenv("PENSTOCK_URL", "http://ours:1,http://ours:2/v1")
    assert settings().urls == ["http://ours:1", "http://ours:2"]
    assert settings("--url", "http://flag").urls == ["http://flag"]
    with pytest.raises(ConfigurationError, match="--url"):
        _ = settings("--url", "ftp://x").urls


# ---- results


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (chat("a\nb\\c\r"), "a\\nb\\\\c\\r"),
        (chat(None, tool_calls=[{"id": "t"}]), '[{"id":"t"}]'),
        (line({"choices": [{"text": "one"}, {"text": "two"}]}), '["one","two"]'),
        (line({"data": [{"embedding": [1, 2]}]}), "[1,2]"),
        (
            line({"output": [{"type": "reasoning"}, {"type": "message", "content": [{"text": "x"}, {"text": "y"}]}]}),
            "xy",
        ),
        (line({"error": {}}, {"code": "c", "message": "m"}, 400), ""),
        (line(None, {"code": "batch_expired", "message": "m"}), ""),
    ],
)
def test_text_is_one_line_for_each_row_whatever_was_answered(output: bytes, text: str) -> None:
    assert BY_NAME["text"](output, None) == f"{text}\n".encode()


def test_pairs_have_the_prompt_beside_the_answer() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "why?"}]
    pair = json.loads(BY_NAME["pairs"](chat("so"), json.dumps({"body": {"messages": messages}}).encode()))
    assert pair == {
        "custom_id": "row-1",
        "prompt": "why?",
        "response": "so",
        "finish_reason": "stop",
        "usage": {"n": 1},
        "error": None,
    }
    failed = json.loads(BY_NAME["pairs"](line({}, {"code": "c", "message": "m"}, 400), b'{"body": {"input": "x"}}'))
    assert (failed["prompt"], failed["response"], failed["error"]["code"]) == ("x", None, "c")


def test_a_failure_is_a_sentence_with_its_row() -> None:
    assert failure_of(chat("fine")) is None
    assert failure_of(line({}, {"code": "bad", "message": "No."}, 400)) == "row-1: 400 bad: No."
    assert failure_of(line(None, {"code": "batch_expired", "message": "Late."})) == "row-1: batch_expired: Late."


# ---- progress


def found(done: int, tokens: int, **progress: float) -> dict[str, Any]:
    counts = {"total": 100, "completed": done, "failed": 0}
    told = {"progress": {"rows_per_s": None, "left_s": None, **progress}} if progress else {}
    return {"status": "in_progress", "request_counts": counts, "usage": {"total_tokens": tokens}, **told}


def test_rates_are_those_of_the_last_seconds_and_the_batch_processs_where_it_tells_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    rates = Rates()
    rates.add(found(0, 0))
    assert rates.rows_per_s is rates.left_s is None
    for _ in range(20):
        now_s += 2
        rates.add(found(20, 400))
    rates.add(found(20, 400))
    assert rates.rows_per_s == 0
    assert rates.left_s is None
    now_s += 2
    rates.add(found(40, 1_400, rows_per_s=4.0, left_s=15.0))
    assert rates.tokens_per_s == pytest.approx(1_000 / 16, rel=0.2)
    now_s += 5
    assert rates.left_s == 10
    assert facts_of(found(40, 1_400), rates)[0] == "40/100 rows"
    assert facts_of(found(40, 1_400), rates)[-1] == "10 s left"


def test_figures_read_well() -> None:
    assert [span(seconds) for seconds in (0.4, 59, 61, 3_599.9, 7_500)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
    assert [count(number) for number in (0, 3, 3.25, 12.6, 50_000)] == ["0", "3", "3.2", "13", "50 000"]


@pytest.mark.parametrize(
    ("lines", "status", "whole"), [(3, "completed", True), (2, "completed", False), (3, "in_progress", False)]
)
def test_results_are_whole_when_as_many_were_written_as_the_batch_counts(lines: int, status: str, whole: bool) -> None:  # noqa: FBT001
    batch = {"status": status, "request_counts": {"total": 4, "completed": 2, "failed": 1}}
    assert complete(batch, Written(lines)) is whole
    nothing = {"status": "failed", "request_counts": {"total": 0, "completed": 0, "failed": 0}}
    assert not complete(nothing, Written())

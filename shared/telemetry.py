"""Logs: one event a line, to standard error, as text for people or as JSON for machines.

structlog renders what the standard library's loggers are told, ours and those of libraries alike (uvicorn's, vLLM's),
and adds what the line is about: the request, the attempt and the trace of the task in which it was written. Nothing is
written that `redaction` would take out.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, Literal, NamedTuple

import structlog

from shared.redaction import redactor

LogFormat = Literal["auto", "text", "json"]
Event = MutableMapping[str, Any]


class Subject(NamedTuple):
    """What a task works for. Empty for what is not known."""

    request_id: str = ""
    attempt: str = ""
    trace_id: str = ""


_NOBODY = Subject()
subject: ContextVar[Subject] = ContextVar("subject", default=_NOBODY)
"""What the current task's log lines are about. Set once for each request, by whoever takes it on."""

ACCESS: Final = "api.access"
"""Name of the logger of the access log."""
_FIRST: Final = ("timestamp", "level", "logger", "event")
_MAIN_PROCESS: Final = "MainProcess"
_NOISY: Final = ("uvicorn.error",)
"""Loggers that tell at INFO what nobody asks for."""
_CHATTY: Final = ("sse_starlette", "python_multipart", "asyncio", "httpcore", "httpcore2", "httpx", "httpx2", "urllib3")
"""Loggers that at DEBUG write down what clients send and get, or a line for each of their steps."""


def setup_logging(
    level: str, form: LogFormat = "auto", *, service: str = "", secrets: Iterable[str] = (), access: bool = False
) -> None:
    """Sends the logs of this process to standard error. `level` is a name such as INFO.

    `service` is this process's name in JSON lines. `secrets`: of its own, never to be written. `access`: the access log
    is written whatever the level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, service=service, secrets=secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    least = logging.getLogger().level
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, least))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.INFO, least))
    if access:
        logging.getLogger(ACCESS).setLevel(logging.INFO)


def chosen(form: LogFormat) -> Literal["text", "json"]:
    """The form of the logs: as asked for, or text on a terminal and JSON elsewhere."""
    if form == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return form


def formatter(form: LogFormat = "auto", *, service: str = "", secrets: Iterable[str] = ()) -> logging.Formatter:
    """What makes lines of log records. Also for loggers that others configure, such as vLLM's."""
    render = _Json(service, redactor(secrets)) if chosen(form) == "json" else _Text(redactor(secrets))
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _name_subject,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            render,
        ],
    )


def _name_subject(logger: Any, method: str, event: Event) -> Event:
    """A structlog processor. What a line says itself about its subject goes first."""
    del logger, method
    process = getattr(event.get("_record"), "processName", _MAIN_PROCESS)
    event.pop("vllm_process_name", None)  # vLLM puts it on every line of a process that has imported it
    if process != _MAIN_PROCESS:  # one of an engine's
        event.setdefault("process", process)
    for name, value in zip(Subject._fields, subject.get(), strict=True):
        if value:
            event.setdefault(name, value)
    return event


class _Json:
    """A structlog processor: an event → its line of JSON."""

    def __init__(self, service: str, redacted: Callable[[str], str]) -> None:
        self._service = service
        self._redacted = redacted

    def __call__(self, logger: Any, method: str, event: Event) -> str:
        del logger, method
        line = {name: event.pop(name) for name in _FIRST if name in event}
        if self._service:
            line["service"] = self._service
        line.update(event)
        return json.dumps({name: self._plain(value) for name, value in line.items()}, ensure_ascii=False)

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._redacted(value if isinstance(value, str) else str(value))


class _Text:
    """A structlog processor: an event → its line of text, an exception's traceback behind it."""

    def __init__(self, redacted: Callable[[str], str]) -> None:
        self._redacted = redacted

    def __call__(self, logger: Any, method: str, event: Event) -> str:
        del logger, method
        moment, level, name, said = (event.pop(part, "") for part in _FIRST)
        exception = event.pop("exception", None)
        facts = "".join(f" {fact}={value}" for fact, value in event.items())
        line = f"{moment} {level.upper()} {name}: {said}{facts}"
        return self._redacted(line if exception is None else f"{line}\n{exception}")

"""An input → a batch: rows are made into a file on disk, uploaded as a stream, and a batch is asked for."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cli.batches.rows import LineFault, Made, Wishes, make_rows
from cli.client import Client
from shared.errors import ConfigurationError

_MOST_SHOWN = 20
_MODELS_SHOWN = 10


class FaultyInputError(Exception):
    """Lines that cannot become rows. Nothing was sent."""

    def __init__(self, name: str, faults: list[LineFault]) -> None:
        super().__init__(f"{name} cannot be a batch; nothing was sent.")
        self.name, self.faults = name, faults

    def shown(self) -> str:
        """The first of them, a line each."""
        lines = [f"{self.name}:{fault.line}: {fault.message}" for fault in self.faults[:_MOST_SHOWN]]
        more = len(self.faults) - _MOST_SHOWN
        return "\n".join([*lines, *([f"… and {more} more"] if more > 0 else []), str(self)])


@dataclass(frozen=True, slots=True)
class Submission:
    """What is asked for.

    Attributes:
        source: a file; `-` is standard input.
        model: empty: the only one there is.
        batch: fields of POST /v1/batches besides the file and the endpoint.
        key: of idempotency: the same content under the same key is one batch. Empty: of this command alone.
    """

    source: str
    model: str
    wishes: Wishes
    batch: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    @property
    def name(self) -> str:
        """What the input is called."""
        return "stdin" if self.source == "-" else self.source


def submit(client: Client, asked: Submission, say: Callable[[str], None]) -> dict[str, Any]:
    """The new batch. Raises FaultyInputError, ConfigurationError, RequestError."""
    with tempfile.TemporaryFile(prefix="penstock-batch-") as rows:
        with _opened(asked.source) as source:
            made = make_rows(source, rows, asked.wishes, lambda: asked.model or _only_model(client))
        if made.faults:
            raise FaultyInputError(asked.name, made.faults)
        say(f"{made.rows} rows for {made.endpoint}, {made.size_bytes / 1e6:.1f} MB: uploading")
        key = asked.key or f"cli-{os.urandom(12).hex()}"
        file_id = _upload(client, rows, asked, key)
    return _create(client, asked, made, file_id, key)


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(source).expanduser().open("rb")
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror}") from error
    with file:
        yield file


def _upload(client: Client, rows: IO[bytes], asked: Submission, key: str) -> str:
    name = f"{Path(asked.name).stem or 'rows'}.jsonl"

    def body() -> dict[str, Any]:
        rows.seek(0)
        headers = {"idempotency-key": key}
        return {"data": {"purpose": "batch"}, "files": {"file": (name, rows)}, "headers": headers}

    return str(client.upload("/v1/files", body)["id"])


def _create(client: Client, asked: Submission, made: Made, file_id: str, key: str) -> dict[str, Any]:
    body = {"input_file_id": file_id, "endpoint": made.endpoint, **asked.batch}
    return dict(client.json("POST", "/v1/batches", json=body, headers={"idempotency-key": key}))


def _only_model(client: Client) -> str:
    """The model that rows get which name none. Raises ConfigurationError unless there is exactly one."""
    models = [str(model["id"]) for model in client.json("GET", "/v1/models")["data"]]
    if len(models) == 1:
        return models[0]
    shown = ", ".join(models[:_MODELS_SHOWN]) or "none at the moment"
    raise ConfigurationError(f"--model is needed: which one should answer? Served here: {shown}.")

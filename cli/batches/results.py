"""The results of a batch: from its files once it has ended, from its committed rows while it runs.

In memory are one line and, where rows come in the order of the input, the place of each of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from cli.batches.formats import BY_NAME, failure_of, id_of
from cli.batches.watching import Watch, ended
from cli.client import LOST, Client
from shared.errors import ConfigurationError, RequestError

_MOST_SHOWN = 3
_PAGE_ROWS = 500
_MOST_IDLE = 5
"""Downloads that break without a byte, one after the other."""
_NOT_FOUND = 404
_GONE = 410
_PARTIAL = 206


@dataclass(slots=True)
class Written:
    """What was written: lines, and the first failures among them."""

    lines: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    ids: set[str] | None = None


class Results:
    """Of one batch. Raises RequestError and OSError."""

    def __init__(self, client: Client, style: str, *, as_done: bool) -> None:
        self._client = client
        self._style = style
        self._format = BY_NAME[style]
        self._as_done = as_done
        self.written = Written()

    def write(self, found: dict[str, Any], target: IO[bytes]) -> None:
        """All rows of a batch that has ended, in the order of its input unless that is not wanted."""
        files = [found[name] for name in ("output_file_id", "error_file_id") if found[name]]
        lines = itertools.chain.from_iterable(map(self._lines_of, files))
        rows = self._rows(found)
        if rows is None:
            for line in lines:
                self._put(target, line, None)
            return
        with tempfile.TemporaryFile(prefix="penstock-results-") as kept:
            places: dict[str, int] = {}
            for line in lines:
                places[id_of(line)] = kept.tell()
                kept.write(line + b"\n")
            for row in rows:
                place = places.pop(id_of(row), None)
                if place is not None:
                    self._put(target, _line_at(kept, place), row)
            for place in places.values():
                self._put(target, _line_at(kept, place), None)

    def follow(self, batch: str, target: IO[bytes]) -> dict[str, Any]:
        """Rows as they are committed, to the end of the batch. Returns it."""
        self.written.ids = set()
        place, found = "", dict[str, Any]()
        for state in Watch(self._client, batch):
            found, place = state, self._pages(batch, place, target)
        counts = found["request_counts"]
        if self.written.lines != counts["completed"] + counts["failed"]:
            self._missed(found, target)
        return found

    def partial(self, batch: str, target: IO[bytes]) -> None:
        """What is done by now."""
        self._pages(batch, "", target)

    def _missed(self, found: dict[str, Any], target: IO[bytes]) -> None:
        """Rows that were in no page: those that expired, and those of a history that Redis has lost."""
        seen = self.written.ids or set()
        for name in ("output_file_id", "error_file_id"):
            for line in self._lines_of(found[name]) if found[name] else ():
                if id_of(line) not in seen:
                    self._put(target, line, None)

    def _pages(self, batch: str, place: str, target: IO[bytes]) -> str:
        """All pages from a place on. Returns where the next one begins."""
        while True:
            query = {"after": place, "limit": _PAGE_ROWS}
            try:
                page = self._client.json("GET", f"/v1/batches/{batch}/results", params=query)
            except RequestError as error:
                if error.status == _GONE:
                    return place  # the files have everything
                raise
            for row in page["data"]:
                line = msgspec.json.encode(row)
                if self.written.ids is None or id_of(line) not in self.written.ids:
                    self._put(target, line, None)
            target.flush()
            place = page["next"]
            if not page["has_more"]:
                return place

    def _rows(self, found: dict[str, Any]) -> Iterator[bytes] | None:
        """The rows of the input, where they are needed and there."""
        if self._as_done and self._style != "pairs":
            return None
        try:
            self._client.json("GET", f"/v1/files/{found['input_file_id']}")
        except RequestError as error:
            self._client.notice(f"Rows come as they were done, without prompts: {error.message}")
            return None
        return self._lines_of(found["input_file_id"])

    def _put(self, target: IO[bytes], line: bytes, row: bytes | None) -> None:
        written = self.written
        target.write(self._format(line, row))
        written.lines += 1
        if written.ids is not None:
            written.ids.add(id_of(line))
        failure = failure_of(line) if b'"error":null' not in line[-16:] else None
        if failure is not None:
            written.failed += 1
            if len(written.failures) < _MOST_SHOWN:
                written.failures.append(failure)

    def _lines_of(self, file: str) -> Iterator[bytes]:
        """The lines of a file that are not blank."""
        rest = b""
        for chunk in self._bytes_of(file):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from filter(bytes.strip, whole)
        if rest.strip():
            yield rest

    def _bytes_of(self, file: str) -> Iterator[bytes]:
        """The bytes of a file; a download that breaks goes on where it was, at whatever replica."""
        offset, reached, idle = 0, 0, 0
        while True:
            headers = {"range": f"bytes={offset}-"} if offset else {}
            with self._client.stream(f"/v1/files/{file}/content", headers) as response:
                if offset and response.status_code != _PARTIAL:
                    raise RequestError(502, "bad_answer", "The download broke, and the server cannot go on with it.")
                try:
                    for chunk in response.iter_bytes():
                        offset += len(chunk)
                        yield chunk
                    return
                except LOST as error:
                    idle, reached = (0 if offset > reached else idle + 1), offset
                    why = str(error) or type(error).__name__
                    if idle >= _MOST_IDLE:
                        raise RequestError(502, "bad_answer", f"The download breaks again and again: {why}.") from error
                    self._client.notice(f"The download broke ({why}); going on.")


def _line_at(kept: IO[bytes], place: int) -> bytes:
    kept.seek(place)
    return kept.readline().rstrip(b"\n")


def check_target(output: str) -> None:
    """Raises ConfigurationError where no file can be written: better before the work than after it."""
    path = Path(output).expanduser()
    if output != "-" and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        why = "it is a folder" if path.is_dir() else f"no file can be made in {path.parent}"
        raise ConfigurationError(f"--output {output}: {why}.")


@contextlib.contextmanager
def opened(output: str, *, whole: bool = True) -> Iterator[IO[bytes]]:
    """Where results go; `-` is standard output. A file is there as a whole or not at all; without `whole` it grows."""
    path = Path(output).expanduser()
    if output == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif not whole or (path.exists() and not path.is_file()):
        with path.open("wb") as target:
            yield target
    else:
        with _replacing(path) as target:
            yield target


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file beside `path` that takes its place once it is complete and on the disk."""
    new = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with new.open("wb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def clean(client: Client, found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Deletes the files of a batch that has ended. One that is gone already is no fault."""
    names: Iterable[str] = ("input_file_id", "output_file_id", "error_file_id")
    for file in [found[name] for name in names if found[name]]:
        try:
            client.json("DELETE", f"/v1/files/{file}")
        except RequestError as error:
            if error.status != _NOT_FOUND:
                raise
        else:
            say(f"{file} deleted")


def complete(found: dict[str, Any], written: Written) -> bool:
    """Whether a batch has results, and all of them were written."""
    counts = found["request_counts"]
    return ended(found) and 0 < written.lines == counts["completed"] + counts["failed"]

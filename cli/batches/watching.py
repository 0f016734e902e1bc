"""A batch as it gets on: from its stream of events, by asking where there is none, through the death of replicas."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from cli.client import LOST, Client
from shared.batches import ENDED
from shared.errors import RequestError

_POLL_S = 2.0
_LOOK_AGAIN_S = 0.5
_MOST_BROKEN = 3
"""Streams that end without a word before it is only asked."""
_NOT_FOUND = 404


def ended(found: dict[str, Any]) -> bool:
    """Whether nothing happens to a batch any more."""
    return found["status"] in ENDED


class Watch:
    """Of one batch. Iterating yields its object whenever it changes, with `progress` where that is known, to the end.

    Raises RequestError: there is no such batch, or nobody answers any more.
    """

    def __init__(self, client: Client, batch: str) -> None:
        self._client = client
        self._path = f"/v1/batches/{batch}"
        self._seen_at_s: float | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        found, broken = self._look(), 0
        yield found
        while not ended(found):
            told = False
            for found in self._events() if broken < _MOST_BROKEN else ():
                told, self._seen_at_s = True, time.monotonic()
                yield found
                if ended(found):
                    return
            broken = 0 if told else broken + 1
            time.sleep(_LOOK_AGAIN_S if broken < _MOST_BROKEN else _POLL_S)
            found = self._look()
            yield found

    def _look(self) -> dict[str, Any]:
        """The batch. One that was there may be away until it is restored, should Redis have lost it."""
        while True:
            try:
                found = dict(self._client.json("GET", self._path))
            except RequestError as error:
                known_s = self._seen_at_s
                if error.status != _NOT_FOUND or known_s is None or time.monotonic() > known_s + self._client.retry_s:
                    raise
                self._client.notice("The batch is not there at the moment; asking again.")
                time.sleep(_POLL_S)
            else:
                self._seen_at_s = time.monotonic()
                return found

    def _events(self) -> Iterator[dict[str, Any]]:
        """What the stream says, until it ends, breaks or was refused."""
        try:
            with self._client.stream(f"{self._path}/events") as response:
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    return
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield msgspec.json.decode(line.removeprefix("data:"))
        except LOST as error:
            self._client.notice(f"The connection broke ({str(error) or type(error).__name__}); connecting again.")
        except (RequestError, msgspec.DecodeError):
            return

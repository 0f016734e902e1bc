"""How the simulated engine tells an answer as it grows: as chunks, or as the events of a response."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from worker.engines import sim_responses
from worker.engines.sim_answers import Job, chunk_template, head_events, tail_events


class Telling(Protocol):
    """The events of one answer."""

    def begun(self) -> Iterable[bytes]:
        """What comes before the prompt has been read."""

    def opening(self) -> Iterable[bytes]:
        """What comes before the first token."""

    def token(self, text: str) -> bytes:
        """The event of one token."""

    def tail(self) -> Iterable[bytes]:
        """What comes after the last token."""


def telling_of(job: Job, model: str) -> Telling:
    """The events of this job's answer."""
    return _Chunks(job, model) if job.response is None else sim_responses.Events(job, model, job.response)


class _Chunks:
    """A Telling of completions."""

    def __init__(self, job: Job, model: str) -> None:
        self._job = job
        self._model = model
        self._front, self._back = chunk_template(job, model)

    def begun(self) -> Iterable[bytes]:
        """See Telling."""
        return ()

    def opening(self) -> Iterable[bytes]:
        """See Telling."""
        return head_events(self._job, self._model)

    def token(self, text: str) -> bytes:
        """See Telling."""
        return b"%b%b%b" % (self._front, text.encode(), self._back)

    def tail(self) -> Iterable[bytes]:
        """See Telling."""
        return tail_events(self._job, self._model)

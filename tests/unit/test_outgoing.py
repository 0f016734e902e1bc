"""What a worker keeps of what it has published, for a Redis that loses it."""

from __future__ import annotations

from shared.outcomes import Claimed
from worker.outgoing import Outgoing


class Deaf:
    """A publisher that nobody tells anything."""

    def mark(self, out: Outgoing) -> None:
        """Something waits."""


def outgoing(log: bytes = b"") -> Outgoing:
    return Outgoing(Deaf(), "r1", "a1", Claimed(b"", log, 1, 0, 0), keep_bytes=1_000, priority=0)


def test_what_is_held_says_whether_anybody_can_have_seen_its_last_frame() -> None:
    out = outgoing()
    nothing, first = out.held(b"", ending=False), out.held(b"one", ending=False)
    assert nothing is not None
    assert first is not None
    assert [(one.log, one.last_bytes, one.seen) for one in (nothing, first)] == [(b"", 0, False), (b"one", 3, False)]
    out.published.append(b"one")
    asked, second = out.held(b"", ending=False), out.held(b"more", ending=True)
    assert asked is not None
    assert second is not None
    assert (asked.log, asked.last_bytes, asked.seen) == (b"one", 3, True)
    assert (second.log, second.last_bytes, second.seen, second.ending) == (b"onemore", 4, False, True)


def test_of_an_attempt_that_is_over_nothing_is_given_back() -> None:
    out = outgoing(b"of earlier attempts")
    out.published.append(b"one")
    out.close()
    assert out.held(b"more", ending=True) is None, "or it would lack what was published"

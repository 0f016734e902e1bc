"""The history checker finds what it is there to find, and the fault proxy knows where a message ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.client import Seen
from tests.support.faultproxy import FaultProxy, _Link, _reply_bytes
from tests.support.history import check_clients
from worker.engines.sim_answers import answer_text, token_text

RID = "req_1"
TOKENS = 10


def whole() -> Seen:
    return Seen(200, RID, answer_text(RID, TOKENS), ["10-a", "20-a", "30-b"], ["length"], done=1)


def broken_off() -> Seen:
    return Seen(200, RID, answer_text(RID, 4), ["10-a", "20-a"], errors=[{"code": "worker_lost"}])


def test_a_whole_answer_and_an_explicit_error_are_counted() -> None:
    verdict = check_clients([whole(), broken_off(), Seen(429, errors=[{"code": "queue_full"}])], TOKENS)
    assert (verdict.requests, verdict.whole, dict(verdict.errors)) == (2, 1, {"worker_lost": 1, "queue_full": 1})


SPOILED: dict[str, Callable[[Seen], Any]] = {
    "a gap": lambda one: setattr(one, "text", one.text.replace(token_text(RID, 5), "")),
    "a repeat": lambda one: setattr(one, "text", answer_text(RID, 4) + token_text(RID, 3)),
    "a splice": lambda one: setattr(one, "text", answer_text(RID, 4) + answer_text("req_2", 6)),
    "a cut tail": lambda one: setattr(one, "text", answer_text(RID, 9)),
    "two ends": lambda one: setattr(one, "done", 2),
    "no end": lambda one: setattr(one, "done", 0),
    "an error behind the end": lambda one: one.errors.append({"code": "worker_lost"}),
    "a cursor twice": lambda one: setattr(one, "ids", ["10-a", "10-b"]),
    "a broken connection": lambda one: setattr(one, "broken", "reset"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_every_broken_promise_is_found(spoil: Callable[[Seen], Any]) -> None:
    one = whole()
    spoil(one)
    with pytest.raises(AssertionError):
        check_clients([one], TOKENS)


def test_a_reply_is_cut_out_where_it_ends() -> None:
    message = b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$4\r\n\r\n*9\r\n"
    for data in (message, b"*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n", b"+PONG\r\n", b"$-1\r\n", b"*0\r\n"):
        assert _reply_bytes(data + b"*3\r\n") == len(data)
        assert all(_reply_bytes(data[:size]) == 0 for size in range(len(data)))


def test_lost_messages_leave_everything_else_as_it_was() -> None:
    message = b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1\r\nx\r\n"
    proxy, link = FaultProxy(1), _Link()
    link.pubsub, proxy.drop_messages_ratio = True, 1.0
    stream = b"+PONG\r\n" + message * 3 + b":1\r\n"
    assert b"".join(proxy._thinned(link, stream[at : at + 7]) for at in range(0, len(stream), 7)) == b"+PONG\r\n:1\r\n"
    assert proxy.dropped_messages == 3

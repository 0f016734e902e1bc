"""The terms of a request, and which request a client is led to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.deadlines import Patience
from api.idempotency import PLAIN, Place, Terms, place, terms_of
from api.requests import Facts
from api.schemas import validate_chat
from shared.errors import RequestError
from shared.keys import Keys
from shared.outcomes import Admitted
from shared.states import State

ENDED = Facts(
    rid="old",
    keys=Keys("p"),
    state=State.SUCCEEDED,
    reason="completed",
    lane="standard",
    queue="standard",
    owner="",
    claims=1,
    kept=True,
    stays=True,
    cancel="",
    heard=0,
    discarded=False,
    queued_at_ms=1,
    started_at_ms=2,
    finished_at_ms=3,
    prompt_tokens=1,
    completion_tokens=1,
)
RUNS = replace(ENDED, state=State.RUNNING, reason="")
KEYED, STRICT, RETRY = Terms(key="k"), Terms(key="k", strict=True), Terms(retry=True)


def test_the_headers_say_the_terms() -> None:
    assert terms_of({}) == PLAIN
    assert (
        terms_of({"idempotency-key": '"a-1"'}) == Terms(key="a-1", stays=True) == terms_of({"idempotency-key": "a-1"})
    )
    assert not terms_of({"idempotency-key": "a", "x-on-disconnect": "cancel"}).stays
    assert terms_of({"x-on-disconnect": "continue"}).stays
    assert terms_of({"x-stainless-retry-count": "2"}).retry
    assert not terms_of({"x-stainless-retry-count": "0"}).retry
    assert not terms_of({"x-stainless-retry-count": "many"}).retry
    assert terms_of({"x-request-timeout-ms": "250"}).patience == Patience(timeout_ms=250)


@pytest.mark.parametrize(
    ("sent", "retry"),
    [("\u00b2", False), ("\u0664", False), ("", False), ("00", False), ("010", True), ("9" * 5000, True)],
)
def test_a_retry_count_is_judged_whatever_digits_it_is_made_of(sent: str, *, retry: bool) -> None:
    assert terms_of({"x-stainless-retry-count": sent}).retry is retry


def test_how_an_answer_is_delivered_is_no_part_of_what_is_asked() -> None:
    first = validate_chat(b'{"messages": [{"a": 1}], "stream": true, "stream_options": {}, "top_p": 0.5}', None)
    other = validate_chat(b'{"top_p":0.5,"messages":[{"a":1}]}', None)
    third = validate_chat(b'{"top_p":0.6,"messages":[{"a":1}]}', None)
    assert first.fingerprint("t") == other.fingerprint("t") != third.fingerprint("t")
    assert first.fingerprint("t") != first.fingerprint("u")


@pytest.mark.parametrize(
    ("terms", "holder", "status"),
    [
        (KEYED, RUNS, "attached"),
        (KEYED, replace(RUNS, state=State.QUEUED, kept=False), "attached"),
        (KEYED, ENDED, "replayed"),
        (STRICT, ENDED, "replayed"),
        (KEYED, replace(ENDED, state=State.FAILED, reason="engine_error"), "replayed"),
        (KEYED, replace(ENDED, state=State.EXPIRED, reason="deadline_exceeded"), "replayed"),
        (KEYED, replace(ENDED, state=State.FAILED, reason="worker_lost"), "created"),
        (KEYED, replace(ENDED, state=State.EXPIRED, reason="queue_timeout"), "created"),
        (KEYED, replace(ENDED, state=State.CANCELLED, reason="client_gone"), "created"),
        (RETRY, RUNS, "coalesced"),
        (RETRY, ENDED, "coalesced"),
        (RETRY, replace(ENDED, heard=1), ""),
        (RETRY, replace(ENDED, kept=False), ""),
        (RETRY, replace(ENDED, state=State.FAILED, reason="engine_error"), ""),
        (RETRY, None, ""),
    ],
)
async def test_a_request_joins_the_holder_of_its_key_or_takes_the_key_over(
    terms: Terms, holder: Facts | None, status: str
) -> None:
    asked: list[str] = []

    async def admit(replaces: str) -> Admitted:
        asked.append(replaces)
        return Admitted("OK", "new") if replaces else Admitted("DUP", "old")

    async def look(rid: str) -> Facts | None:
        assert rid == "old"
        return holder

    found = await place("new", terms, admit, look)
    joined = status in {"attached", "replayed", "coalesced"}
    assert (found.status, found.rid) == (status, "old" if joined else "new")
    assert asked == ([""] if joined else ["", "old"])


@pytest.mark.parametrize(
    ("terms", "holder", "code"),
    [
        (STRICT, RUNS, "idempotency_in_progress"),
        (KEYED, None, "result_expired"),
        (KEYED, replace(ENDED, kept=False), "result_expired"),
        (KEYED, replace(ENDED, state=State.CANCELLED, discarded=True, kept=False), "result_expired"),
    ],
)
async def test_what_cannot_be_joined_is_told_so(terms: Terms, holder: Facts | None, code: str) -> None:
    async def admit(replaces: str) -> Admitted:
        assert not replaces, "a second run"
        return Admitted("DUP", "old")

    async def look(_: str) -> Facts | None:
        return holder

    with pytest.raises(RequestError) as raised:
        await place("new", terms, admit, look)
    assert raised.value.code == code


async def test_a_key_that_is_gone_together_with_its_request_is_taken() -> None:
    """Redis came back without its data between the two looks."""
    answers = [Admitted("DUP", "old"), Admitted("OK", "new")]

    async def admit(replaces: str) -> Admitted:
        assert not replaces
        return answers.pop(0)

    async def look(_: str) -> Facts | None:
        return None

    assert await place("new", KEYED, admit, look) == Place("new", "created", KEYED.stays)


async def test_a_key_with_another_content_is_a_mismatch() -> None:
    async def admit(_: str) -> Admitted:
        return Admitted("CONFLICT", "old")

    async def look(_: str) -> Facts | None:
        raise AssertionError

    with pytest.raises(RequestError) as raised:
        await place("new", KEYED, admit, look)
    assert (raised.value.status, raised.value.code) == (422, "idempotency_key_mismatch")


async def test_a_holder_that_is_being_cancelled_is_waited_for() -> None:
    holders = [replace(RUNS, cancel="operator"), replace(ENDED, state=State.CANCELLED, reason="operator")]

    async def admit(replaces: str) -> Admitted:
        return Admitted("OK", "new") if replaces else Admitted("DUP", "old")

    async def look(_: str) -> Facts | None:
        return holders.pop(0)

    assert (await place("new", KEYED, admit, look)).status == "created"

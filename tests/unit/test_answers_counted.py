"""What the metrics say about an answer that a replica has relayed."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fastapi import Request
from prometheus_client import REGISTRY
from starlette.types import Message

from api.admission import Door
from api.relay import Relay
from api.settings import ApiSettings
from api.sse import Answer
from api.ticket import Ticket
from shared.hot import HotClient
from shared.keys import Keys
from shared.wire import END, HEAD, Frame, Meta
from tests.unit.test_sse import SCOPE, Leaving, waiting

JSON = [("content-type", "application/json")]
SSE = [("content-type", "text/event-stream")]
OK = Meta(status=200, headers=JSON, state="succeeded", reason="completed")
REFUSED = Meta(status=400, headers=JSON, state="succeeded", reason="completed")
LATE = Meta(state="expired", reason="queue_timeout")
REFUSAL = b'{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}'


def following(model: str, kind: int, meta: Meta, data: bytes, **facts: Any) -> Ticket:
    """A ticket whose relay has taken one frame."""
    relay = Relay(cast("HotClient", None), Keys("p"), "req", grace_s=1, lost_grace_s=1, readmit=None)
    relay._take(10, Frame(kind, "a", 0, [], 0, meta, data))
    return Ticket("req", model, "standard", relay, Keys("p"), 0.0, **facts)


def answer_to(ticket: Ticket, *, stream: bool) -> Answer:
    return Answer(cast("Door", Leaving()), ticket, ApiSettings(), stream=stream)


def first_bytes(model: str) -> float:
    """How many first bytes were measured."""
    name = "penstock_time_to_first_token_seconds_count"
    return REGISTRY.get_sample_value(name, {"lane": "standard", "model": model}) or 0


def outcomes(model: str) -> dict[str, float]:
    """How many requests ended how."""
    (metric,) = (found for found in REGISTRY.collect() if found.name == "penstock_requests_finished")
    counts = [sample for sample in metric.samples if sample.name.endswith("_total") and sample.labels["model"] == model]
    return {sample.labels["outcome"]: sample.value for sample in counts}


@pytest.mark.parametrize(
    ("kind", "meta", "data", "status", "outcome"),
    [
        (HEAD | END, OK, b"{}", 200, "succeeded"),
        (HEAD | END, REFUSED, REFUSAL, 400, "invalid_request_error"),
        (END, LATE, b"", 503, "queue_timeout"),
    ],
    ids=["answer", "refusal", "end without an answer"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_no_stream_is_counted_as_what_the_client_got_and_has_no_first_byte(
    kind: int, meta: Meta, data: bytes, status: int, outcome: str, *, stream: bool
) -> None:
    model = f"{outcome} {stream}"
    response = await answer_to(following(model, kind, meta, data), stream=stream).response(Request(SCOPE, waiting))
    assert response.status_code == status
    assert outcomes(model) == {outcome: 1}
    assert first_bytes(model) == 0


@pytest.mark.parametrize("resumed", [True, False])
async def test_a_stream_has_a_first_byte_where_it_begins(*, resumed: bool) -> None:
    model = f"resumed {resumed}"
    ticket = following(model, HEAD, Meta(status=200, headers=SSE), b"data: 1\n\n", resumed=resumed)
    await answer_to(ticket, stream=True).response(Request(SCOPE, waiting))
    assert first_bytes(model) == (not resumed)


async def test_a_fault_of_ours_amid_a_stream_is_not_counted_as_its_clients_hanging_up() -> None:
    ticket = following("ours", HEAD, Meta(status=200, headers=SSE), b"data: 1\n\n")
    answer = answer_to(ticket, stream=True)

    def broken(piece: bytes) -> bytes:
        raise ZeroDivisionError(piece)

    answer._shaped = broken  # type: ignore[method-assign]
    response: Any = await answer.response(Request(SCOPE, waiting))
    ticket.relay.hung_up = lambda: False  # behind uvicorn

    async def send(message: Message) -> None:
        del message

    with pytest.raises(ZeroDivisionError):
        await response(SCOPE, waiting, send)
    assert outcomes("ours") == {"replica_error": 1}

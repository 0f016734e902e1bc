"""A polled request's answer, from logs as attempts and faults leave them."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

from starlette.datastructures import State as AppState

from api.polled import polled
from api.relay import Relay
from api.requests import facts_of
from shared.hot import HotClient
from shared.wire import DELTA, END, HEAD, Frame, Meta, encode, end_frame
from tests.integration.shard import Shard

SSE = [("content-type", "text/event-stream")]
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'


def head(data: bytes, headers: list[tuple[str, str]], attempt: str = "a1") -> bytes:
    return encode(Frame(HEAD, attempt, -1, [], 0, Meta(status=200, headers=headers), data))


def end(state: str, reason: str, attempt: str = "a1") -> bytes:
    return encode(Frame(END, attempt, -1, [], 0, Meta(state=state, reason=reason), b""))


async def response_of(hot: HotClient, shard: Shard, state: str, *frames: bytes, **facts: str) -> dict[str, Any] | None:
    """What is polled of a request that has ended so."""
    await shard.client.set(shard.keys.log("r1"), b"".join(frames))
    fields = {"state": state, "lane": "standard", "finished_at_ms": "3", **facts}
    await shard.client.hset(shard.keys.record("r1"), mapping=fields)  # type: ignore[misc]

    def reader(*_: object) -> Relay:
        return Relay(hot, shard.keys, "r1", grace_s=1, lost_grace_s=0, readmit=None)

    app = AppState({"door": SimpleNamespace(reader=reader)})
    answer = await polled(app, facts_of(shard.keys, "r1", fields, kept=bool(frames)))
    response: dict[str, Any] | None = json.loads(bytes(answer.body))["response"]
    return response


async def test_an_answer_that_is_no_json_is_told_in_base64(hot: HotClient, shard: Shard) -> None:
    vectors = bytes(range(256))
    frames = head(vectors, [("content-type", "application/octet-stream")]), end("succeeded", "completed")
    answer = await response_of(hot, shard, "succeeded", *frames)
    body = base64.b64encode(vectors).decode()
    assert answer == {"status_code": 200, "content_type": "application/octet-stream", "body": body}


async def test_a_head_that_another_attempt_has_written_before_anything_was_visible_leaves_no_trace(
    hot: HotClient, shard: Shard
) -> None:
    frames = head(b"", SSE), head(CHUNK % b"new", SSE, "a2"), end("succeeded", "completed", "a2")
    answer = await response_of(hot, shard, "succeeded", *frames)
    assert answer is not None
    assert answer["body"]["choices"][0]["message"]["content"] == "new"


async def test_what_broke_off_is_an_error_in_the_envelope_of_its_route(hot: HotClient, shard: Shard) -> None:
    frames = head(CHUNK % b"half", SSE), end("failed", "worker_lost", "a2")
    told = await response_of(hot, shard, "failed", *frames, reason="worker_lost", endpoint="/v1/chat/completions")
    assert told is not None
    assert (told["status_code"], told["body"]["error"]["code"]) == (500, "worker_lost")
    told = await response_of(hot, shard, "expired", end_frame("expired", "queue_timeout"), endpoint="/v1/messages")
    assert told is not None
    assert (told["status_code"], told["body"]["type"], told["body"]["error"]["code"]) == (503, "error", "queue_timeout")


async def test_a_log_whose_tail_redis_has_lost_is_no_answer(hot: HotClient, shard: Shard) -> None:
    more = encode(Frame(DELTA, "a1", -1, [], 0, None, CHUNK % b" more"))
    told = await response_of(hot, shard, "succeeded", head(CHUNK % b"half", SSE), more)
    assert told is not None
    assert (told["status_code"], told["body"]["error"]["code"]) == (500, "history_lost")
    assert await response_of(hot, shard, "succeeded") is None

"""A trace of a request that has survived its worker's death."""

from __future__ import annotations

import asyncio

import httpx
import redis

from shared import genai
from shared.history import events_of
from shared.keys import Keys
from tests.support.client import Seen, stream_chat
from tests.support.stack import Worker, eventually, running_stack
from tests.support.traces import complete
from worker.tracing import span_id_of

KEYS = Keys("sim")
TOKENS = 800
_NS_PER_MS = 1_000_000


async def running_on(workers: list[Worker]) -> Worker:
    """The worker that runs the one request, once it has published something of it."""
    found: list[Worker] = []

    def busy() -> bool:
        found[:] = [one for one in workers if one.metric("penstock_flushed_frames_total") >= 20]
        return bool(found)

    await eventually(busy, 30, "the stream flows")
    return found[0]


async def test_one_trace_shows_the_attempt_that_died_and_the_one_that_went_on(client: httpx.AsyncClient) -> None:
    with running_stack() as stack, redis.Redis.from_url(stack.redis_url) as server:
        path = stack.folder / "spans.jsonl"
        workers = [stack.worker("--trace-file", str(path), "--", "--itl-ms", "10") for _ in range(2)]
        api = stack.api("--trace-file", str(path))
        asking = asyncio.create_task(stream_chat(client, api.url, TOKENS))
        victim = await running_on(workers)
        victim.kill()
        seen: Seen = await asking
        assert seen.whole
        seen.check(TOKENS)
        trace = await complete(path, seen.rid)
        record = {name.decode(): value.decode() for name, value in server.hgetall(KEYS.record(seen.rid)).items()}
    (lost,) = events_of(record["history"])
    first, second = trace.all("process standard")
    assert [span.attributes[genai.ATTEMPT_NUMBER] for span in (first, second)] == [1, 2]
    assert [trace.parent_of(span) for span in (first, second)] == ["send standard", "send standard"]
    assert (first.failed, first.attributes[genai.OUTCOME]) == (True, "worker_lost")
    assert first.attributes[genai.ENDED_BY] == "worker_died"
    assert (first.attributes[genai.WORKER], first.attributes[genai.ATTEMPT]) == (lost.wid, lost.attempt)
    assert first.attributes[genai.TOLD_BY] == second.attributes[genai.WORKER] != lost.wid
    assert first.span_id == f"{span_id_of(lost.attempt):016x}", "the id that its own worker would have given it"
    assert (first.start_unix_ns, first.end_unix_ns) == (lost.started_at_ms * _NS_PER_MS, lost.at_ms * _NS_PER_MS)
    assert trace.one("send standard").start_unix_ns < first.start_unix_ns + 2 * _NS_PER_MS
    assert first.start_unix_ns < first.end_unix_ns <= second.start_unix_ns + _NS_PER_MS
    assert (second.failed, second.attributes[genai.OUTCOME]) == (False, "succeeded")
    waits = trace.all("queue")
    assert waits[-1].start_unix_ns == first.end_unix_ns, "the second wait begins when the request was taken back"
    stream = trace.one("stream")
    assert stream.attributes[genai.OUTPUT_TOKENS] == TOKENS
    assert stream.start_unix_ns < first.end_unix_ns < stream.end_unix_ns, "the client read on all the time"


async def test_an_attempt_that_was_handed_back_tells_of_itself(client: httpx.AsyncClient) -> None:
    with running_stack() as stack:
        path = stack.folder / "spans.jsonl"
        flags = ("--trace-file", str(path), "--drain-s", "0.2", "--", "--itl-ms", "10")
        workers = [stack.worker(*flags) for _ in range(2)]
        api = stack.api("--trace-file", str(path))
        asking = asyncio.create_task(stream_chat(client, api.url, TOKENS))
        leaving = await running_on(workers)
        assert leaving.stop() == 0
        seen: Seen = await asking
        seen.check(TOKENS)
        trace = await complete(path, seen.rid)
    first, second = trace.all("process standard")
    assert [span.attributes[genai.OUTCOME] for span in (first, second)] == ["handed_back", "succeeded"]
    assert genai.TOLD_BY not in first.attributes
    assert not first.failed

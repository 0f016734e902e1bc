"""The record: its fields over a life, as docs/protocol.md lists them."""

from __future__ import annotations

from tests.integration.shard import Shard, ending, in_ms
from tests.unit.test_protocol_docs import rows, section


async def test_a_life_writes_the_documented_fields_and_no_others(shard: Shard) -> None:
    told = {"endpoint": "/v1/completions", "model": "llama", "trace": "00-1-2-01"}
    await shard.claimed(finish_by_ms=in_ms(120_000), keep_ms=1000, stays=True, idempotency_ttl_ms=1000, **told)
    await shard.die("w1")
    await shard.scripts.requeue("w1", "r1", "a1")
    await shard.scripts.claim("w2", await shard.delivered("w2"), "a2")
    await shard.scripts.requeue("w2", "r1", "a2", how="preempt")
    await shard.scripts.claim("w2", await shard.delivered("w2"), "a2")
    await shard.scripts.cancel("r1", owner="w2", queue="batch", reason="client_gone")
    fields = set(await shard.record())
    await shard.scripts.done(
        "w2", "r1", "a2", state="cancelled", reason="cancelled", frame=ending("a2", "cancelled"), expected=0
    )
    fields |= set(await shard.record())
    await shard.scripts.discard("r1")
    fields |= set(await shard.record())
    assert fields == {row[0].strip("`") for row in rows(section("The record"))}

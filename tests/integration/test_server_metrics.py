"""What a replica tells of the Redis server and of who uses it, read from a real server."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from shared import metrics
from shared.metrics import Value
from shared.server_health import ServerHealth
from shared.tenant_usage import OTHER, TenantUsage
from tests.integration.shard import Shard, ending


def by_name(values: list[Value]) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for reading, labels, value in values:
        assert len(labels) == len(reading.labels)
        found.setdefault(reading.name, {})[labels] = value
    return found


async def test_the_server_says_how_it_is(shard: Shard) -> None:
    found = by_name(await ServerHealth(shard.client).read([]))
    info: dict[str, Any] = await shard.client.info()
    assert found["penstock_redis_memory_used_bytes"][()] == pytest.approx(info["used_memory"], rel=0.2)
    assert found["penstock_redis_clients_connected"][()] >= 1
    assert found["penstock_redis_start_timestamp_seconds"][()] == pytest.approx(
        info["server_time_usec"] / 1e6 - info["uptime_in_seconds"], abs=2
    )
    assert found["penstock_redis_maxmemory_policy_info"] == {(info["maxmemory_policy"],): 1}
    assert found["penstock_redis_save_ok"] == {(): 1}
    assert found["penstock_redis_aof_enabled"] == {(): 0}
    assert "penstock_redis_aof_ok" not in found
    assert "penstock_redis_memory_max_bytes" not in found
    assert 0 < metrics.REDIS_PING._value.get() < 5


async def test_a_limit_and_an_append_only_file_are_told_when_they_are_there(shard: Shard) -> None:
    await shard.client.config_set("maxmemory", "512mb")
    await shard.client.config_set("appendonly", "yes")
    try:
        found = by_name(await ServerHealth(shard.client).read([]))
    finally:
        await shard.client.config_set("maxmemory", "0")
        await shard.client.config_set("appendonly", "no")
    assert found["penstock_redis_memory_max_bytes"] == {(): 512 << 20}
    assert found["penstock_redis_aof_enabled"] == {(): 1}
    assert found["penstock_redis_aof_ok"] == {(): 1}
    assert found["penstock_redis_aof_size_bytes"][()] >= 0


async def test_a_server_that_lets_nobody_ask_costs_only_its_own_metrics(shard: Shard) -> None:
    await shard.client.acl_setuser("dumb", enabled=True, passwords=["+x"], keys=["*"], commands=["+@all", "-info"])
    options = shard.client.connection_pool.connection_kwargs
    where = {name: options[name] for name in ("host", "port") if name in options}
    dumb = redis.asyncio.Redis(**where, username="dumb", password="x")  # noqa: S106 - of this test's own user
    try:
        assert await ServerHealth(dumb).read([]) == []
    finally:
        await dumb.aclose()
        await shard.client.acl_deluser("dumb")


async def finish(shard: Shard, rid: str, tenant: str, usage: tuple[int, int]) -> None:
    """A request of that tenant comes and ends."""
    await shard.claimed(rid, attempt=f"a-{rid}", tenant=tenant)
    ended = await shard.scripts.done(
        "w1", rid, f"a-{rid}", state="succeeded", reason="completed", frame=ending(f"a-{rid}"), expected=0, usage=usage
    )
    assert ended.outcome == "OK"


def usage_of(shard: Shard, most: int) -> TenantUsage:
    return TenantUsage(shard.client, shard.keys.prefix, most=most)


async def test_the_tenants_with_most_tokens_are_named_and_the_others_are_one(shard: Shard) -> None:
    for number, (tenant, tokens) in enumerate(
        [("a", (10, 5)), ("b", (100, 50)), ("c", (1, 1)), ("b", (1, 1)), ("d", (2, 1))]
    ):
        await finish(shard, f"r{number}", tenant, tokens)
    found = by_name(await usage_of(shard, 2).read([shard.keys.pool]))
    assert found["penstock_tenant_recent_requests"] == {("b",): 2, ("a",): 1, (OTHER,): 2}
    assert found["penstock_tenant_recent_tokens"] == {
        ("b", "prompt"): 101,
        ("b", "completion"): 51,
        ("a", "prompt"): 10,
        ("a", "completion"): 5,
        (OTHER, "prompt"): 3,
        (OTHER, "completion"): 2,
    }


async def test_each_ended_request_is_read_once(shard: Shard) -> None:
    usage = usage_of(shard, 5)
    await finish(shard, "r1", "a", (10, 5))
    await usage.read([shard.keys.pool])
    await shard.client.delete(shard.keys.record("r1"))
    await finish(shard, "r2", "a", (1, 1))
    found = by_name(await usage.read([shard.keys.pool]))
    assert found["penstock_tenant_recent_requests"] == {("a",): 2}
    assert found["penstock_tenant_recent_tokens"][("a", "prompt")] == 11


async def test_what_ended_before_the_window_is_forgotten(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = usage_of(shard, 5)
    await finish(shard, "r1", "a", (10, 5))
    assert await usage.read([shard.keys.pool])
    monkeypatch.setattr("shared.tenant_usage.WINDOW_S", -1)
    assert await usage.read([shard.keys.pool]) == []


async def test_a_flood_of_ends_is_cut_and_counted(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.tenant_usage._PAGE", 2)
    monkeypatch.setattr("shared.tenant_usage._PAGES", 2)
    for number in range(6):
        await finish(shard, f"r{number}", "a", (1, 1))
    usage, before = usage_of(shard, 5), metrics.USAGE_UNREAD._value.get()
    found = by_name(await usage.read([shard.keys.pool]))
    assert found["penstock_tenant_recent_requests"] == {("a",): 4}
    assert metrics.USAGE_UNREAD._value.get() - before == 2
    await finish(shard, "late", "b", (1, 1))
    found = by_name(await usage.read([shard.keys.pool]))
    assert found["penstock_tenant_recent_requests"] == {("a",): 4, ("b",): 1}


async def test_with_none_to_name_nothing_is_read(shard: Shard) -> None:
    await finish(shard, "r1", "a", (1, 1))
    assert await usage_of(shard, 0).read([shard.keys.pool]) == []

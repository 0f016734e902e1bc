"""admit: nothing → queued."""

from __future__ import annotations

from shared.outcomes import Admitted
from tests.integration.shard import Shard, in_ms


async def test_an_admitted_request_is_queued_with_record_body_deadline_and_a_place_for_its_tenant(shard: Shard) -> None:
    deadline_ms = in_ms(60_000)
    assert await shard.admit(deadline_ms=deadline_ms) == Admitted("OK", "r1", 1)
    record, keys = await shard.record(), shard.keys
    facts = {"state": "queued", "fingerprint": "fp-r1", "lane": "standard", "queue": "standard", "tenant": "acme"}
    facts |= {"deadline_ms": str(deadline_ms), "cost": "5", "claims": "0", "kills": "0"}
    assert facts.items() <= record.items()
    assert abs(int(record["queued_at_ms"]) - in_ms(0)) < 5_000
    ((entry_id, fields),) = await shard.client.xrange(keys.queue("standard"))
    assert (entry_id.decode(), fields) == (record["entry"], {b"rid": b"r1", b"cost": b"5"})
    assert await shard.client.get(keys.body("r1")) == b"body of r1"
    assert await shard.client.hgetall(keys.tenants) == {b"acme": b"1"}  # type: ignore[misc]
    assert await shard.client.zscore(keys.deadlines, "r1") == deadline_ms
    assert await shard.client.pttl(keys.record("r1")) == -1


async def test_route_and_model_are_in_the_record_where_they_are_told(shard: Shard) -> None:
    await shard.admit("r1", endpoint="/v1/messages", model="llama")
    await shard.admit("r2")
    assert {"endpoint": "/v1/messages", "model": "llama"}.items() <= (await shard.record("r1")).items()
    assert not {"endpoint", "model"} & (await shard.record("r2")).keys()


async def test_sending_an_admission_twice_queues_it_once(shard: Shard) -> None:
    await shard.admit()
    assert await shard.admit() == Admitted("OK", "r1", 0)
    assert await shard.client.xlen(shard.keys.queue("standard")) == 1
    assert await shard.client.hget(shard.keys.tenants, "acme") == b"1"  # type: ignore[misc]


async def test_a_repeated_admission_is_ok_even_when_lane_and_deadline_would_refuse_it_now(shard: Shard) -> None:
    await shard.admit()
    assert (await shard.admit(lane_cap=1, tenant_cap=1, deadline_ms=1)).outcome == "OK"


async def test_a_known_id_with_another_fingerprint_is_a_conflict(shard: Shard) -> None:
    await shard.admit()
    assert await shard.admit(fingerprint="other") == Admitted("CONFLICT", "r1")


async def test_an_idempotency_key_leads_to_the_first_request(shard: Shard) -> None:
    with_key = {"fingerprint": "fp", "idempotency": "k", "idempotency_ttl_ms": 60_000}
    await shard.admit("r1", **with_key)
    assert await shard.admit("r2", **with_key) == Admitted("DUP", "r1")
    assert await shard.record("r2") == {}
    assert 55_000 < await shard.client.pttl(shard.keys.idempotency("k")) <= 60_000


async def test_an_idempotency_key_with_another_fingerprint_is_a_conflict(shard: Shard) -> None:
    await shard.admit("r1", idempotency="k", idempotency_ttl_ms=60_000)
    assert await shard.admit("r2", idempotency="k", idempotency_ttl_ms=60_000) == Admitted("CONFLICT", "r1")


async def test_an_admission_after_its_deadline_is_refused_and_leaves_nothing(shard: Shard) -> None:
    assert await shard.admit(deadline_ms=in_ms(-1_000)) == Admitted("EXPIRED")
    assert await shard.client.keys(f"{shard.keys.prefix}:*") == []


async def test_a_request_without_deadline_is_watched_by_nobody(shard: Shard) -> None:
    assert (await shard.admit(deadline_ms=0)).outcome == "OK"
    assert await shard.client.exists(shard.keys.deadlines) == 0


async def test_a_full_lane_refuses_with_its_depth_and_other_lanes_stay_open(shard: Shard) -> None:
    for rid in ("r1", "r2"):
        await shard.admit(rid, lane_cap=2)
    assert await shard.admit("r3", lane_cap=2) == Admitted("FULL", "", 2)
    assert await shard.record("r3") == {}
    assert (await shard.admit("r4", lane="batch", lane_cap=2)).outcome == "OK"


async def test_a_tenant_at_its_cap_is_refused_and_others_are_not(shard: Shard) -> None:
    await shard.admit("r1", tenant_cap=1)
    assert await shard.admit("r2", tenant_cap=1) == Admitted("TENANT", "", 1)
    assert (await shard.admit("r3", tenant="other", tenant_cap=1)).outcome == "OK"

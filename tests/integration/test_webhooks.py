"""Webhooks on real servers, to a real receiver: at least once each, under one id, to whom the rules allow."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
import redis.asyncio

import batch.posting
from api.reach import Resolve
from batch.hooks import LEASE_MS, Hooks
from batch.manifest import TOLD_WITHIN_MS, Manifests
from batch.posting import TIMEOUT_S, Poster
from batch.settings import BatchSettings
from shared.batches import Batches
from shared.hot import HotClient
from shared.keys import GlobalKeys
from shared.metrics import WEBHOOKS, WEBHOOKS_PENDING, child
from shared.storage import Storage, open_storage
from tests.support.certificates import certificate
from tests.support.polling import eventually, serving
from tests.support.receivers import OTHER_SECRET, SECRET, Receiver, receiving

FACTS = {"input_file_id": "file-1", "endpoint": "/v1/completions"}
LOOPBACK = {"webhook_networks": "127.0.0.0/8", "webhook_http": True}
NAME = "hooks.example.com"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def batches(hot: HotClient, prefix: str) -> Batches:
    return Batches(hot, prefix)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


async def ended(batches: Batches, name: str, status: str = "completed", tenant: str = "t1", url: str = "") -> str:
    """A batch that has ended."""
    own, facts = batches.scripts, FACTS | ({"webhook_url": url} if url else {})
    await own.create(name, tenant, facts, window_ms=3_600_000, secret=OTHER_SECRET if url else "")
    assert (await own.take(name, "d1")).outcome == "OK"
    await own.keep(name, "d1", {"total": 1}, move=("validating", "in_progress"))
    assert (await own.end(name, "d1", status, {})).status == status
    return name


@asynccontextmanager
async def telling(
    batches: Batches,
    storage: Storage,
    url: str = "",
    resolve: Resolve | None = None,
    tls: ssl.SSLContext | None = None,
    **given: object,
) -> AsyncIterator[None]:
    """A process's webhooks, to the operator's receiver at `url`."""
    own = {"webhook_secret": SECRET, "webhook_url": url} if url else {}
    settings = BatchSettings(**{"webhook_retry_s": "0.05,0.05,0.05", **own, **given})  # type: ignore[arg-type]
    poster = Poster(settings.hook_rules, resolve, tls)
    async with serving(Hooks(settings, batches, Manifests(storage, batches), poster)):
        yield


async def webhook(batches: Batches, name: str) -> dict[str, object]:
    found = await batches.find(name)
    assert found is not None
    return dict(found.shown().get("webhook", {}))


async def settled(batches: Batches, name: str, status: str, within_s: float = 30) -> dict[str, object]:
    give_up_at_s = time.monotonic() + within_s
    while (shown := await webhook(batches, name)).get("status") != status:
        assert time.monotonic() < give_up_at_s, shown
        await asyncio.sleep(0.01)
    return shown


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
async def test_every_end_is_told_once_and_openais_sdk_takes_it(
    batches: Batches, storage: Storage, receiver: Receiver, status: str
) -> None:
    name = await ended(batches, "batch_1", status)
    async with telling(batches, storage, f"{receiver.url}/hook?a=b"):
        shown = await settled(batches, name, "delivered")
        found = await batches.find(name)
        assert found is not None
        assert shown["attempts"] == 1
        assert shown["last_status"] == 200
        assert shown["delivered_at"] == shown["last_attempt_at"] is not None
        assert shown["failed_at"] is None
        assert (await batches.scripts.notify(10, lease_ms=1)).waiting == 0
    (told,) = receiver.told
    assert told.path == "/hook?a=b"
    assert told.headers["content-type"] == "application/json"
    event = openai.OpenAI(api_key="none").webhooks.unwrap(told.body, told.headers, secret=SECRET)
    assert event.type == f"batch.{status}"
    assert event.id == told.headers["webhook-id"]
    assert event.id.startswith("evt_")
    assert event.data.id == name
    assert event.created_at == found.number(f"{status}_at_ms") // 1000
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai.OpenAI(api_key="none").webhooks.unwrap(told.body, told.headers, secret=OTHER_SECRET)


async def test_a_receiver_that_fails_twice_is_told_three_times_under_one_id(
    batches: Batches, storage: Storage, receiver: Receiver
) -> None:
    receiver.statuses["/"] = [500, 302]
    receiver.location = f"{receiver.url}/elsewhere"
    name = await ended(batches, "batch_1")
    async with telling(batches, storage, receiver.url):
        shown = await settled(batches, name, "delivered")
    assert shown["attempts"] == 3
    assert len({told.headers["webhook-id"] for told in receiver.told}) == 1
    assert len({told.body for told in receiver.told}) == 1
    assert len(receiver.told) == len(receiver.at("/")) == 3, "no redirect is followed"


async def test_a_receiver_that_is_away_for_a_while_is_told_when_it_is_back(batches: Batches, storage: Storage) -> None:
    with receiving() as gone:
        port = gone.port
    name = await ended(batches, "batch_1")
    async with telling(batches, storage, gone.url, webhook_retry_s=",".join(["0.05"] * 100)):
        while not (shown := await webhook(batches, name)):
            await asyncio.sleep(0.01)
        assert (shown["status"], shown["last_status"]) == ("pending", None)
        with receiving(port) as back:
            await settled(batches, name, "delivered")
            assert len(back.told) == 1


async def test_an_end_that_nobody_takes_is_given_up_and_says_so(
    batches: Batches, storage: Storage, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses["/"] = [500] * 9
    before = child(WEBHOOKS, "given_up")._value.get()
    name = await ended(batches, "batch_1")
    async with telling(batches, storage, receiver.url):
        shown = await settled(batches, name, "failed")
        assert (shown["attempts"], shown["last_status"], shown["delivered_at"]) == (4, 500, None)
        assert shown["failed_at"] is not None
        await eventually(lambda: WEBHOOKS_PENDING._value.get() == 0, "nothing pending")
    assert len(receiver.told) == 4
    assert child(WEBHOOKS, "given_up")._value.get() == before + 1
    assert any("batch_1" in line and "given_up" in line for line in caplog.messages)


async def test_410_ends_it_at_once(batches: Batches, storage: Storage, receiver: Receiver) -> None:
    receiver.statuses["/"] = [410]
    name = await ended(batches, "batch_1")
    async with telling(batches, storage, receiver.url):
        shown = await settled(batches, name, "failed")
    assert (shown["attempts"], shown["last_status"]) == (1, 410)
    assert len(receiver.told) == 1


async def test_a_receiver_that_says_nothing_is_left_and_told_again(
    batches: Batches, storage: Storage, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch.posting, "TIMEOUT_S", 0.2)
    receiver.hold.set()
    name = await ended(batches, "batch_1")
    async with telling(batches, storage, receiver.url):
        await eventually(lambda: len(receiver.told) == 2, "the second attempt")
        receiver.hold.clear()
        assert (await settled(batches, name, "delivered"))["attempts"] in {2, 3}


async def test_two_processes_tell_each_end_once(batches: Batches, storage: Storage, receiver: Receiver) -> None:
    names = [await ended(batches, f"batch_{number}") for number in range(40)]
    async with telling(batches, storage, receiver.url), telling(batches, storage, receiver.url):
        for name in names:
            await settled(batches, name, "delivered")
    assert len(receiver.told) == 40
    assert len({told.headers["webhook-id"] for told in receiver.told}) == 40


async def test_where_nobody_is_to_be_told_nothing_waits(batches: Batches, storage: Storage) -> None:
    name = await ended(batches, "batch_1")
    async with telling(batches, storage):
        give_up_at_s = time.monotonic() + 10
        while not await batches._call("GET", batches.keys.batch_hooks_read):
            assert time.monotonic() < give_up_at_s
            await asyncio.sleep(0.01)
        while (await batches.scripts.notify(0, lease_ms=1)).waiting:
            assert time.monotonic() < give_up_at_s
            await asyncio.sleep(0.01)
    assert await webhook(batches, name) == {}


# ---- a batch's own


async def test_a_batchs_own_receiver_is_told_instead_with_its_own_secret_which_is_forgotten_then(
    batches: Batches, storage: Storage, receiver: Receiver
) -> None:
    name = await ended(batches, "batch_1", url=f"{receiver.url}/own")
    assert await batches.secret(name) == OTHER_SECRET
    hosts = f"127.0.0.1:{receiver.port}"
    async with telling(batches, storage, f"{receiver.url}/operator", webhook_hosts=hosts, **LOOPBACK):
        shown = await settled(batches, name, "delivered")
    (told,) = receiver.told
    assert told.path == "/own"
    event = openai.OpenAI(api_key="none").webhooks.unwrap(told.body, told.headers, secret=OTHER_SECRET)
    assert event.data.id == name
    assert await batches.secret(name) == ""
    assert OTHER_SECRET not in str(shown)
    kept = b"".join([await storage.read(stored.name) async for stored in storage.list("manifests")])
    assert b"delivered" in kept, "an end that was told is known after Redis has lost it"
    assert OTHER_SECRET.encode() not in kept


async def test_no_address_is_connected_to_that_is_not_public_or_opened(
    batches: Batches, storage: Storage, receiver: Receiver
) -> None:
    async def inside(host: str, port: int) -> list[str]:
        del host, port
        return ["127.0.0.1"]

    name = await ended(batches, "batch_1", url=f"http://{NAME}:{receiver.port}/")
    hosts = f"{NAME}:{receiver.port}"
    async with telling(batches, storage, resolve=inside, webhook_hosts=hosts, webhook_http=True):
        shown = await settled(batches, name, "failed")
    assert (shown["attempts"], shown["last_status"]) == (4, None)
    assert receiver.told == []
    name = await ended(batches, "batch_2", url=f"http://{NAME}:{receiver.port}/")
    async with telling(batches, storage, resolve=inside, webhook_hosts=hosts, **LOOPBACK):
        await settled(batches, name, "delivered")
    assert len(receiver.told) == 1, "and the same is told where the network is opened"


async def test_https_keeps_the_name_and_wants_a_certificate_of_it(
    batches: Batches, storage: Storage, tmp_path: Path
) -> None:
    async def at_home(host: str, port: int) -> list[str]:
        del host, port
        return ["127.0.0.1"]

    cert, key = certificate(tmp_path, NAME)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    with receiving(tls=own) as receiver:
        given = {"webhook_hosts": f"*.example.com:{receiver.port}", "webhook_networks": "127.0.0.0/8"}
        name = await ended(batches, "batch_1", url=f"https://{NAME}:{receiver.port}/")
        other = await ended(batches, "batch_2", url=f"https://other.example.com:{receiver.port}/")
        async with telling(batches, storage, "", at_home, trusting, **given):
            await settled(batches, name, "delivered")
            await settled(batches, other, "failed")
        (told,) = receiver.told
        assert told.headers["host"] == f"{NAME}:{receiver.port}"
        name = await ended(batches, "batch_3", url=f"https://{NAME}:{receiver.port}/")
        async with telling(batches, storage, "", at_home, **given):
            await settled(batches, name, "failed")
        assert len(receiver.told) == 1, "nobody here trusts this certificate"


@pytest.mark.parametrize("given", [{}, {"webhook_hosts": "any", **LOOPBACK}, {"webhook_hosts": "127.0.0.1:{port}"}])
async def test_what_the_operator_does_not_allow_is_given_up_at_once(
    batches: Batches, storage: Storage, receiver: Receiver, given: dict[str, object]
) -> None:
    rules = {name: str(value).format(port=receiver.port) for name, value in given.items()}
    name = await ended(batches, "batch_1", url=receiver.url)
    async with telling(batches, storage, f"{receiver.url}/operator", **rules):
        shown = await settled(batches, name, "failed")
    assert receiver.told == []
    assert (shown["attempts"], shown["last_attempt_at"], shown["delivered_at"]) == (0, None, None)
    assert shown["failed_at"] is not None
    assert await batches.secret(name) == ""


async def test_a_batch_that_runs_again_is_not_told_before_it_has_ended(
    batches: Batches, storage: Storage, receiver: Receiver, client: redis.asyncio.Redis
) -> None:
    own = batches.scripts
    await own.create("batch_1", "t1", FACTS, window_ms=3_600_000)
    await client.zadd(batches.keys.batch_hooks, {"batch_1": 0})
    async with telling(batches, storage, receiver.url):
        give_up_at_s = time.monotonic() + 30
        while await client.zcard(batches.keys.batch_hooks):
            assert time.monotonic() < give_up_at_s
            await asyncio.sleep(0.02)
        assert receiver.told == []
        await own.take("batch_1", "d1")
        await own.end("batch_1", "d1", "cancelled", {})
        await settled(batches, "batch_1", "delivered")
    assert len(receiver.told) == 1


async def test_one_tenants_slow_receiver_does_not_hold_up_the_others(
    batches: Batches, storage: Storage, receiver: Receiver
) -> None:
    receiver.hold.set()
    for number in range(70):
        await ended(batches, f"batch_slow_{number}", tenant="slow", url=f"{receiver.url}/slow")
    with receiving() as other:
        hosts = f"127.0.0.1:{receiver.port},127.0.0.1:{other.port}"
        async with telling(batches, storage, webhook_hosts=hosts, **LOOPBACK):
            await eventually(lambda: len(receiver.told) >= 8, "what the slow one may hold")
            name = await ended(batches, "batch_quick", tenant="quick", url=other.url)
            await settled(batches, name, "delivered", within_s=TIMEOUT_S - 2)
            assert len(receiver.told) == 8
            receiver.hold.clear()
            for number in range(70):
                await settled(batches, f"batch_slow_{number}", "delivered")
    assert len(receiver.told) == 70


# ---- losses


async def test_what_was_handed_out_and_not_settled_comes_again(batches: Batches, client: redis.asyncio.Redis) -> None:
    own, name = batches.scripts, await ended(batches, "batch_1")
    due = await own.notify(10, lease_ms=30_000)
    assert (due.waiting, due.batches) == (1, [name])
    assert (await own.notify(10, lease_ms=30_000)).batches == []
    await client.zadd(batches.keys.batch_hooks, {name: 0})  # the time of whoever had it is over
    assert (await own.notify(10, lease_ms=30_000)).batches == [name]


async def test_what_is_settled_twice_or_by_two_counts_once(batches: Batches) -> None:
    own, name = batches.scripts, await ended(batches, "batch_1")
    await own.notify(10, lease_ms=LEASE_MS)
    assert await own.notified(name, 0, "again", after_ms=60_000, status="500") == "OK"
    assert await own.notified(name, 0, "again", after_ms=60_000, status="500") == "STALE"
    assert (await webhook(batches, name))["attempts"] == 1
    assert await own.notified(name, 0, "failed") == "STALE"
    assert await own.notified(name, 0, "delivered", status="200") == "OK", "a receiver that took it has taken it"
    assert await own.notified(name, 0, "delivered", status="200") == "ENDED"
    assert await own.notified(name, 1, "again", after_ms=0, status="500") == "ENDED"
    shown = await webhook(batches, name)
    assert (shown["status"], shown["attempts"], shown["last_status"]) == ("delivered", 1, 200)
    assert (await own.notify(10, lease_ms=1)).waiting == 0


async def test_an_end_that_redis_lost_untold_is_told_and_one_that_was_told_is_not(
    batches: Batches, storage: Storage, receiver: Receiver, client: redis.asyncio.Redis, prefix: str
) -> None:
    manifests = Manifests(storage, batches)
    told, untold = await ended(batches, "batch_told"), await ended(batches, "batch_untold")
    old = await ended(batches, "batch_old")
    assert await batches.scripts.notified(told, 0, "delivered", status="200") == "OK"
    keys = GlobalKeys(prefix)
    moment_ms = await batches.now_ms() - TOLD_WITHIN_MS - 1
    await client.hset(keys.batch(old), "completed_at_ms", str(moment_ms))  # type: ignore[misc]
    for name in (told, untold, old):
        await manifests.write(name)
    await client.delete(*[key async for key in client.scan_iter(match=f"{prefix}:*")])
    assert await manifests.restore_lost() == 3
    async with telling(batches, storage, receiver.url):
        await settled(batches, untold, "delivered")
    assert len(receiver.told) == len(receiver.about(untold)) == 1


async def test_an_own_secret_that_redis_lost_is_no_reason_to_sign_with_another(
    batches: Batches, storage: Storage, receiver: Receiver, client: redis.asyncio.Redis
) -> None:
    name = await ended(batches, "batch_1", url=receiver.url)
    await client.delete(batches.keys.batch_secret(name))
    hosts = f"127.0.0.1:{receiver.port}"
    async with telling(batches, storage, f"{receiver.url}/operator", webhook_hosts=hosts, **LOOPBACK):
        await settled(batches, name, "failed")
    assert receiver.told == []


async def test_a_secret_is_there_as_long_as_its_batch_runs(batches: Batches) -> None:
    own = batches.scripts
    await own.create("batch_1", "t1", FACTS | {"webhook_url": "https://x"}, window_ms=1, secret=OTHER_SECRET)
    assert await own.notified("batch_1", 0, "none") == "GONE"
    assert await batches.secret("batch_1") == OTHER_SECRET
    assert await own.notified("batch_2", 0, "none") == "GONE"


def test_a_lease_outlives_an_attempt() -> None:
    assert LEASE_MS > TIMEOUT_S * 1000

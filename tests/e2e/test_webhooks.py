"""Webhooks as receivers meet them: processes that are killed, servers that restart, secrets that nobody sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.batching import CHAT, chat_row, create, jsonl, names, poll, upload
from tests.support.receivers import OTHER_SECRET, SECRET, Receiver, receiving
from tests.support.stack import Stack, eventually, get, running_stack


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture(scope="module")
def stack(receiver: Receiver) -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--", "--ttft-ms", "1", "--itl-ms", "1", "--slots", "16")
        started.api(*rules(receiver))
        started.batch(*rules(receiver), *operator(receiver), env={"PENSTOCK_WEBHOOK_SECRET": SECRET})
        yield started


@pytest.fixture(autouse=True)
def emptied(receiver: Receiver) -> None:
    receiver.told.clear()


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as client:
        yield client


def rules(receiver: Receiver) -> list[str]:
    hosts = f"127.0.0.1:{receiver.port},*.example.com,10.0.0.1,127.0.0.1"
    return ["--webhook-hosts", hosts, "--webhook-networks", "127.0.0.0/8", "--webhook-http", "--log-level", "DEBUG"]


def operator(receiver: Receiver, retry_s: str = "0.1,0.1,0.1") -> list[str]:
    return ["--webhook-url", f"{receiver.url}/operator", "--webhook-retry-s", retry_s]


def is_told(found: dict[str, Any]) -> bool:
    return bool(found.get("webhook", {}).get("status") == "delivered")


async def begun(stack: Stack, http: httpx.AsyncClient, **extra: Any) -> str:
    data = jsonl(chat_row(name) for name in names(3))
    return str((await create(http, await upload(stack, data), **extra))["id"])


async def test_the_end_of_a_batch_is_told_to_the_operator(
    stack: Stack, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    batch = await begun(stack, http)
    shown = await poll(http, batch, is_told)
    assert shown["status"] == "completed"
    assert shown["webhook"]["attempts"] == 1
    (told,) = receiver.about(batch)
    assert told.path == "/operator"
    sdk = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    event = sdk.webhooks.unwrap(told.body, told.headers)
    assert isinstance(event, openai.types.webhooks.BatchCompletedWebhookEvent)
    assert event.data.id == batch
    with pytest.raises(openai.InvalidWebhookSignatureError):
        sdk.webhooks.unwrap(told.body, told.headers, secret=OTHER_SECRET)
    assert stack.batches[0].metric("penstock_webhook_attempts_total", outcome="delivered") >= 1
    await eventually(lambda: stack.batches[0].metric("penstock_webhooks_pending") == 0, 10, "nothing is left to tell")


async def test_a_batch_that_fails_is_told_as_failed(stack: Stack, http: httpx.AsyncClient, receiver: Receiver) -> None:
    batch = (await create(http, await upload(stack, b"nonsense\n")))["id"]
    await poll(http, batch, is_told)
    (told,) = receiver.about(batch)
    event = openai.OpenAI(api_key="none").webhooks.unwrap(told.body, told.headers, secret=SECRET)
    assert event.type == "batch.failed"


async def test_openais_sdk_names_a_receiver_for_one_batch_and_nobody_sees_its_secret(
    stack: Stack, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    sdk = openai.OpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0)
    file_id = await upload(stack, jsonl([chat_row("a")]))
    url = f"{receiver.url}/own/tokeninthepath"
    made = sdk.batches.create(
        input_file_id=file_id,
        endpoint=CHAT,
        completion_window="24h",
        extra_body={"webhook": {"url": url, "secret": OTHER_SECRET}},
    )
    assert made.to_dict()["webhook"] == {
        "status": "pending",
        "attempts": 0,
        "last_attempt_at": None,
        "last_status": None,
        "delivered_at": None,
        "failed_at": None,
    }
    shown = await poll(http, made.id, is_told)
    (told,) = receiver.about(made.id)
    assert told.path == "/own/tokeninthepath"
    assert sdk.webhooks.unwrap(told.body, told.headers, secret=OTHER_SECRET).type == "batch.completed"
    seen = [str(made.to_dict()), str(shown), (await http.get("/v1/batches?limit=100")).text]
    seen.append((await http.get(f"/v1/batches/{made.id}/events")).text)
    seen += [process.log.read_text() for process in stack.processes]
    seen += [get(f"http://127.0.0.1:{stack.batches[0].ops_port}/metrics")[1].decode()]
    for secret in (SECRET, OTHER_SECRET, SECRET[6:], OTHER_SECRET[6:], "tokeninthepath"):
        assert not any(secret in text for text in seen), secret
    stored = [path.read_bytes() for path in stack.storage.rglob("*") if path.is_file()]
    assert len(stored) > 3
    for secret in (SECRET, OTHER_SECRET):
        assert not any(secret.encode() in data for data in stored)


@pytest.mark.parametrize(
    ("webhook", "param", "said"),
    [
        ("https://a.example.com/", "webhook", "object"),
        ({"url": "https://a.example.com/", "secret": SECRET, "more": 1}, "webhook", "object"),
        ({"secret": SECRET}, "webhook.url", "Missing"),
        ({"url": "https://a.example.com/"}, "webhook.secret", "Missing"),
        ({"url": "https://a.example.com/", "secret": "whsec_short"}, "webhook.secret", "whsec_"),
        ({"url": "https://a.example.com/", "secret": 1}, "webhook.secret", "string"),
        ({"url": "https://example.org/", "secret": SECRET}, "webhook.url", "this host"),
        ({"url": "https://a.example.com:22/", "secret": SECRET}, "webhook.url", "this host"),
        ({"url": "http://169.254.169.254/latest/", "secret": SECRET}, "webhook.url", "this host"),
        ({"url": "http://2130706433/", "secret": SECRET}, "webhook.url", "this host"),
        ({"url": "file:///etc/passwd", "secret": SECRET}, "webhook.url", "https"),
        ({"url": "https://u:p@a.example.com/", "secret": SECRET}, "webhook.url", "password"),
    ],
)
async def test_a_receiver_that_may_not_be_is_a_400(
    http: httpx.AsyncClient, webhook: object, param: str, said: str
) -> None:
    body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h", "webhook": webhook}
    response = await http.post("/v1/batches", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert said in response.json()["error"]["message"]
    assert SECRET not in response.text


async def test_an_address_inside_is_not_connected_to_and_its_owner_is_told_nothing_about_it(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    batch = await begun(stack, http, webhook={"url": "http://10.0.0.1/", "secret": SECRET})
    shown = await poll(http, batch, lambda found: found["webhook"]["status"] == "failed")
    assert shown["status"] == "completed", "the batch does not care"
    assert shown["webhook"]["last_status"] is None
    assert shown["webhook"]["attempts"] == 4
    assert "10.0.0.1, which is not allowed" in stack.batches[0].log.read_text()


async def test_without_the_operators_word_no_batch_names_a_receiver(stack: Stack) -> None:
    closed = stack.api()
    async with httpx.AsyncClient(base_url=closed.url) as http:
        body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}
        body |= {"webhook": {"url": "https://a.example.com/", "secret": SECRET}}  # type: ignore[dict-item]
        response = await http.post("/v1/batches", json=body)
    assert response.status_code == 400
    assert "--webhook-hosts" in response.json()["error"]["message"]
    closed.stop()


async def test_the_same_key_with_another_secret_is_another_content(
    stack: Stack, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    file_id = await upload(stack, jsonl([chat_row("a")]))
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}

    async def made(secret: str) -> httpx.Response:
        webhook = {"url": receiver.url, "secret": secret}
        return await http.post("/v1/batches", json={**body, "webhook": webhook}, headers={"Idempotency-Key": "w1"})

    first, again, other = await made(SECRET), await made(SECRET), await made(OTHER_SECRET)
    assert first.json()["id"] == again.json()["id"]
    assert other.status_code == 422


async def test_a_process_that_is_killed_before_it_heard_the_answer_is_followed_by_one_that_tells_it_again(
    stack: Stack, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.hold.set()
    batch = await begun(stack, http)
    await eventually(lambda: receiver.about(batch), 30, "the first attempt")
    stack.batches[0].kill()
    receiver.hold.clear()
    stack.again(stack.batches[0])
    shown = await poll(http, batch, is_told)
    first, second = receiver.about(batch)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert shown["webhook"]["attempts"] == 1, "nobody has heard of the other one"


async def test_what_is_to_be_told_outlives_a_server_that_restarts_and_a_receiver_that_is_away() -> None:
    with receiving() as gone:
        port = gone.port
    with running_stack(aof=True) as stack:
        stack.worker("--", "--ttft-ms", "1", "--itl-ms", "1")
        stack.api()
        retry_s = ",".join(["0.2"] * 500)
        stack.batch(*operator(gone, retry_s), env={"PENSTOCK_WEBHOOK_SECRET": SECRET})
        async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as http:
            batch = await begun(stack, http)
            await poll(http, batch, lambda found: found.get("webhook", {}).get("attempts", 0) > 1)
            stack.redis.kill()
            stack.start_redis()
            with receiving(port) as back:
                shown = await poll(http, batch, is_told)
                assert len(back.about(batch)) == 1
            assert shown["webhook"]["attempts"] > 2


async def test_an_end_that_redis_lost_before_it_was_told_is_told(stack: Stack, receiver: Receiver) -> None:
    batch_process = stack.batches[0]
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as http:
        receiver.statuses["/operator"] = [503] * 3
        batch_process.stop()
        slow = stack.batch(*operator(receiver, "3600"), env={"PENSTOCK_WEBHOOK_SECRET": SECRET})
        batch = await begun(stack, http)
        await poll(http, batch, lambda found: found.get("webhook", {}).get("attempts") == 1)
        receiver.statuses.clear()
        await eventually(lambda: b'"completed"' in manifest(stack, batch), 10, "the manifest of the end")
        slow.kill()
        stack.redis.kill()
        stack.start_redis()
        stack.batch(*operator(receiver), env={"PENSTOCK_WEBHOOK_SECRET": SECRET})
        shown = await poll(http, batch, is_told)
        assert shown["status"] == "completed"
        assert len({told.headers["webhook-id"] for told in receiver.about(batch)}) == 1


def manifest(stack: Stack, batch: str) -> bytes:
    return next(stack.storage.glob(f"manifests/{batch}.json")).read_bytes()

"""Batches as clients meet them: OpenAI's SDK unmodified, every fault with its line, counts, pages, partial results."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import redis

from tests.support.batching import (
    CHAT,
    chat_row,
    check_once,
    content,
    create,
    jsonl,
    names,
    poll,
    upload,
)
from tests.support.stack import Stack, running_stack

KEYS = "first,second"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--", "--ttft-ms", "2", "--itl-ms", "1", "--slots", "32", "--adapters", "sim-b")
        started.api()
        started.batch("--batch-cancel-grace-s", "1")
        yield started


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.apis[0].url, timeout=30) as client:
        yield client


@pytest.fixture
def sdk(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0)


async def run(stack: Stack, http: httpx.AsyncClient, rows: list[Any], endpoint: str = CHAT) -> dict[str, Any]:
    batch = await create(http, await upload(stack, jsonl(rows)), endpoint)
    return await poll(http, batch["id"])


async def faults(stack: Stack, http: httpx.AsyncClient, rows: list[Any]) -> list[dict[str, Any]]:
    ended = await run(stack, http, rows)
    assert ended["status"] == "failed", ended
    assert ended["failed_at"] is not None
    assert ended["output_file_id"] is None
    assert ended["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert ended["errors"]["object"] == "list"
    return list(ended["errors"]["data"])


# ---- the SDK


async def test_the_sdk_uploads_creates_polls_lists_and_downloads_and_every_row_comes_out_once(
    http: httpx.AsyncClient, sdk: openai.OpenAI
) -> None:
    rows = jsonl(chat_row(name, tokens=3) for name in names(40))
    file = sdk.files.create(file=("rows.jsonl", rows), purpose="batch")
    made = sdk.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"for": "the test"}
    )
    assert made.status == "validating"
    assert made.metadata == {"for": "the test"}
    await poll(http, made.id)
    batch = sdk.batches.retrieve(made.id)
    assert batch.status == "completed"
    assert batch.model == "sim"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 40, "completed": 40, "failed": 0}
    assert batch.output_file_id is not None
    lines = [json.loads(line) for line in sdk.files.content(batch.output_file_id).text.splitlines()]
    check_once(lines, names(40))
    kept = sdk.files.retrieve(batch.output_file_id)
    assert (kept.purpose, kept.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert kept.expires_at is not None
    assert abs(kept.expires_at - kept.created_at - 2_592_000) < 60
    assert batch.error_file_id is None
    assert batch.usage is not None
    assert batch.usage.output_tokens == 120 == sum(x["response"]["body"]["usage"]["completion_tokens"] for x in lines)
    assert batch.usage.input_tokens == sum(x["response"]["body"]["usage"]["prompt_tokens"] for x in lines)
    first = lines[0]
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert first["response"]["request_id"] in first["response"]["body"]["id"]
    assert first["id"].startswith("batch_req_")
    assert batch.in_progress_at is not None
    assert batch.completed_at is not None
    assert batch.created_at <= batch.in_progress_at <= batch.completed_at
    assert made.id in [found.id for found in sdk.batches.list(limit=100)]


async def test_the_sdks_pages_are_stable_while_new_batches_come(
    stack: Stack, http: httpx.AsyncClient, sdk: openai.OpenAI
) -> None:
    file_id = await upload(stack, jsonl([chat_row("a")]))
    mine = [(await create(http, file_id))["id"] for _ in range(5)]
    page = sdk.batches.list(limit=2)
    seen = [found.id for found in page.data]
    mine.append((await create(http, file_id))["id"])
    while page.has_next_page():
        page = page.get_next_page()
        seen += [found.id for found in page.data]
    assert len(seen) == len(set(seen))
    assert [found for found in seen if found in mine] == mine[4::-1]


# ---- what a batch may be


@pytest.mark.parametrize(
    ("changes", "code", "param", "said"),
    [
        ({"endpoint": "/v1/audio"}, "invalid_value", "endpoint", "Supported values"),
        ({"endpoint": None}, "missing_required_parameter", "endpoint", "endpoint"),
        ({"input_file_id": None}, "missing_required_parameter", "input_file_id", "input_file_id"),
        ({"input_file_id": "f" * 65}, "invalid_value", "input_file_id", "ids of files"),
        ({"completion_window": "8d"}, "invalid_value", "completion_window", "completion_window"),
        ({"completion_window": "0h"}, "invalid_value", "completion_window", "completion_window"),
        ({"completion_window": 24}, "invalid_type", "completion_window", "completion_window"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a", "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "invalid_value", "metadata.a", "512"),
        ({"metadata": {f"k{n}": "" for n in range(17)}}, "invalid_value", "metadata", "16"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "invalid_value", None, "created_at"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "invalid_value", None, "3600"),
        ({"start_after": "soon"}, "invalid_value", "start_after", "Unix"),
        ({"start_window": {"from": "25:00", "to": "06:00"}}, "invalid_value", "start_window", "22:00"),
        (
            {"start_window": {"from": "22:00", "to": "06:00", "timezone": "Mars/Olympus"}},
            "invalid_value",
            "start_window",
            "time zone",
        ),
    ],
)
async def test_what_no_batch_may_ask_for_is_refused_at_once(
    http: httpx.AsyncClient, changes: dict[str, Any], code: str, param: str | None, said: str
) -> None:
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", **changes}
    response = await http.post("/v1/batches", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == code
    assert param is None or error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(("window", "seconds"), [("1h", 3_600), ("36h", 129_600), ("7d", 604_800)])
async def test_a_window_has_an_hour_to_seven_days(
    stack: Stack, http: httpx.AsyncClient, window: str, seconds: int
) -> None:
    batch = await create(http, await upload(stack, jsonl([chat_row("a")])), completion_window=window)
    assert batch["expires_at"] - batch["created_at"] == seconds
    assert batch["completion_window"] == window


async def test_no_new_batch_is_made_while_redis_has_no_room(stack: Stack, http: httpx.AsyncClient) -> None:
    async def becomes(status: int, said: str) -> None:
        body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
        give_up_at_s = time.monotonic() + 20
        while (answer := await http.post("/v1/batches", json=body)).status_code != status or said not in answer.text:
            assert time.monotonic() < give_up_at_s, answer.text
            await asyncio.sleep(0.1)  # the replica looks once a second

    async def keyed() -> str:
        body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
        answer = await http.post("/v1/batches", json=body, headers={"Idempotency-Key": "before"})
        return str(answer.json()["id"])

    made = await keyed()
    with redis.Redis(port=stack.redis_port) as server:
        server.config_set("maxmemory", int(int(server.info("memory")["used_memory"]) / 0.95))
        try:
            await becomes(503, "memory")
            assert await keyed() == made, "who has missed the answer is told the batch that is there"
        finally:
            server.config_set("maxmemory", 0)
    await becomes(200, "")


async def test_a_key_makes_one_batch(http: httpx.AsyncClient) -> None:
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    made = [await http.post("/v1/batches", json=body, headers={"Idempotency-Key": "k1"}) for _ in range(2)]
    assert made[0].json()["id"] == made[1].json()["id"]
    other = await http.post("/v1/batches", json={**body, "completion_window": "2d"}, headers={"Idempotency-Key": "k1"})
    assert other.status_code == 422


async def test_unknown_batches_are_not_found(http: httpx.AsyncClient) -> None:
    for response in (
        await http.get("/v1/batches/batch_x"),
        await http.post("/v1/batches/batch_x/cancel"),
        await http.get("/v1/batches/batch_x/results"),
        await http.get("/v1/batches/batch_x/events"),
    ):
        assert response.status_code == 404
        assert "No batch found" in response.json()["error"]["message"]


# ---- validation


async def test_a_batch_without_its_file_fails(http: httpx.AsyncClient) -> None:
    ended = await poll(http, (await create(http, "file-000000000000000000000000"))["id"])
    assert ended["status"] == "failed"
    (fault,) = ended["errors"]["data"]
    assert (fault["code"], fault["param"], fault["line"]) == ("invalid_request", "file_id", None)
    assert fault["message"].startswith("Cannot find file")


def without(name: str) -> dict[str, Any]:
    row = chat_row("x")
    del row[name]
    return row


def with_body(**changes: Any) -> dict[str, Any]:
    body = {name: value for name, value in {**chat_row("x")["body"], **changes}.items() if value is not None}
    return {**chat_row("x"), "body": body}


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        ("{not json", "invalid_json_line", None),
        ("[1]", "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        ({**chat_row("x"), "custom_id": 7}, "invalid_type", "custom_id"),
        ({**chat_row("x"), "method": "GET"}, "invalid_method", "method"),
        ({**chat_row("x"), "url": "/v1/completions"}, "invalid_url", "url"),
        ({**chat_row("x"), "body": "hello"}, "invalid_type", "body"),
        (with_body(stream=True), "streaming_unsupported", "body.stream"),
        (with_body(model="nobody"), "model_not_found", "body.model"),
        (with_body(model=None), "invalid_request", "body.model"),
        (with_body(messages=None), "invalid_request", "body.messages"),
        (with_body(n=1000), "limit_exceeded", "body.n"),
        (with_body(model="sim-b"), "mismatched_model", "body.model"),
        (chat_row("a"), "duplicate_custom_id", "custom_id"),
    ],
)
async def test_a_fault_is_told_with_its_line_and_nothing_is_run(
    stack: Stack, http: httpx.AsyncClient, row: Any, code: str, param: str | None
) -> None:
    found = await faults(stack, http, [chat_row("a"), row, "", chat_row("b")])
    assert [(fault["code"], fault["param"], fault["line"]) for fault in found] == [(code, param, 2)]


async def test_an_empty_file_fails(stack: Stack, http: httpx.AsyncClient) -> None:
    (fault,) = await faults(stack, http, ["", "  "])
    assert fault["code"] == "empty_file"


async def test_a_thousand_faults_are_all_told_and_nothing_is_run(stack: Stack, http: httpx.AsyncClient) -> None:
    for batch in (await http.get("/v1/batches?limit=100")).json()["data"]:
        await poll(http, batch["id"])
    before = stack.workers[0].metric("penstock_claims_total")
    rows: list[Any] = [chat_row(f"good-{n}") if n % 2 else "{" for n in range(2_000)]
    found = await faults(stack, http, rows)
    assert [fault["line"] for fault in found] == list(range(1, 2_001, 2))
    assert {fault["code"] for fault in found} == {"invalid_json_line"}
    assert stack.workers[0].metric("penstock_claims_total") == before


# ---- what rows may ask for


async def test_rows_of_every_endpoint_are_answered(stack: Stack, http: httpx.AsyncClient) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "sim", "prompt": "Once", "max_tokens": 3},
        "/v1/embeddings": {"model": "sim", "input": ["one", "two"]},
        "/v1/responses": {"model": "sim", "input": "Say it.", "max_output_tokens": 4},
    }
    for endpoint, body in bodies.items():
        rows = [{"custom_id": f"r{n}", "method": "POST", "url": endpoint, "body": body} for n in range(3)]
        ended = await run(stack, http, rows, endpoint)
        assert ended["request_counts"] == {"total": 3, "completed": 3, "failed": 0}, endpoint
        lines = await content(stack, ended["output_file_id"])
        check_once(lines, [f"r{n}" for n in range(3)])
        said = lines[0]["response"]["body"]
        if endpoint == "/v1/responses":
            assert (said["object"], said["status"], said["store"]) == ("response", "incomplete", False)
            assert said["id"].removeprefix("resp_") == lines[0]["response"]["request_id"].removeprefix("req_")
            assert ended["usage"]["output_tokens"] == 12
        elif endpoint == "/v1/embeddings":
            assert [item["index"] for item in said["data"]] == [0, 1]
            assert ended["usage"]["input_tokens"] == sum(
                line["response"]["body"]["usage"]["prompt_tokens"] for line in lines
            )
        else:
            assert said["choices"][0]["text"]


@pytest.mark.parametrize("field", [{"background": True}, {"previous_response_id": "resp_1"}, {"store": True}])
async def test_rows_keep_no_state(stack: Stack, http: httpx.AsyncClient, field: dict[str, Any]) -> None:
    body = {"model": "sim", "input": "x", **field}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    ended = await run(stack, http, [row], "/v1/responses")
    (fault,) = ended["errors"]["data"]
    assert (fault["code"], fault["param"], fault["line"]) == ("invalid_request", f"body.{next(iter(field))}", 1)


async def test_rows_that_the_engine_refuses_go_to_the_error_file(stack: Stack, http: httpx.AsyncClient) -> None:
    rows = [chat_row(name) for name in names(6)]
    rows[2]["body"]["max_tokens"] = rows[4]["body"]["max_tokens"] = 100_000_000
    ended = await run(stack, http, rows)
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 6, "completed": 4, "failed": 2}
    check_once(await content(stack, ended["output_file_id"]), ["row-0", "row-1", "row-3", "row-5"])
    errors = await content(stack, ended["error_file_id"])
    check_once(errors, ["row-2", "row-4"])
    line = errors[0]
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["message"] == line["error"]["message"]
    assert line["error"]["code"] == line["response"]["body"]["error"]["code"]


async def test_a_batch_of_which_every_row_failed_is_completed_with_only_an_error_file(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    ended = await run(stack, http, [chat_row("a", tokens=100_000_000)])
    assert ended["status"] == "completed"
    assert ended["output_file_id"] is None
    check_once(await content(stack, ended["error_file_id"]), ["a"])


async def test_rows_with_one_system_prompt_run_near_each_other(stack: Stack, http: httpx.AsyncClient) -> None:
    rows = []
    for index, name in enumerate(names(640)):
        row = chat_row(name)
        row["body"]["messages"].insert(0, {"role": "system", "content": f"prompt {index % 4}"})
        rows.append(row)
    ended = await run(stack, http, rows)
    lines = await content(stack, ended["output_file_id"])
    check_once(lines, names(640))
    kinds = [int(line["custom_id"].removeprefix("row-")) % 4 for line in lines]
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    assert changes < 160, "as they stand in the file, they change 639 times; those that run at once end in any order"
    assert sorted(range(4), key=kinds.index) == [0, 1, 2, 3]


# ---- while it runs


async def test_results_are_read_while_it_runs_each_row_once(stack: Stack, http: httpx.AsyncClient) -> None:
    batch = await create(http, await upload(stack, jsonl(chat_row(name, tokens=700) for name in names(128))))
    seen: list[dict[str, Any]] = []
    after, early = "", 0
    while True:
        page = (await http.get(f"/v1/batches/{batch['id']}/results", params={"after": after, "limit": 7})).json()
        seen += page["data"]
        if page["data"] and not early:
            early = (await http.get(f"/v1/batches/{batch['id']}")).json()["request_counts"]["completed"]
        after = page["next"]
        if page["status"] == "completed" and not page["has_more"]:
            break
    check_once(seen, names(128))
    assert 0 < early < 128
    ended = await poll(http, batch["id"])
    assert seen == await content(stack, ended["output_file_id"])
    assert (await http.get(f"/v1/batches/{batch['id']}/results?after=x")).status_code == 400


async def test_the_progress_of_a_batch_is_a_stream_that_ends_with_it(stack: Stack, http: httpx.AsyncClient) -> None:
    batch = await create(http, await upload(stack, jsonl(chat_row(name, tokens=400) for name in names(160))))
    events: list[tuple[str, dict[str, Any]]] = []
    kind = ""
    async with http.stream("GET", f"/v1/batches/{batch['id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            kind = line[7:] if line.startswith("event: ") else kind
            if line.startswith("data: "):
                events.append((kind, json.loads(line[6:])))
    assert [kind for kind, _ in events].count("done") == 1
    assert events[-1][0] == "done"
    assert events[-1][1]["request_counts"] == {"total": 160, "completed": 160, "failed": 0}
    counts = [event["request_counts"]["completed"] for _, event in events]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert any(event["progress"]["rows_per_s"] for _, event in events)


async def test_a_running_batch_is_cancelled_with_what_it_has(
    stack: Stack, http: httpx.AsyncClient, sdk: openai.OpenAI
) -> None:
    rows = [chat_row(name, tokens=30 if index < 40 else 4_000) for index, name in enumerate(names(200))]
    batch = await create(http, await upload(stack, jsonl(rows)))
    await poll(http, batch["id"], lambda found: found["request_counts"]["completed"] >= 20)
    assert sdk.batches.cancel(batch["id"]).status == "cancelling"
    ended = await poll(http, batch["id"])
    assert ended["status"] == "cancelled"
    assert ended["cancelling_at"] <= ended["cancelled_at"]
    lines = await content(stack, ended["output_file_id"])
    counts = ended["request_counts"]
    assert counts["total"] == 200
    assert len(lines) == counts["completed"] >= 20
    assert len({line["custom_id"] for line in lines}) == len(lines)
    assert counts["completed"] + counts["failed"] < 200
    assert sdk.batches.cancel(batch["id"]).status == "cancelled"


async def test_a_batch_that_has_ended_cannot_be_cancelled(
    stack: Stack, http: httpx.AsyncClient, sdk: openai.OpenAI
) -> None:
    ended = await run(stack, http, [chat_row("a")])
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        sdk.batches.cancel(ended["id"])


async def test_a_batch_waits_for_its_start(stack: Stack, http: httpx.AsyncClient) -> None:
    now = int((await poll(http, (await create(http, "file-x"))["id"]))["created_at"])
    file_id = await upload(stack, jsonl([chat_row("a")]))
    late = await create(http, file_id, start_after=now + 3_600)
    soon = await create(http, file_id, start_after=now + 4)
    hour = (now // 3_600) % 24
    window = {"from": f"{(hour + 2) % 24:02d}:00", "to": f"{(hour + 3) % 24:02d}:00", "timezone": "UTC"}
    night = await create(http, file_id, start_window=window)
    assert night["start_window"] == window
    ended = await poll(http, soon["id"])
    assert ended["status"] == "completed"
    assert ended["completed_at"] >= now + 4
    for waiting in (late, night):
        found = await poll(http, waiting["id"], lambda found: found["status"] == "in_progress")
        assert found["request_counts"]["completed"] == 0
        await http.post(f"/v1/batches/{waiting['id']}/cancel")
        assert (await poll(http, waiting["id"]))["status"] == "cancelled"


async def test_batches_that_only_wait_hold_no_place_that_others_need() -> None:
    with running_stack() as own:
        worker, api = own.worker("--", "--ttft-ms", "2", "--slots", "8"), own.api()
        process = own.batch("--batch-drivers", "1")
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
            file_id = await upload(own, jsonl([chat_row("a")]))
            late = await create(http, file_id, start_after=int(time.time()) + 3_600)
            assert (await poll(http, (await create(http, file_id))["id"]))["status"] == "completed"
            worker.kill()
            without = [await create(http, file_id) for _ in range(2)]
            for batch in without:  # nobody serves it, and all the same each one has its turn
                await poll(http, batch["id"], lambda found: found["status"] == "in_progress")
            await http.post(f"/v1/batches/{late['id']}/cancel")
            assert (await poll(http, late["id"]))["status"] == "cancelled"
            own.again(worker)
            for batch in without:
                assert (await poll(http, batch["id"]))["status"] == "completed"
        assert process.metric("penstock_batch_takeovers_total") == 0


async def test_the_batch_process_says_how_it_is(stack: Stack, http: httpx.AsyncClient) -> None:
    process = stack.batches[0]
    before = process.metric("penstock_batch_rows_committed_total", outcome="completed")
    await run(stack, http, [chat_row("a"), chat_row("b")])
    assert process.metric("penstock_batch_rows_committed_total", outcome="completed") == before + 2
    assert process.metric("penstock_batch_commits_total", outcome="ok") >= 1
    assert process.metric("penstock_batch_rows_in_flight") == 0

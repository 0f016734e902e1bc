"""Files over HTTP: OpenAI's SDK as it is, and what no SDK would send. On a folder and on S3."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import itertools
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.support.buckets import S3, running_s3
from tests.support.stack import Api, Stack, eventually, running_stack

MB = 1_000_000
Stored = Callable[[], list[str]]


@pytest.fixture(scope="module", params=["folder", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[S3 | None]:
    """Where the files are, unless they are in a folder."""
    with running_s3() if request.param == "s3" else contextlib.nullcontext() as found:
        yield found


@pytest.fixture(scope="module")
def stack(bucket: S3 | None) -> Iterator[Stack]:
    with running_stack() as started:
        env = {
            "GATEWAY_API_KEYS": "alpha,beta",
            "PENSTOCK_MAX_BATCH_FILE_BYTES": "20000000",
        }
        env |= {"PENSTOCK_STORAGE_URL": str(started.folder / "files"), "PENSTOCK_MAX_FILE_BYTES": "30000000"}
        env["PENSTOCK_TENANT_FILE_BYTES"] = "60000000"
        if bucket is not None:
            env |= {**bucket.env, "PENSTOCK_STORAGE_URL": bucket.url}
        for _ in range(2):
            started.api(ready=False, env=env)
        yield started


@pytest.fixture
def stored(stack: Stack, bucket: S3 | None) -> Stored:
    """Asks the storage itself: the names of what lies there, unfinished uploads included."""

    def names() -> list[str]:
        if bucket is not None:
            return [key.rpartition("/")[2] for key in bucket.objects()] + ["unfinished"] * bucket.uploads()
        return [path.name for path in (stack.folder / "files").rglob("*") if path.is_file()]

    return names


def sdk(api: Api, key: str = "alpha") -> OpenAI:
    return OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    made = sdk(stack.apis[0])
    with made:
        yield made
        for file in made.files.list():
            made.files.delete(file.id)


@pytest.fixture
async def raw(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": "Bearer alpha"}
    async with httpx.AsyncClient(base_url=stack.apis[0].url, headers=headers, timeout=30) as made:
        yield made


def test_the_sdk_uploads_lists_retrieves_reads_and_deletes_on_any_replica(
    stack: Stack, client: OpenAI, tmp_path: Path
) -> None:
    lines = b'{"custom_id": "1"}\n' * 1_000
    (tmp_path / "rows.jsonl").write_bytes(lines)
    before_s = int(time.time())
    from_path = client.files.create(file=tmp_path / "rows.jsonl", purpose="batch")
    from_bytes = client.files.create(file=b"some bytes", purpose="user_data")
    named = client.files.create(file=("name.txt", io.BytesIO(b"named")), purpose="evals")
    assert (from_path.filename, from_path.bytes, from_path.purpose) == ("rows.jsonl", len(lines), "batch")
    assert (from_path.object, from_path.status, named.filename) == ("file", "processed", "name.txt")
    assert before_s <= from_path.created_at <= time.time()
    assert abs((from_path.expires_at or 0) - from_path.created_at - 30 * 86_400) <= 5
    assert from_bytes.expires_at is None
    with sdk(stack.apis[1]) as other:
        assert [file.id for file in other.files.list()] == [named.id, from_bytes.id, from_path.id]
        assert [file.id for file in other.files.list(limit=1, order="asc")] == [from_path.id, from_bytes.id, named.id]
        assert [file.id for file in other.files.list(purpose="evals")] == [named.id]
        assert other.files.retrieve(from_path.id) == from_path
        assert other.files.content(from_path.id).content == lines
        with other.files.with_streaming_response.content(from_path.id) as streamed:
            streamed.stream_to_file(tmp_path / "back.jsonl")
        assert (tmp_path / "back.jsonl").read_bytes() == lines
        assert other.files.delete(from_bytes.id).deleted
        for gone in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                gone(from_bytes.id)
    assert len(list(client.files.list())) == 2


def test_a_file_expires_when_its_client_says(client: OpenAI) -> None:
    file = client.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3_600})
    assert abs((file.expires_at or 0) - file.created_at - 3_600) <= 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "chat"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        (
            {"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
        ),
        *(
            (
                {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": wrong},
                "expires_after[seconds]",
            )
            for wrong in ("3599", "2592001", "-1", "1e4", "", "9" * 30, "٣٦٠٠")
        ),
    ],
)
async def test_a_field_that_is_wrong_is_named(raw: httpx.AsyncClient, fields: dict[str, str], param: str) -> None:
    answer = await raw.post("/v1/files", files={"file": b"x"}, data=fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    if param == "purpose":
        assert "assistants, batch, fine-tune, vision, user_data, evals" in error["message"]


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    """A form of (Content-Disposition without its kind, content)."""
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), content)
        for head, content in parts
    )
    return body + b"--%s--\r\n" % boundary.encode()


FILE = ('name="file"; filename="f.jsonl"', b"line\r\n--a is not the end\r\n--\r\n-\r")
PURPOSE = ('name="purpose"', b"batch")


async def post(
    client: httpx.AsyncClient, body: Any, kind: str = "multipart/form-data; boundary=b", **headers: str
) -> httpx.Response:
    return await client.post("/v1/files", content=body, headers={"Content-Type": kind, **headers})


@pytest.mark.parametrize("parts", list(itertools.permutations([FILE, PURPOSE, ('name="unknown"', b"ignored")])))
@pytest.mark.parametrize("cut", [1, 7, 10_000])
async def test_fields_come_in_any_order_and_chunks_of_any_size(raw: httpx.AsyncClient, parts: Any, cut: int) -> None:
    body = form(*parts)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), cut):
            yield body[at : at + cut]

    answer = await post(raw, chunks())
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["filename"], file["purpose"], file["bytes"]) == ("f.jsonl", "batch", len(FILE[1]))
    assert (await raw.get(f"/v1/files/{file['id']}/content")).content == FILE[1]
    assert (await raw.delete(f"/v1/files/{file['id']}")).json() == {"id": file["id"], "object": "file", "deleted": True}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (form(FILE, PURPOSE), "multipart/form-data", 400),
        (form(FILE, PURPOSE), "multipart/form-data; boundary=", 400),
        (form(FILE, PURPOSE), f"multipart/form-data; boundary={'x' * 300}", 400),
        (form(FILE, PURPOSE), "multipart/form-data; boundary=other", 400),
        (form(FILE, PURPOSE), "application/json", 415),
        (b"{}", "text/plain", 415),
        (b"", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"no form at all", "multipart/form-data; boundary=b", 400),
        (form(PURPOSE), "multipart/form-data; boundary=b", 400),
        (form(FILE), "multipart/form-data; boundary=b", 400),
        (form(FILE, FILE, PURPOSE), "multipart/form-data; boundary=b", 400),
        (form(FILE, PURPOSE, PURPOSE), "multipart/form-data; boundary=b", 400),
        (form(FILE, PURPOSE, ('name="other"; filename="f"', b"x")), "multipart/form-data; boundary=b", 400),
        (form(('name="file"', b"a field"), PURPOSE), "multipart/form-data; boundary=b", 400),
        (form(('name="file"; filename=""', b"x"), PURPOSE), "multipart/form-data; boundary=b", 400),
        (form((f'name="file"; filename="{"n" * 600}"', b"x"), PURPOSE), "multipart/form-data; boundary=b", 400),
        (form(FILE, ('name="purpose"', b"b" * 5_000)), "multipart/form-data; boundary=b", 400),
        (form(FILE, ('name="purpose"', b"\xff\xfe")), "multipart/form-data; boundary=b", 400),
        (form(FILE, ("nameless", b"x")), "multipart/form-data; boundary=b", 400),
        (form(FILE, PURPOSE, *[('name="u"', b"")] * 40), "multipart/form-data; boundary=b", 400),
        (form(FILE, PURPOSE)[:-6], "multipart/form-data; boundary=b", 400),
        (form(FILE)[:60], "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disp\x00sition: x\r\n\r\n", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nX: " + b"y" * 100_000, "multipart/form-data; boundary=b", 400),
        (b"--b\r\n" + b"X: y\r\n" * 1_000, "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\nno head\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
    ],
)
async def test_what_is_no_form_of_ours_is_refused_and_leaves_nothing(
    raw: httpx.AsyncClient, body: bytes, kind: str, status: int
) -> None:
    answer = await post(raw, body, kind)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert (await raw.get("/v1/files")).json()["data"] == []


async def test_a_compressed_form_is_refused(raw: httpx.AsyncClient) -> None:
    assert (await post(raw, form(FILE, PURPOSE), **{"Content-Encoding": "gzip"})).status_code == 415


@pytest.mark.parametrize("purpose_first", [True, False])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_file_over_the_limit_of_its_purpose_is_refused(
    raw: httpx.AsyncClient,
    purpose_first: bool,  # noqa: FBT001
    declared: bool,  # noqa: FBT001
) -> None:
    async def refused(purpose: bytes, size: int) -> int:
        parts = [('name="purpose"', purpose), ('name="file"; filename="f"', bytes(size))]
        body = form(*(parts if purpose_first else parts[::-1]))

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(body), MB):
                yield body[at : at + MB]

        answer = await post(raw, body if declared else chunks())
        if answer.status_code == 200:
            await raw.delete(f"/v1/files/{answer.json()['id']}")
        else:
            assert answer.json()["error"]["code"] == "file_too_large"
        return answer.status_code

    assert await refused(b"batch", 20_000_000) == 200
    assert await refused(b"batch", 20_000_001) == 413
    assert await refused(b"evals", 20_000_001) == 200
    assert await refused(b"evals", 30_000_001) == 413
    assert (await raw.get("/v1/files")).json()["data"] == []


async def test_a_tenant_over_its_quota_is_refused_before_it_sends(
    stack: Stack, raw: httpx.AsyncClient, client: OpenAI
) -> None:
    for _ in range(3):
        client.files.create(file=bytes(20 * MB), purpose="evals")
    answer = await raw.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "file_quota_exceeded")
    with sdk(stack.apis[0], "beta") as other:
        assert other.files.delete(other.files.create(file=b"x", purpose="batch").id).deleted


def test_another_tenants_files_are_not_there(stack: Stack, client: OpenAI) -> None:
    file = client.files.create(file=b"secret", purpose="batch")
    with sdk(stack.apis[0], "beta") as other:
        assert list(other.files.list()) == []
        assert list(other.files.list(after=file.id)) == []
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                call(file.id)
            with pytest.raises(openai.NotFoundError) as never:
                call("file-" + "0" * 24)
            assert str(caught.value).replace(file.id, "") == str(never.value).replace("file-" + "0" * 24, "")
    with sdk(stack.apis[0], "gamma") as nobody, pytest.raises(openai.AuthenticationError):
        nobody.files.create(file=b"x", purpose="batch")
    assert client.files.content(file.id).content == b"secret"


@pytest.mark.parametrize(
    ("asked", "status", "content", "told"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=9-99", 206, b"9", "bytes 9-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=99999999999999999999-", 200, b"0123456789", None),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
async def test_ranges(
    raw: httpx.AsyncClient, client: OpenAI, asked: str, status: int, content: bytes | None, told: str | None
) -> None:
    file = client.files.create(file=b"0123456789", purpose="batch")
    answer = await raw.get(f"/v1/files/{file.id}/content", headers={"Range": asked})
    assert answer.status_code == status
    assert answer.headers.get("content-range") == told
    if content is None:
        assert answer.json()["error"]["code"] == "range_not_satisfiable"
    else:
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["accept-ranges"] == "bytes"


async def test_validators_of_a_download(raw: httpx.AsyncClient, client: OpenAI) -> None:
    file = client.files.create(file=b"0123456789", purpose="batch")
    url = f"/v1/files/{file.id}/content"
    head = await raw.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
    ranged = await raw.head(url, headers={"Range": "bytes=2-3"})
    assert (ranged.status_code, ranged.headers["content-length"]) == (200, "10"), "ranges are for GET"
    tag, modified = head.headers["etag"], head.headers["last-modified"]
    for validator in (tag, modified):
        part = await raw.get(url, headers={"Range": "bytes=2-3", "If-Range": validator})
        assert (part.status_code, part.content) == (206, b"23")
    for validator in ('"other"', "Thu, 01 Jan 1970 00:00:00 GMT"):
        whole = await raw.get(url, headers={"Range": "bytes=2-3", "If-Range": validator})
        assert (whole.status_code, whole.content) == (200, b"0123456789")
    same = await raw.get(url, headers={"If-None-Match": f'"x", {tag}'})
    assert (same.status_code, same.content) == (304, b"")
    empty = client.files.create(file=("e", b""), purpose="batch")
    assert (await raw.get(f"/v1/files/{empty.id}/content")).content == b""
    assert (await raw.get(f"/v1/files/{empty.id}/content", headers={"Range": "bytes=0-"})).status_code == 416


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", 'a"; filename="b', "naïve 名.jsonl", "..", "<script>.html", "a%0d%0ax: y"]
)
async def test_a_name_is_data_and_nothing_else(
    raw: httpx.AsyncClient, client: OpenAI, stored: Stored, name: str
) -> None:
    file = client.files.create(file=(name, b"x"), purpose="batch")
    shown = (await raw.get(f"/v1/files/{file.id}")).json()["filename"]
    assert shown == file.filename
    answer = await raw.get(f"/v1/files/{file.id}/content")
    told = answer.headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename=\"[A-Za-z0-9._ ()-]+\"; filename\*=UTF-8''[A-Za-z0-9._~%-]+", told)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    names = stored()
    assert names
    assert all(re.fullmatch(r"file-[0-9a-z]{24}(\.json)?", one) for one in names), names


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=10001", "limit=x", "order=up", "after=nonsense", "after=file-../../../x"]
)
async def test_a_list_says_what_it_does_not_understand(raw: httpx.AsyncClient, query: str) -> None:
    answer = await raw.get(f"/v1/files?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


async def test_pages_have_their_ends(raw: httpx.AsyncClient, client: OpenAI) -> None:
    assert (await raw.get("/v1/files")).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    ids = []
    for _ in range(3):
        ids.append(client.files.create(file=b"x", purpose="batch").id)
        await asyncio.sleep(0.002)
    page = (await raw.get("/v1/files?limit=2")).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    rest = (await raw.get(f"/v1/files?limit=2&after={ids[1]}")).json()
    assert (rest["first_id"], rest["last_id"], rest["has_more"]) == (ids[0], ids[0], False)


async def test_a_key_makes_one_file_of_many_uploads(stack: Stack, raw: httpx.AsyncClient, client: OpenAI) -> None:
    async def send(replica: int, data: bytes = b"x", purpose: str = "batch") -> httpx.Response:
        url = f"{stack.apis[replica].url}/v1/files"
        return await raw.post(
            url, files={"file": ("f", data)}, data={"purpose": purpose}, headers={"Idempotency-Key": "k-1"}
        )

    answers = await asyncio.gather(*(send(number % 2) for number in range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers["idempotency-status"] for answer in answers].count("created") == 1
    assert len(list(client.files.list())) == 1
    assert (await send(0, b"y")).status_code == 422
    assert (await send(0, purpose="evals")).status_code == 422
    client.files.delete(answers[0].json()["id"])
    assert (await send(1)).headers["idempotency-status"] == "created", "a file that is gone has set its key free"
    assert (await post(raw, form(FILE, PURPOSE), **{"Idempotency-Key": "two words"})).status_code == 400


async def test_an_upload_of_which_nothing_comes_is_given_up(stack: Stack) -> None:
    head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alpha\r\nContent-Length: 1000\r\n"
    # a replica of its own: for the other tests a second would be little on a machine that stalls
    impatient = stack.api(ready=False, env={**stack.apis[0].env, "PENSTOCK_UPLOAD_IDLE_S": "1"})
    with socket.create_connection(("127.0.0.1", impatient.port), 20) as connection:
        connection.sendall(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + form(FILE, PURPOSE)[:80])
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 408
        assert b"upload_timeout" in answer.read()


async def test_a_client_that_hangs_up_leaves_nothing(stack: Stack, raw: httpx.AsyncClient, stored: Stored) -> None:
    api = stack.apis[0]
    before = api.metric("penstock_file_uploads_total", outcome="broken_off")
    head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alpha\r\nContent-Length: 90000000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.port), 20) as connection:
        connection.sendall(head.replace(b"90000000", b"19000000") + form(FILE, PURPOSE)[:80] + bytes(12 * MB))
    await eventually(
        lambda: api.metric("penstock_file_uploads_total", outcome="broken_off") == before + 1, 30, "the broken upload"
    )
    assert (await raw.get("/v1/files")).json()["data"] == []
    # an abort that crosses a part on its way may leave an upload that the bucket's own rule ends: docs/files.md
    await eventually(lambda: not [name for name in stored() if name != "unfinished"], 30, "nothing of it is stored")
    assert api.metric("penstock_file_transfers_open") == 0


async def test_uploads_and_downloads_are_counted(stack: Stack, client: OpenAI) -> None:
    api = stack.apis[0]
    names = {"in": 0.0, "out": 0.0}
    for direction in names:
        names[direction] = api.metric("penstock_file_bytes_total", direction=direction)
    stored = api.metric("penstock_file_uploads_total", outcome="stored")
    file = client.files.create(file=bytes(1_234), purpose="batch")
    client.files.content(file.id)
    assert api.metric("penstock_file_uploads_total", outcome="stored") == stored + 1
    for direction, before in names.items():
        assert api.metric("penstock_file_bytes_total", direction=direction) == before + 1_234

"""Files when something breaks, and what uploads and downloads cost in memory."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.buckets import running_s3
from tests.support.stack import Api, Stack, eventually, running_stack

MB = 1 << 20
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
TAIL = b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n--b--\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started


def replica(stack: Stack, url: str, **env: str) -> Api:
    return stack.api(ready=False, env={"PENSTOCK_STORAGE_URL": url, **env})


def upload(api: Api, data: bytes = b"x") -> httpx.Response:
    return httpx.post(f"{api.url}/v1/files", files={"file": ("f", data)}, data={"purpose": "evals"}, timeout=90)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def listed(api: Api) -> list[object]:
    data: list[object] = httpx.get(f"{api.url}/v1/files", timeout=30).json()["data"]
    return data


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def peak_bytes(api: Api) -> int:
    """The most memory that a process has ever held."""
    lines = Path(f"/proc/{api.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_memory_does_not_grow_with_a_file(stack: Stack, kind: str) -> None:
    with contextlib.ExitStack() as held:
        env, url = {}, str(stack.folder / "files")
        if kind == "s3":
            bucket = held.enter_context(running_s3())
            env, url = bucket.env, bucket.url
        api = replica(stack, url, **env)
        upload(api, bytes(12 * MB))
        before = peak_bytes(api)
        block, blocks = bytes(range(256)) * 4_096, 150
        digest = hashlib.sha256()

        def whole() -> Iterator[bytes]:
            yield HEAD
            for _ in range(blocks):
                digest.update(block)
                yield block
            yield TAIL

        answer = httpx.post(f"{api.url}/v1/files", content=whole(), headers=FORM, timeout=90)
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == blocks * MB
        assert peak_bytes(api) - before < 40 * MB, "the upload"
        back = hashlib.sha256()
        with httpx.stream("GET", f"{api.url}/v1/files/{answer.json()['id']}/content", timeout=90) as download:
            assert download.headers["content-length"] == str(blocks * MB)
            for chunk in download.iter_raw():
                back.update(chunk)
        assert back.digest() == digest.digest()
        assert peak_bytes(api) - before < 40 * MB, "the download"


async def test_a_replica_that_is_killed_during_an_upload_leaves_no_file(stack: Stack) -> None:
    folder = stack.folder / "files"
    doomed, other = replica(stack, str(folder)), replica(stack, str(folder))
    connection = http.client.HTTPConnection("127.0.0.1", doomed.port, timeout=20)
    connection.putrequest("POST", "/v1/files")
    for name, value in {**FORM, "Content-Length": str(90 * MB)}.items():
        connection.putheader(name, value)
    connection.endheaders(HEAD + bytes(12 * MB))
    await eventually(lambda: any("#" in name for name in stored(folder)), 30, "the first part")
    doomed.kill()
    connection.close()
    assert listed(other) == []
    assert not [name for name in stored(folder) if "#" not in name]


async def test_a_slow_client_holds_up_nobody(stack: Stack) -> None:
    api = replica(stack, str(stack.folder / "files"), PENSTOCK_UPLOADS_AT_ONCE="2")
    slow = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
    slow.putrequest("POST", "/v1/files")
    for name, value in {**FORM, "Content-Length": str(MB)}.items():
        slow.putheader(name, value)
    slow.endheaders(HEAD)
    await eventually(lambda: api.metric("penstock_file_transfers_open", direction="in") == 1, 30, "the slow upload")
    assert upload(api).status_code == 200
    slow.close()


def test_a_folder_that_is_gone_is_503_and_comes_back(stack: Stack) -> None:
    folder = stack.folder / "files"
    api = replica(stack, str(folder))
    file = upload(api, b"some bytes").json()
    shutil.move(folder, stack.folder / "elsewhere")
    folder.write_text("in the way")
    assert code(upload(api)) == (503, "storage_unavailable")
    content = f"{api.url}/v1/files/{file['id']}/content"
    assert code(httpx.get(content)) == (503, "storage_unavailable")
    assert code(httpx.delete(f"{api.url}/v1/files/{file['id']}")) == (503, "storage_unavailable")
    assert len(listed(api)) == 1
    folder.unlink()
    shutil.move(stack.folder / "elsewhere", folder)
    assert httpx.get(content).content == b"some bytes"
    assert upload(api).status_code == 200


def test_a_bucket_that_is_gone_is_503(stack: Stack) -> None:
    with running_s3() as bucket:
        api = replica(stack, bucket.url, **bucket.env)
        file = upload(api, b"some bytes").json()
    answer = upload(api)
    assert code(answer) == (503, "storage_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in answer.text, "where the storage is, is nobody's business"
    assert code(httpx.get(f"{api.url}/v1/files/{file['id']}/content", timeout=60)) == (503, "storage_unavailable")


def test_without_redis_there_is_no_file(stack: Stack) -> None:
    folder = stack.folder / "files"
    api = replica(stack, str(folder))
    stack.redis.kill()
    assert code(upload(api)) == (503, "broker_unavailable")
    assert stored(folder) == []


def test_a_replica_without_storage_says_so(stack: Stack) -> None:
    api = stack.api(ready=False, env={"PENSTOCK_STORAGE_URL": ""})
    answer = upload(api)
    assert code(answer) == (501, "no_storage")
    assert "--storage-url" in answer.text
    for path in ("/v1/files", "/v1/files/file-x", "/v1/files/file-x/content"):
        assert code(httpx.get(api.url + path)) == (501, "no_storage")


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://"])
def test_a_replica_does_not_start_with_an_address_that_is_none(stack: Stack, url: str) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with 2.*--storage-url"):
        replica(stack, url)


def test_a_download_of_which_the_storage_has_not_all_does_not_look_whole(stack: Stack) -> None:
    api = replica(stack, str(stack.folder / "files"))
    file = upload(api, bytes(8 * MB)).json()
    (path,) = (stack.folder / "files").rglob(file["id"])
    with path.open("r+b") as opened:
        opened.truncate(MB)
    with httpx.stream("GET", f"{api.url}/v1/files/{file['id']}/content", timeout=30) as download:
        assert download.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            list(download.iter_raw())


async def test_a_client_that_leaves_a_download_ends_it(stack: Stack) -> None:
    api = replica(stack, str(stack.folder / "files"))
    file = upload(api, bytes(64 * MB)).json()
    with httpx.stream("GET", f"{api.url}/v1/files/{file['id']}/content", timeout=30) as download:
        chunks = download.iter_raw()
        next(chunks)
        assert api.metric("penstock_file_transfers_open", direction="out") == 1
    await eventually(lambda: api.metric("penstock_file_transfers_open", direction="out") == 0, 30, "the end of it")
    assert api.metric("penstock_file_bytes_total", direction="out") < 64 * MB


def test_uploads_wait_for_their_turn_and_all_come_in(stack: Stack) -> None:
    api = replica(stack, str(stack.folder / "files"), PENSTOCK_UPLOADS_AT_ONCE="1")
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(upload(api, bytes(MB)).status_code)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 5
    assert len(listed(api)) == 5

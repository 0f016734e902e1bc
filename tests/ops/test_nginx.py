"""The front door that compose ships, on the nginx of this machine: what passes, and what is never sent twice."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scripts.validate.nginx_config import place
from tests.support.client import Seen, stream_chat
from tests.support.load import Ask, ask
from tests.support.nginx import Upstream, nginx_before, nginx_binary, upstreams
from tests.support.polling import eventually
from tests.support.stack import Api, Stack, free_port, running_stack

pytestmark = pytest.mark.skipif(
    nginx_binary() is None, reason="nginx is not installed (Debian: apt install nginx-light)"
)

REPLICAS = 3
TOKENS = 60


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as made:
        for _ in range(REPLICAS):
            made.api(ready=False)
        made.worker("--", "--itl-ms", "20")
        yield made


@pytest.fixture
def door(stack: Stack, tmp_path: Path) -> Iterator[str]:
    with nginx_before(tmp_path, [api.port for api in stack.apis]) as port:
        yield f"http://127.0.0.1:{port}"


async def test_tokens_pass_one_by_one(door: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        seen = await stream_chat(client, door, TOKENS)
    seen.check(TOKENS)
    assert seen.whole
    together = [gap_s for gap_s in seen.gaps_s if gap_s < 0.002]
    assert len(together) < len(seen.gaps_s) / 2, "events came in lumps"
    assert seen.first_s - seen.began_s < (seen.ended_s - seen.began_s) / 2


async def test_requests_are_spread_over_the_replicas(stack: Stack, door: str) -> None:
    before = [answered(api) for api in stack.apis]
    await asyncio.gather(*(ask(Ask([door], 20)) for _ in range(12)))
    assert all(answered(api) > had for api, had in zip(stack.apis, before, strict=True))


def answered(api: Api) -> float:
    """Chat completions that this replica has answered."""
    return api.metric("penstock_http_requests_total", route="/v1/chat/completions")


async def test_a_client_goes_on_through_nginx_when_its_replica_is_killed(tmp_path: Path) -> None:
    with running_stack() as stack:
        for _ in range(2):
            stack.api(ready=False)
        stack.worker("--", "--itl-ms", "20")
        with nginx_before(tmp_path, [api.port for api in stack.apis]) as port:
            seen = Seen()
            wanted = Ask([f"http://127.0.0.1:{port}"], 200, resume=True, body={"model": "sim"})
            task = asyncio.create_task(ask(wanted, seen))
            await eventually(lambda: seen.tokens > 20, "a piece of the stream")
            (relaying,) = [api for api in stack.apis if api.metric("penstock_streams_open")]
            relaying.kill()
            await task
    assert seen.resumes >= 1
    seen.check(200)
    assert seen.whole, seen


async def test_the_resumed_stream_is_that_of_one_generation(door: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        seen = await stream_chat(client, door, TOKENS)
        path = f"{door}/v1/requests/{seen.rid}/events"
        rest = await client.get(path, headers={"Last-Event-ID": seen.ids[TOKENS // 2]})
    assert rest.status_code == 200
    assert [line[4:] for line in rest.text.splitlines() if line.startswith("id: ")] == seen.ids[TOKENS // 2 + 1 :]


@pytest.mark.parametrize("path", ["/metrics", "/v1/admin/lanes", "/v1/admin/dlq"])
async def test_what_operators_use_is_closed_from_outside(door: str, path: str) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(door + path)).status_code == 404


async def test_a_post_that_was_sent_is_not_sent_again(tmp_path: Path) -> None:
    one, other = Upstream(), Upstream()
    answer = await post_through(tmp_path, one, other, {})
    assert len(one.requests) + len(other.requests) == 1
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_replica"
    assert answer.headers["retry-after"] == "1"


async def test_a_post_with_an_idempotency_key_is_sent_again(tmp_path: Path) -> None:
    one, other = Upstream(), Upstream()
    answer = await post_through(tmp_path, one, other, {"Idempotency-Key": "order-17"})
    assert [len(one.requests), len(other.requests)] == [1, 1]
    assert all("idempotency-key: order-17" in head.lower() for head in (one.requests + other.requests))
    assert all("POST /v1/chat/completions " in head for head in (one.requests + other.requests))
    assert answer.json()["error"]["code"] == "no_replica"


async def test_a_post_with_an_idempotency_key_is_answered_by_the_replica_that_lives(tmp_path: Path) -> None:
    dying, living = Upstream(), Upstream(answers=True)
    answers = [await post_through(tmp_path, dying, living, {"Idempotency-Key": f"k{turn}"}) for turn in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert one_or_more(dying), "the fault did not happen"


async def test_a_post_goes_to_the_next_replica_when_one_cannot_be_reached(tmp_path: Path) -> None:
    living = Upstream(answers=True)
    async with upstreams(living) as ports:
        with nginx_before(tmp_path, [free_port(), *ports]) as port:
            async with httpx.AsyncClient() as client:
                answers = [await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len(living.requests) == 4


async def post_through(folder: Path, one: Upstream, other: Upstream, headers: dict[str, str]) -> httpx.Response:
    """A chat completion through nginx to these two."""
    async with upstreams(one, other) as ports:
        with nginx_before(folder, ports) as port:
            async with httpx.AsyncClient(timeout=20) as client:
                return await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={}, headers=headers)


def one_or_more(upstream: Upstream) -> bool:
    """Whether anything reached it."""
    return bool(upstream.requests)


async def test_uploads_reach_the_replica_while_they_arrive(tmp_path: Path) -> None:
    half = b"x" * 1_000_000
    replica = Upstream(answers=True)
    async with upstreams(replica) as ports:
        with nginx_before(tmp_path, ports) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * len(half)}\r\n\r\n".encode() + half
            )
            await eventually(lambda: replica.body_bytes == len(half), "the first half of an upload that goes on")
            writer.write(half)
            assert b" 200 " in await asyncio.wait_for(reader.readline(), 20)
            writer.close()
    assert replica.body_bytes == 2 * len(half)


@pytest.mark.parametrize(("path", "size"), [("/v1/chat/completions", 13_000_000), ("/v1/files", 560_000_000)])
async def test_what_is_too_large_is_refused_in_the_words_of_the_api(tmp_path: Path, path: str, size: int) -> None:
    replica = Upstream(answers=True)
    async with upstreams(replica) as ports:
        with nginx_before(tmp_path, ports) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            said = await asyncio.wait_for(reader.readuntil(b"}}"), 20)
            writer.close()
    assert b" 413 " in said.split(b"\r\n")[0]
    assert b'"code":"request_too_large"' in said
    assert not replica.requests


async def test_what_a_client_says_of_its_address_is_not_passed_on(tmp_path: Path) -> None:
    replica = Upstream(answers=True)
    async with upstreams(replica) as ports:
        with nginx_before(tmp_path, ports) as port:
            async with httpx.AsyncClient() as client:
                await client.get(f"http://127.0.0.1:{port}/v1/models", headers={"X-Forwarded-For": "10.9.9.9"})
    (head,) = replica.requests
    assert "x-forwarded-for: 127.0.0.1" in head.lower()
    assert "10.9.9.9" not in head


async def test_a_balancer_in_front_that_is_believed_says_who_the_client_is(tmp_path: Path) -> None:
    replica = Upstream(answers=True)
    believed = "set_real_ip_from 127.0.0.1; real_ip_header X-Forwarded-For; real_ip_recursive on;"
    async with upstreams(replica) as ports:
        with nginx_before(tmp_path, ports, real_ip=believed) as port:
            async with httpx.AsyncClient() as client:
                headers = {"X-Forwarded-For": "10.9.9.9, 192.0.2.7"}
                await client.get(f"http://127.0.0.1:{port}/v1/models", headers=headers)
    (head,) = replica.requests
    assert "x-forwarded-for: 192.0.2.7" in head.lower(), "the one that the balancer has seen"
    assert "10.9.9.9" not in head, "what the client has claimed"
    assert '"client":"192.0.2.7"' in (tmp_path / "nginx.log").read_text()


async def test_what_clients_send_stays_out_of_the_log(tmp_path: Path) -> None:
    replica = Upstream(answers=True)
    async with upstreams(replica) as ports:
        with nginx_before(tmp_path, ports) as port:
            async with httpx.AsyncClient() as client:
                url = f"http://127.0.0.1:{port}/v1/models?secret=in-the-query"
                await client.get(url, headers={"Authorization": "Bearer in-the-header"})
    log = (tmp_path / "nginx.log").read_text()
    assert '"path":"/v1/models"' in log
    assert "in-the" not in log


async def test_the_tls_door_speaks_no_old_protocol(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed; it makes the certificate")
    certify(tmp_path / "tls")
    replica = Upstream(answers=True)
    async with upstreams(replica) as ports:
        with nginx_before(tmp_path, ports, "tls.conf") as port:
            assert await handshake(port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
            assert await handshake(port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
            trusting = ssl.create_default_context(cafile=str(tmp_path / "tls" / "tls.crt"))
            async with httpx.AsyncClient(verify=trusting) as client:
                answer = await client.get(f"https://localhost:{port}/v1/models")
    assert answer.text == "ok"
    assert "max-age" in answer.headers["strict-transport-security"]
    assert "x-forwarded-proto: https" in replica.requests[-1].lower()


async def handshake(port: int, version: ssl.TLSVersion) -> str | None:
    """The protocol that a client of this version gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    spoken = writer.get_extra_info("ssl_object").version()
    writer.close()
    return str(spoken)


def certify(folder: Path) -> None:
    """A certificate for localhost that signs itself."""
    folder.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("server", ["server.conf", "tls.conf"])
def test_nginx_itself_finds_no_fault(tmp_path: Path, server: str) -> None:
    if server == "tls.conf":
        if not shutil.which("openssl"):
            pytest.skip("openssl is not installed; it makes the certificate")
        certify(tmp_path / "tls")
    main = place(tmp_path, [free_port()], free_port(), server)
    binary = nginx_binary()
    assert binary
    done = subprocess.run(
        [binary, "-t", "-p", str(tmp_path), "-c", str(main)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr, done.stderr

"""api/images.py against a real server on the loopback, which only an opened network lets it reach."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from api.images import MOST_REDIRECTS, Images, Rules
from api.media import Pictures, pictures_of
from api.reach import Hosts, Resolve, networks_of
from shared.errors import RequestError
from shared.metrics import IMAGES, child
from tests.support.certificates import certificate
from tests.support.pictures import DATA, PNG, ImageServer, answer, image_server, redirect

LOOPBACK = networks_of("127.0.0.0/8, ::1/128")
NAME = "images.example.com"
PARAM = "messages.0.content.0.image_url"


def pictures(*urls: str) -> Pictures:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    found = pictures_of({"messages": [{"role": "user", "content": parts}]})
    assert found is not None
    return found


def urls_in(body: bytes) -> list[str]:
    return [part["image_url"]["url"] for part in json.loads(body)["messages"][0]["content"]]


async def at_home(host: str, port: int) -> list[str]:
    """Every name is the loopback's."""
    del host, port
    return ["127.0.0.1"]


@asynccontextmanager
async def fetching(
    server: ImageServer, resolve: Resolve | None = at_home, tls: ssl.SSLContext | None = None, **rules: object
) -> AsyncIterator[Images]:
    """Something that may fetch from every name, at this server's port."""
    names = ("127.0.0.1", "localhost", NAME, "other.example.com", "0x7f.1", "2130706433", "0177.0.0.1", "::1")
    hosts = Hosts(named=frozenset((name, server.port) for name in names))
    images = Images(replace(Rules(hosts, LOOPBACK), **rules), resolve, tls)  # type: ignore[arg-type]
    try:
        yield images
    finally:
        await images.close()


@pytest.fixture
async def server() -> AsyncIterator[ImageServer]:
    async with image_server() as running:
        yield running


async def refusal(images: Images, *urls: str, left_s: float = 30) -> RequestError:
    """How the images of a request are refused."""
    try:
        images.check(pictures(*urls))
    except RequestError as error:
        return error
    with pytest.raises(RequestError) as refused:
        await images.body_of(pictures(*urls), left_s)
    return refused.value


async def test_an_image_comes_as_a_data_url(server: ImageServer) -> None:
    async with fetching(server) as images:
        url = f"http://{NAME}:{server.port}/one.png"
        assert urls_in(await images.body_of(pictures(url, url), 30)) == [DATA, DATA]
    head, *more = server.asked
    assert not more, "an image that is named twice is fetched once"
    assert f"host: {NAME}:{server.port}\r\n" in head
    assert "cookie" not in head
    assert "authorization" not in head


async def test_nothing_is_fetched_unless_it_is_switched_on(server: ImageServer) -> None:
    images = Images(Rules(None))
    error = await refusal(images, f"http://{NAME}:{server.port}/one.png")
    assert (error.status, error.code, error.param) == (400, "invalid_request_error", PARAM)
    assert "--fetch-images" in error.message
    await images.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "0"])
async def test_the_default_rules_refuse_the_loopback_however_it_is_written(server: ImageServer, host: str) -> None:
    async with fetching(server, None, networks=(), hosts=Hosts(named=frozenset({(host, server.port)}))) as images:
        error = await refusal(images, f"http://{host}:{server.port}/one.png")
    # what the URL's parser does not take for an address or a name gets no further
    expected = (400, "invalid_request_error") if host.startswith("0177") else (422, "image_not_fetched")
    assert (error.status, error.code, error.param) == (*expected, PARAM)
    assert server.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433"])
async def test_the_same_hosts_are_reached_in_an_opened_network(server: ImageServer, host: str) -> None:
    async with fetching(server, None) as images:
        assert urls_in(await images.body_of(pictures(f"http://{host}:{server.port}/one.png"), 30)) == [DATA]


async def test_an_address_of_ipv6_is_refused_and_opened_like_any_other() -> None:
    try:
        running = image_server(host="::1")
        server = await running.__aenter__()
    except OSError:
        pytest.skip("no IPv6 here")
    url = f"http://[::1]:{server.port}/one.png"
    async with fetching(server, None) as images:
        assert urls_in(await images.body_of(pictures(url), 30)) == [DATA]
    assert f"host: [::1]:{server.port}\r\n" in server.asked[0]
    async with fetching(server, None, networks=()) as images:
        assert (await refusal(images, url)).code == "image_not_fetched"
    assert len(server.asked) == 1
    await running.__aexit__(None, None, None)


async def test_a_name_that_changes_its_address_between_check_and_connection_gains_nothing(server: ImageServer) -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        del port
        asked.append(host)
        return ["127.0.0.2"] if len(asked) == 1 else ["127.0.0.1"]

    # 127.0.0.2 is allowed and answers nothing; 127.0.0.1 is where the server is
    networks = networks_of("127.0.0.2/32")
    async with fetching(server, rebinding, networks=networks) as images:
        url = f"http://{NAME}:{server.port}/one.png"
        first = await refusal(images, url)
        second = await refusal(images, url)
    assert (first.code, second.code) == ("image_not_fetched", "image_not_fetched")
    assert asked == [NAME, NAME], "one question per connection: the address that was checked is the one connected to"
    assert server.asked == []


async def test_one_private_address_among_public_ones_is_enough_to_refuse(server: ImageServer) -> None:
    async def mixed(host: str, port: int) -> list[str]:
        del host, port
        return ["127.0.0.1", "10.0.0.1"]

    async with fetching(server, mixed) as images:
        assert (await refusal(images, f"http://{NAME}:{server.port}/one.png")).code == "image_not_fetched"
    assert server.asked == []


async def test_a_redirect_is_followed_and_checked_like_the_first_url(server: ImageServer) -> None:
    async def by_name(host: str, port: int) -> list[str]:
        del port
        return ["10.0.0.1"] if host == "other.example.com" else ["127.0.0.1"]

    there = f"{NAME}:{server.port}"
    leads = {
        "/good": "/one.png",
        "/absolute": f"http://{there}/one.png",
        "/private": f"http://other.example.com:{server.port}/one.png",
        "/metadata": "http://169.254.169.254/latest/meta-data/",
        "/port": "http://127.0.0.1:6379/",
        "/file": "file:///etc/passwd",
        "/data": DATA,
        "/password": f"http://a:b@{there}/one.png",
        "/circle": "/circle",
        "/nowhere": "http://[",
        "/nothing": ":t://[",
    }
    server.answers |= {path: redirect(where) for path, where in leads.items()}
    async with fetching(server, by_name) as images:
        for path in ("/good", "/absolute"):
            assert urls_in(await images.body_of(pictures(f"http://{there}{path}"), 30)) == [DATA]
        for path in ("/private", "/metadata", "/port", "/file", "/data", "/password", "/nowhere", "/nothing"):
            before = len(server.asked)
            error = await refusal(images, f"http://{there}{path}")
            assert (error.status, error.code, error.param) == (422, "image_not_fetched", PARAM), path
            assert len(server.asked) == before + 1, path
        before = len(server.asked)
        assert "redirects" in (await refusal(images, f"http://{there}/circle")).message
        assert len(server.asked) == before + MOST_REDIRECTS + 1


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://images.example.com/one.png",
        "gopher://127.0.0.1:6379/_INFO",
        "//images.example.com/one.png",
        "one.png",
        "",
        "http://",
        "http:///one.png",
        "http://[::1/one.png",
        "http://images.example.com:99999999/",
        "http://images.example.com\r\nx: y/",
        "http://user:secret@images.example.com/",
        "http://user@images.example.com/",
        "http://images.example.com\\@evil.example/",
        "http://images.example.com:6379/",
        "http://evil.example/one.png",
        "http://bxn--",
        " data:image/png;base64,AAAA",
        "https://images.example.com/" + "a" * 9000,
    ],
)
async def test_a_url_that_is_not_fetched_is_a_400_before_anybody_is_asked(server: ImageServer, url: str) -> None:
    async def never(host: str, port: int) -> list[str]:
        raise AssertionError(host, port)

    async with fetching(server, never, hosts=Hosts(named=frozenset({(NAME, 0)}))) as images:
        with pytest.raises(RequestError) as refused:
            images.check(pictures(url))
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "invalid_request_error", PARAM)


async def test_too_many_images_are_refused(server: ImageServer) -> None:
    async with fetching(server, most=2) as images:
        urls = [f"http://{NAME}:{server.port}/{number}" for number in range(3)]
        assert (await refusal(images, *urls)).code == "limit_exceeded"
    assert server.asked == []


def endless(head: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """An image that does not end."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(head + PNG)
        while True:
            writer.write(b"\0" * 65_536)
            await writer.drain()

    return write


async def test_an_image_over_the_limit_is_not_read_to_its_end(server: ImageServer) -> None:
    server.answers |= {
        "/said": answer(content_length="9999999"),
        "/endless": endless(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n"),
        "/lying": endless(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n"),
    }
    async with fetching(server, most_bytes=100_000) as images:
        for path in ("/said", "/endless", "/lying"):
            error = await refusal(images, f"http://{NAME}:{server.port}{path}")
            assert (error.status, error.code) == (422, "image_not_fetched")
            assert "larger than 100000 bytes" in error.message


async def test_images_that_do_not_fit_into_the_body_are_a_413(server: ImageServer) -> None:
    server.answers |= {f"/{number}": answer(PNG + bytes(40_000)) for number in range(3)}
    async with fetching(server, body_bytes=120_000) as images:
        at = f"http://{NAME}:{server.port}"
        assert len(await images.body_of(pictures(f"{at}/0", f"{at}/1"), 30)) < 120_000
        counted = child(IMAGES, "too_large")
        before = counted._value.get()
        assert (await refusal(images, f"{at}/0", f"{at}/1", f"{at}/2")).status == 413
        assert counted._value.get() == before + 1, "the one that does not fit any more"
        assert (await refusal(images, *[f"{at}/0"] * 3)).status == 413, "also when one image stands there thrice"


async def test_what_is_no_image_is_refused_whatever_it_is_called(server: ImageServer) -> None:
    server.answers |= {
        "/text": answer(b"secret", "text/plain"),
        "/json": answer(b'{"secret": 1}', "application/json"),
        "/called": answer(b"secret", "image/png"),
        "/svg": answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "/empty": answer(b""),
        "/gzip": answer(gzip.compress(PNG), content_encoding="gzip"),
        "/error": answer(status="500 Internal Server Error"),
        "/partial": answer(status="206 Partial Content"),
        "/garbage": b"SSH-2.0-OpenSSH_9.2\r\n",
        "/cut": answer(content_length="5000"),
    }
    async with fetching(server) as images:
        for path in (*server.answers, "/missing"):
            if path != "/one.png":
                error = await refusal(images, f"http://{NAME}:{server.port}{path}")
                assert (error.status, error.code, error.param) == (422, "image_not_fetched", PARAM), path
                assert "secret" not in error.message


async def test_an_image_without_a_type_is_known_by_its_first_bytes(server: ImageServer) -> None:
    jpeg, webp = b"\xff\xd8\xff\xe0" + bytes(20), b"RIFF\x10\0\0\0WEBPVP8 " + bytes(8)
    server.answers |= {"/a": answer(jpeg, ""), "/b": answer(webp, "application/octet-stream"), "/c": answer(b"GIF89a;")}
    async with fetching(server) as images:
        at = f"http://{NAME}:{server.port}"
        found = urls_in(await images.body_of(pictures(f"{at}/a", f"{at}/b", f"{at}/c"), 30))
    assert [url.partition(";")[0] for url in found] == ["data:image/jpeg", "data:image/webp", "data:image/gif"]


async def drip(writer: asyncio.StreamWriter) -> None:
    """An image that never gets anywhere, but is never silent for long either."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
    while True:
        writer.write(b"\0")
        await writer.drain()
        await asyncio.sleep(0.01)


async def test_a_slow_server_costs_no_more_than_the_time_that_there_is(server: ImageServer) -> None:
    server.answers["/slow"] = drip
    url = f"http://{NAME}:{server.port}/slow"
    async with fetching(server, timeout_s=0.2) as images:
        error = await refusal(images, url)
        assert (error.status, error.code, error.param) == (422, "image_not_fetched", PARAM)
        assert "within 0.2 s" in error.message
    async with fetching(server) as images:
        assert (await refusal(images, url, left_s=0.2)).code == "deadline_exceeded"
        assert (await refusal(images, url, left_s=-1)).code == "deadline_exceeded"


async def test_a_slow_name_server_costs_no_more_than_the_time_that_there_is(server: ImageServer) -> None:
    async def slow(host: str, port: int) -> list[str]:
        del host, port
        await asyncio.Event().wait()
        return []

    async with fetching(server, slow, timeout_s=0.1) as images:
        assert (await refusal(images, f"http://{NAME}:{server.port}/one.png")).code == "image_not_fetched"


async def test_only_so_many_images_are_fetched_at_once(server: ImageServer) -> None:
    at = f"http://{NAME}:{server.port}"
    async with fetching(server, at_once=1, timeout_s=2) as images:
        async with images._free:
            waiting = await refusal(images, f"{at}/one.png")
        assert (waiting.status, waiting.code, waiting.retry_after_s) == (503, "images_busy", 5)
        assert server.asked == []
        assert urls_in(await images.body_of(pictures(f"{at}/one.png"), 30)) == [DATA], "and the place is free again"


async def test_one_image_that_fails_ends_the_others_fetches(server: ImageServer) -> None:
    server.answers["/slow"] = drip
    at = f"http://{NAME}:{server.port}"
    async with fetching(server) as images:
        error = await refusal(images, f"{at}/slow", f"{at}/missing")
    assert (error.code, error.param) == ("image_not_fetched", "messages.0.content.1.image_url")


async def test_a_server_that_refuses_or_does_not_exist_tells_the_same_as_one_that_is_not_allowed(
    server: ImageServer,
) -> None:
    async def by_name(host: str, port: int) -> list[str]:
        del port
        if host == NAME:
            raise OSError("no such name")
        return ["10.0.0.1"] if host == "other.example.com" else ["127.0.0.1"]

    async with image_server() as gone:
        closed = gone.port
    hosts = Hosts(named=frozenset({(NAME, 80), ("other.example.com", 80), ("127.0.0.1", closed)}))
    async with fetching(server, by_name, hosts=hosts) as images:
        urls = (f"http://{NAME}/", "http://other.example.com/", f"http://127.0.0.1:{closed}/")
        told = {(await refusal(images, url)).message for url in urls}
    assert len(told) == 1, "nobody learns which names and ports there are"


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for NAME, and its key."""
    return certificate(tmp_path_factory.mktemp("tls"), NAME)


async def test_tls_keeps_the_name_although_the_connection_goes_to_the_checked_address(
    certified: tuple[Path, Path],
) -> None:
    cert, key = certified
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    async with image_server(own) as server:
        url = f"https://{NAME}:{server.port}/one.png"
        async with fetching(server, tls=trusting) as images:
            assert urls_in(await images.body_of(pictures(url), 30)) == [DATA]
            other = f"https://other.example.com:{server.port}/one.png"
            assert (await refusal(images, other)).code == "image_not_fetched", "the certificate is another name's"
        async with fetching(server) as images:
            assert (await refusal(images, url)).code == "image_not_fetched", "nobody here trusts this certificate"
    assert server.names[:2] == [NAME, "other.example.com"]
    assert len(server.asked) == 1

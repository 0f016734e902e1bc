"""Fetches the images that requests name by URL, so that no worker has to.

A request's images are fetched before anything of it is in Redis, within the time that the request has. What is fetched
must look like an image by its first bytes, whatever its server says that it is; so little else of what a server may
hold comes back to a client. What went wrong in detail is in the log: a client that learns it could look around in
the network of the replica.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass

import httpcore2
import httpx2

from api.media import Pictures
from api.reach import CheckedNetwork, Hosts, Network, Resolve, Resolver, UnreachableError
from shared import errors, file_errors, http_errors
from shared.errors import RequestError, invalid_request
from shared.metrics import IMAGES, child

log = logging.getLogger(__name__)

MOST_REDIRECTS = 3
_MOST_URL_CHARS = 8_192
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = 200
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OPAQUE = ("", "application/octet-stream", "binary/octet-stream")
_HEADERS = [("accept", "image/png, image/jpeg, image/webp, image/gif"), ("user-agent", "penstock")]
_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings `fetch_images…` of a replica.

    Attributes:
        hosts: from where; None: from nowhere.
        networks: that may be connected to although they are not public.
        most: images of one request.
        most_bytes: of one image.
        timeout_s: for all images of a request.
        at_once: images that the replica fetches at the same time.
        body_bytes: most bytes of a body with its images in it.
    """

    hosts: Hosts | None
    networks: tuple[Network, ...] = ()
    most: int = 16
    most_bytes: int = 7_000_000
    timeout_s: float = 10
    at_once: int = 16
    body_bytes: int = 10_000_000


class _FailedError(Exception):
    """An image could not be fetched. `outcome` is the label of the metric, `told` what the client is told."""

    def __init__(self, outcome: str, told: str) -> None:
        super().__init__(told)
        self.outcome = outcome
        self.told = told


@dataclass(slots=True)
class _Room:
    """What the images of one request may still take. `used`: a fetch of it has begun."""

    body_bytes: int
    taken: int = 0
    used: bool = False

    def take(self, size: int) -> None:
        """Raises RequestError (413) for more than fits into the body: four characters for three bytes."""
        self.taken += size
        if self.taken * 4 > self.body_bytes * 3:
            raise http_errors.request_too_large(self.body_bytes)


class Images:
    """Fetches images."""

    def __init__(self, rules: Rules, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None) -> None:
        """`resolve` and `tls`: the system's own, unless given."""
        self._rules = rules
        self._free = asyncio.Semaphore(rules.at_once)
        self._resolver = Resolver(rules.at_once)
        self._network = CheckedNetwork(resolve or self._resolver, rules.networks)
        self._tls = tls
        self._pool: httpcore2.AsyncConnectionPool | None = None

    def check(self, pictures: Pictures) -> None:
        """Raises RequestError (400) for URLs that are not fetched from here. Asks nobody."""
        urls = pictures.urls()
        if self._rules.hosts is None:
            message = "This server fetches no images (--fetch-images). Send the image itself, as a data URL."
            raise invalid_request(message, param=next(iter(urls.values())))
        if len(pictures.found) > self._rules.most:
            what = f"The request names {len(pictures.found)} images by URL"
            raise errors.limit_exceeded(what, self._rules.most, param=pictures.found[0].param)
        for url, param in urls.items():
            try:
                self._target(url)
            except _FailedError as error:
                raise invalid_request(error.told, param=param) from error

    async def body_of(self, pictures: Pictures, left_s: float) -> bytes:
        """The body with its images. `left_s`: how long the request has until it must have started.

        Raises RequestError: 413 for a body that becomes too large, 422 for what cannot be fetched, 503 when other
        fetches took all the time, 504 when the request has none left. It may be cancelled.
        """
        urls = pictures.urls()
        within_s = min(self._rules.timeout_s, left_s)
        room = _Room(self._rules.body_bytes)
        tasks: list[asyncio.Task[tuple[str, bytes]]] = []
        try:
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._fetch(url, param, room)) for url, param in urls.items()]
        except ExceptionGroup as several:
            several.__traceback__ = None  # the frame that has raised it has it as a local
            raise several.exceptions[0] from None
        except TimeoutError:
            raise self._late(next(iter(urls.values())), room, own=left_s <= within_s) from None
        body = pictures.filled({url: task.result() for url, task in zip(urls, tasks, strict=True)})
        if len(body) > self._rules.body_bytes:
            raise http_errors.request_too_large(self._rules.body_bytes)
        return body

    def _late(self, param: str, room: _Room, *, own: bool) -> RequestError:
        child(IMAGES, "timeout").inc()
        if own:
            return errors.deadline_exceeded()
        if not room.used:
            return file_errors.images_busy()
        return file_errors.image_not_fetched(f"it did not come within {self._rules.timeout_s:g} s", param)

    async def _fetch(self, url: str, param: str, room: _Room) -> tuple[str, bytes]:
        """Media type and content. Raises RequestError (413, 422)."""
        async with self._free:
            room.used = True
            try:
                found = await self._follow(url, room)
            except RequestError as error:
                self._failed(url, "too_large", error)
                raise
            except _FailedError as error:
                self._failed(url, error.outcome, error)
                raise file_errors.image_not_fetched(error.told, param) from error
            except UnreachableError as error:
                self._failed(url, "unreachable", error)
                raise file_errors.image_not_fetched("its host cannot be reached", param) from error
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                self._failed(url, "unreachable", error)
                raise file_errors.image_not_fetched("its host cannot be reached", param) from error
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
                self._failed(url, "failed", error)
                raise file_errors.image_not_fetched("its host did not answer as it should", param) from error
        child(IMAGES, "fetched").inc()
        return found

    def _failed(self, url: str, outcome: str, error: Exception) -> None:
        child(IMAGES, outcome).inc()
        host = httpx2.URL(url).raw_host.decode("ascii")[:_SHOWN_CHARS]
        log.info("image not fetched from %s: %s: %r", host, outcome, error)

    def _target(self, url: str) -> httpx2.URL:
        """A URL that may be fetched, as far as it can be seen from the URL. Raises _FailedError."""
        try:
            target = httpx2.URL(url) if len(url) <= _MOST_URL_CHARS else None
        except httpx2.InvalidURL as error:
            raise _FailedError("refused", "it is not a valid URL") from error
        if target is None or not target.raw_host:
            raise _FailedError("refused", "it is not a valid URL")
        if target.scheme not in _DEFAULT_PORTS:
            raise _FailedError("refused", "images come as data URLs, or by http and https")
        if target.userinfo:
            raise _FailedError("refused", "a URL with a user or a password is not fetched")
        port = target.port or _DEFAULT_PORTS[target.scheme]
        if self._rules.hosts is None or not self._rules.hosts.allows(target.raw_host.decode("ascii").lower(), port):
            raise _FailedError("refused", "images are not fetched from this host and port")
        return target

    async def _follow(self, url: str, room: _Room) -> tuple[str, bytes]:
        target = self._target(url)
        for _ in range(MOST_REDIRECTS + 1):
            found = await self._get(target, room)
            if not isinstance(found, bytes):
                target = self._target(str(found))
                continue
            return _kind_of(found), found
        raise _FailedError("failed", f"it is behind more than {MOST_REDIRECTS} redirects")

    async def _get(self, target: httpx2.URL, room: _Room) -> bytes | httpx2.URL:
        """The content, or where a redirect leads."""
        if self._pool is None:
            # no connection is used twice: each one is checked anew
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=self._tls or httpcore2.default_ssl_context(),
                max_connections=self._rules.at_once,
                max_keepalive_connections=0,
                network_backend=self._network,
            )
        where = httpcore2.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
        headers = [("host", target.netloc.decode("ascii")), ("accept-encoding", "identity"), *_HEADERS]
        async with self._pool.stream("GET", where, headers=headers) as response:
            said = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                try:
                    return target.join(said.get(b"location", b"").decode("latin-1"))
                except (httpx2.InvalidURL, ValueError) as error:
                    raise _FailedError("failed", "it leads to what is not a valid URL") from error
            self._check_head(response.status, said)
            content = bytearray()
            async for part in response.aiter_stream():
                content += part
                self._check_size(len(content))
                room.take(len(part))
            return bytes(content)

    def _check_head(self, status: int, said: dict[bytes, bytes]) -> None:
        if status != _OK:
            raise _FailedError("failed", "its host did not answer with an image")
        kind = said.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in _OPAQUE:
            raise _FailedError("wrong_type", "its host did not answer with an image")
        if said.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise _FailedError("wrong_type", "its host sent it compressed, unasked")
        length = said.get(b"content-length", b"")
        if length.isdigit():
            self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        if size > self._rules.most_bytes:
            raise _FailedError("too_large", f"it is larger than {self._rules.most_bytes} bytes")

    async def close(self) -> None:
        """Closes what is open."""
        self._resolver.close()
        if self._pool is not None:
            await self._pool.aclose()


def _kind_of(content: bytes) -> str:
    """The media type by the first bytes. Raises _FailedError for what is none of those that models read."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    raise _FailedError("wrong_type", "its host did not answer with an image (PNG, JPEG, WebP, GIF)")

"""The HTTP API as the commands for users see it: where it is, who asks, and patience when a replica is gone.

Every call may be sent again: reads, cancels, and what makes something carries an `Idempotency-Key`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import httpx2
import msgspec
from pydantic import Field, SecretStr

from shared.errors import ConfigurationError, RequestError
from shared.settings import Settings

WHERE_THE_API_IS = """\
The API is found by --url, PENSTOCK_URL or OPENAI_BASE_URL (else http://127.0.0.1:8000, as `penstock up` has it); the
key by --api-key, PENSTOCK_API_KEY, PENSTOCK_API_KEY_FILE or OPENAI_API_KEY. Several URLs, separated by commas, are
replicas: when one is gone, the next one is asked."""
LOST = (httpx2.TransportError,)
"""What a connection that breaks, or cannot be made, raises."""
_AGAIN = frozenset({408, 429, 502, 503, 504})
_TIMEOUT = httpx2.Timeout(30, connect=5)
"""A stream that says nothing for half a minute is lost: heartbeats come every ten seconds."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_MOST_ERROR_BYTES = 65_536
T = TypeVar("T")


class ClientSettings(Settings):
    """Where the API is."""

    LEGACY_ENV: ClassVar[dict[str, tuple[str, ...]]] = {
        **Settings.LEGACY_ENV,
        "url": ("OPENAI_BASE_URL",),
        "api_key": ("OPENAI_API_KEY",),
    }

    url: str = Field("http://127.0.0.1:8000", description="replicas or their load balancer")
    api_key: SecretStr = Field(SecretStr(""), description="sent as a Bearer token")
    retry_s: float = Field(120, ge=0, description="seconds for which a server that is gone, or refuses, is asked again")

    @property
    def urls(self) -> list[str]:
        """Without `/v1`. Raises ConfigurationError."""
        urls = [url.strip().rstrip("/").removesuffix("/v1") for url in self.url.split(",") if url.strip()]
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise ConfigurationError("--url must be an address such as http://127.0.0.1:8000")
        return urls


class _AgainError(Exception):
    """A server could not do it now."""

    def __init__(self, error: RequestError, after_s: float = 0) -> None:
        super().__init__(error.message)
        self.error, self.after_s = error, after_s


class Client:
    """Asks the API. `notice` is told why it waits. Blocks; close it."""

    def __init__(self, settings: ClientSettings, notice: Callable[[str], None] = lambda _: None) -> None:
        self._urls = settings.urls
        self._retry_s = settings.retry_s
        self._at = 0
        self._reached = False
        self.notice = notice
        key = settings.api_key.get_secret_value()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(headers=headers, timeout=_TIMEOUT, follow_redirects=True)

    def close(self) -> None:
        """Ends its connections."""
        self._http.close()

    @property
    def url(self) -> str:
        """The server that is asked now."""
        return self._urls[self._at % len(self._urls)]

    @property
    def retry_s(self) -> float:
        """For how long it tries again."""
        return self._retry_s

    def json(self, method: str, path: str, **asked: Any) -> Any:
        """What a call is answered. `asked`: as httpx has it. Raises RequestError."""

        def once() -> Any:
            response = self._http.request(method, self.url + path, **asked)
            self._check(response)
            return _parsed(response.content)

        return self.patiently(once)

    def upload(self, path: str, send: Callable[[], Mapping[str, Any]]) -> Any:
        """What a POST is answered whose body is made anew for every try. Raises RequestError."""

        def once() -> Any:
            timeout = httpx2.Timeout(_TIMEOUT.read, connect=5, write=120, read=300)
            response = self._http.post(self.url + path, timeout=timeout, **send())
            self._check(response)
            return _parsed(response.content)

        return self.patiently(once)

    @contextlib.contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """A GET whose answer is read as it comes: that raises what is in LOST. Raises RequestError."""
        response = self.patiently(lambda: self._open(path, headers or {}))
        try:
            yield response
        finally:
            response.close()

    def _open(self, path: str, headers: Mapping[str, str]) -> httpx2.Response:
        response = self._http.send(self._http.build_request("GET", self.url + path, headers=headers), stream=True)
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        return response

    def patiently(self, ask: Callable[[], T]) -> T:
        """What `ask` returns, asked again while servers are gone. Raises RequestError."""
        give_up_at_s, wait_s, tries = time.monotonic() + self._retry_s, _FIRST_WAIT_S, 0
        while True:
            tries += 1
            try:
                found = ask()
            except LOST as error:
                lost = _AgainError(RequestError(503, "unreachable", self._unreachable(error)))
                # a server that was never there is a wrong address, not one that will come back
                hopeless = not self._reached and tries >= len(self._urls)
            except _AgainError as error:
                lost, hopeless, self._reached = error, False, True
            else:
                self._reached = True
                return found
            if hopeless or time.monotonic() + lost.after_s >= give_up_at_s:
                raise lost.error
            self.notice(lost.error.message)
            self._at += 1
            if lost.after_s or tries % len(self._urls) == 0:
                time.sleep(max(wait_s, lost.after_s))
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _unreachable(self, error: Exception) -> str:
        hint = "" if self._reached else " Is `penstock up` running, and is --url right?"
        return f"{self.url} cannot be reached: {str(error) or type(error).__name__}.{hint}"

    def _check(self, response: httpx2.Response) -> None:
        """Raises RequestError for an answer that is none, _AgainError where it may come later."""
        if response.status_code < 400:  # noqa: PLR2004 - HTTP
            return
        error = _error_of(response)
        if response.status_code in _AGAIN and response.headers.get("x-should-retry") != "false":
            raise _AgainError(error, _seconds(response.headers.get("retry-after", "")))
        raise error


def _seconds(text: str) -> float:
    return min(float(text), 60.0) if text.isascii() and text.isdecimal() else 0.0


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise RequestError(502, "bad_answer", "The server's answer is not JSON: is --url that of Penstock?") from error


def _error_of(response: httpx2.Response) -> RequestError:
    """The error in an answer: the server's own sentence, and the id under which its log has it."""
    status = response.status_code
    message, code, param = f"The server answered {status} {response.reason_phrase}.", "http_error", None
    with contextlib.suppress(*LOST, msgspec.DecodeError, AttributeError, KeyError, TypeError):
        told = msgspec.json.decode(response.read()[:_MOST_ERROR_BYTES])["error"]
        message, code, param = str(told["message"]), str(told.get("code") or code), told.get("param")
    request_id = response.headers.get("x-request-id")
    shown = f"{message} (request {request_id})" if request_id else message
    return RequestError(status, code, shown, param=param)

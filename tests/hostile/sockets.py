"""The hostile inputs that no HTTP client can send: the very bytes, what may come back, and whether the client hangs up.

None stands for a connection that is closed without an answer, which is all that some of them deserve. Nothing that
was smuggled in behind may be answered.
"""

from __future__ import annotations

from dataclasses import dataclass

_CHAT = b'{"model": "sim-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}'


@dataclass(frozen=True, slots=True)
class Raw:
    """One input.

    Attributes:
        sent: bytes on a connection of their own.
        statuses: one of these must come as the first answer.
        hang_up: the client sends nothing more and says so (FIN).
    """

    name: str
    sent: bytes
    statuses: frozenset[int | None]
    hang_up: bool = False

    def __str__(self) -> str:
        return self.name


def _head(*lines: bytes, method: bytes = b"POST", target: bytes = b"/v1/chat/completions") -> bytes:
    named = (b"Host: x", b"Content-Type: application/json", *lines)
    return method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(named) + b"\r\n\r\n"


def _get(*lines: bytes, target: bytes = b"/v1/models/none") -> bytes:
    return _head(*lines, method=b"GET", target=target)


_LENGTH = b"Content-Length: %d" % len(_CHAT)
_CHUNKED = b"Transfer-Encoding: chunked"
_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_CHAT), _CHAT)
_SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

_BAD = frozenset({400})
_BAD_OR_SHUT = frozenset({400, None})
_SHUT = frozenset({None})
_LARGE = frozenset({431})

RAW: tuple[Raw, ...] = (
    # framing: nobody may read another request out of it than we do
    Raw("length and chunks", _head(_LENGTH, _CHUNKED) + _CHUNK, _BAD),
    Raw("chunks and length", _head(_CHUNKED, b"Content-Length: 4") + _CHUNK + _SMUGGLED, _BAD),
    Raw("two lengths", _head(_LENGTH, b"Content-Length: 5") + _CHAT, _BAD),
    Raw("the same length twice", _head(_LENGTH, _LENGTH) + _CHAT, _BAD),
    Raw("lengths in a list", _head(b"Content-Length: 5, 5") + _CHAT, _BAD),
    Raw("a negative length", _head(b"Content-Length: -1") + _CHAT, _BAD),
    Raw("a length with a sign", _head(b"Content-Length: +5") + _CHAT, _BAD),
    Raw("a hexadecimal length", _head(b"Content-Length: 0x10") + _CHAT, _BAD),
    Raw("an empty length", _head(b"Content-Length:") + _CHAT, _BAD),
    Raw("a length that is no number", _head(b"Content-Length: many") + _CHAT, _BAD),
    Raw("a length over 2^64", _head(b"Content-Length: 18446744073709551617") + _CHAT, _BAD),
    Raw("a length of 10^18", _head(b"Content-Length: 1000000000000000000") + _CHAT, frozenset({413})),
    Raw("a length of 100 GB and nothing", _head(b"Content-Length: 100000000000"), frozenset({413})),
    Raw("chunked, spelled wrong", _head(b"Transfer-Encoding: xchunked") + _CHUNK, _BAD),
    Raw("chunked is not last", _head(b"Transfer-Encoding: chunked, identity") + _CHUNK, _BAD),
    Raw("chunked behind a tab", _head(b"Transfer-Encoding:\tchunked", b"Content-Length: 3") + _CHUNK, _BAD),
    Raw("a blank before the colon", _head(b"Transfer-Encoding : chunked") + _CHUNK, _BAD),
    Raw("a length behind a blank", _head(b"Content-Length : 5") + _CHAT, _BAD),
    Raw("chunked behind a NUL", _head(b"Transfer-Encoding: chunked\x00") + _CHUNK, _BAD),
    Raw("gzip, chunked", _head(b"Transfer-Encoding: gzip, chunked") + _CHUNK, frozenset({400, 415})),
    Raw("no size of a chunk", _head(_CHUNKED) + b"zz\r\n" + _CHAT, _BAD),
    Raw("a negative size of a chunk", _head(_CHUNKED) + b"-5\r\n" + _CHAT, _BAD),
    Raw("a chunk of 2^68", _head(_CHUNKED) + b"fffffffffffffffff\r\n" + _CHAT, _BAD),
    Raw("a chunk that is longer than it says", _head(_CHUNKED) + b"5\r\n" + _CHAT + b"\r\n0\r\n\r\n", _BAD),
    Raw("chunks parted by a lone line feed", _head(_CHUNKED) + _CHUNK.replace(b"\r\n", b"\n"), _BAD),
    Raw("a trailer that is none", _head(_CHUNKED) + _CHUNK[:-2] + b"no trailer\r\n\r\n", _BAD),
    Raw("more body than was said", _head(b"Content-Length: 5") + _CHAT + _SMUGGLED, _BAD),
    Raw("a body over the limit, in chunks", _head(_CHUNKED) + b"186a1\r\n" + b" " * 100_001, frozenset({413})),
    # bodies and heads that end too soon
    Raw("a body that is cut off", _head(b"Content-Length: 5000") + _CHAT, _SHUT, hang_up=True),
    Raw("a chunk that is cut off", _head(_CHUNKED) + b"5000\r\n" + _CHAT, _SHUT, hang_up=True),
    Raw("chunks without an end", _head(_CHUNKED) + _CHUNK[:-5], _SHUT, hang_up=True),
    Raw("100-continue, then nothing", _head(b"Content-Length: 5000", b"Expect: 100-continue"), frozenset({100, None}),
        hang_up=True),
    Raw("a head that is cut off", _head(_LENGTH)[:-9], _SHUT, hang_up=True),
    Raw("nothing", b"", _SHUT, hang_up=True),
    Raw("a line break", b"\r\n", _SHUT, hang_up=True),
    # heads
    Raw("a header of 70 kB", _get(b"X-A: " + b"a" * 70_000), _LARGE),
    Raw("a header of 1 MB that does not end", _get(b"X-A: " + b"a" * 1_000_000)[:-4], _LARGE),
    Raw("the name of a header of 1 MB", _get(b"a" * 1_000_000 + b": 1"), _LARGE),
    Raw("10 000 headers", _get(*[b"a: b"] * 10_000), _LARGE),
    Raw("1 000 short headers", _get(*[b"a:"] * 1_000), _LARGE),
    Raw("a target of 1 MB", _get(target=b"/" + b"a" * 1_000_000), _LARGE),
    Raw("a query of 1 MB", _get(target=b"/v1/requests?after=" + b"a" * 1_000_000), _LARGE),
    Raw("a cookie of 1 MB on a good request", _head(_LENGTH, b"Cookie: " + b"a" * 1_000_000) + _CHAT, _LARGE),
    Raw("a NUL in a header", _get(b"X-A: a\x00b"), _BAD),
    Raw("a NUL in a header's name", _get(b"X-\x00A: b"), _BAD),
    Raw("a carriage return in a header", _get(b"X-A: a\rX-B: c"), _BAD),
    Raw("a header that goes on in the next line", _get(b"X-A: a\r\n b"), _BAD),
    Raw("a header without a colon", _get(b"nothing"), _BAD),
    Raw("a header without a name", _get(b": x"), _BAD),
    Raw("a blank before the first header", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", _BAD),
    Raw("lone line feeds", _get().replace(b"\r\n", b"\n"), frozenset({400, 404})),
    # the first line
    Raw("HTTP/0.9", b"GET /livez\r\n", _BAD_OR_SHUT, hang_up=True),
    Raw("HTTP/2.0", b"GET /v1/models/none HTTP/2.0\r\nHost: x\r\n\r\n", frozenset({400, 404})),
    Raw("HTTP/9.9", b"GET /v1/models/none HTTP/9.9\r\nHost: x\r\n\r\n", _BAD),
    Raw("no version", b"GET /v1/models/none HTTP/\r\nHost: x\r\n\r\n", _BAD),
    Raw("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", _BAD_OR_SHUT),
    Raw("no method", b" /livez HTTP/1.1\r\n\r\n", _BAD),
    Raw("no such method", b"BREW /livez HTTP/1.1\r\nHost: x\r\n\r\n", _BAD),
    Raw("a method in small letters", b"get /livez HTTP/1.1\r\nHost: x\r\n\r\n", _BAD),
    Raw("a long method", b"G" * 5_000 + b" / HTTP/1.1\r\n\r\n", _BAD),
    Raw("a tunnel", b"CONNECT 127.0.0.1:6379 HTTP/1.1\r\nHost: x\r\n\r\n", frozenset({400, 404, 405})),
    Raw("another server's URL", b"GET http://169.254.169.254/none HTTP/1.1\r\nHost: x\r\n\r\n", frozenset({400, 404})),
    Raw("a URL without a path", b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", frozenset({400, 404})),
    Raw("no URL", b"GET :: HTTP/1.1\r\nHost: x\r\n\r\n", _BAD),
    Raw("a path without a slash", b"GET livez HTTP/1.1\r\nHost: x\r\n\r\n", _BAD),
    Raw("a star", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", frozenset({400, 404, 405})),
    Raw("a NUL in the target", b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", _BAD),
    Raw("a byte that is no ASCII in the target", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", frozenset({400, 404})),
    Raw("a blank in the target", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", _BAD),
    Raw("a fragment", b"GET /none#part HTTP/1.1\r\nHost: x\r\n\r\n", frozenset({400, 404})),
    # no HTTP at all
    Raw("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)), _BAD),
    Raw("Redis", b"*1\r\n$8\r\nFLUSHALL\r\n", _BAD),
    Raw("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", _BAD),
    Raw("NULs", b"\x00" * 5_000, _BAD),
    Raw("noise", bytes((number * 167 + 13) % 256 for number in range(5_000)), _BAD),
    Raw("an upgrade to HTTP/2", _get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA"),
        frozenset({404})),
    Raw("an upgrade to a socket", _get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), frozenset({404})),
    Raw("garbage behind a good request", _get() + b"\x00\x01\x02\r\n\r\n", frozenset({400, 404})),
)  # fmt: skip

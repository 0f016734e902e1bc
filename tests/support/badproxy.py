"""What may stand between clients and replicas: a proxy that lets no stream through, breaks downloads, finds nothing."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """How it behaves, and what it has seen.

    Attributes:
        refuse: paths with this in them are a 404.
        cut_bytes: a download that begins at byte 0 breaks behind so many.
        unknown: answers to a GET of a batch, counted from 0, that are a 404 although it is there.
    """

    refuse: str = "\n"
    cut_bytes: int = 0
    unknown: range = range(0)
    looks: int = 0
    refused: int = 0
    ranges: list[str] = field(default_factory=list)


@contextlib.contextmanager
def bad_proxy(url: str, behaviour: Behaviour) -> Iterator[str]:
    """The address of such a proxy in front of `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(url, behaviour))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _handler(url: str, behaviour: Behaviour) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if behaviour.refuse in self.path or self._lost():
                behaviour.refused += 1
                self._answer(404, b'{"error": {"message": "No such route.", "code": "not_found"}}', {})
                return
            asked = {"range": self.headers["range"]} if self.headers["range"] else {}
            behaviour.ranges += asked.values()
            request = urllib.request.Request(url + self.path, headers=asked)  # noqa: S310 - loopback
            self._forward(request)

        def _lost(self) -> bool:
            if not self.path.startswith("/v1/batches/batch_") or self.path.count("/") != 3:
                return False
            behaviour.looks += 1
            return behaviour.looks - 1 in behaviour.unknown

        def _forward(self, request: urllib.request.Request) -> None:
            try:
                with urllib.request.urlopen(request, timeout=30) as found:  # noqa: S310 - loopback
                    status, body, kind = found.status, found.read(), found.headers["content-type"]
            except urllib.error.HTTPError as error:
                status, body, kind = error.code, error.read(), error.headers["content-type"]
            self._answer(status, body, {"content-type": kind})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            cut = behaviour.cut_bytes if "/content" in self.path and not self.headers["range"] else 0
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:cut] if cut else body)
            self.close_connection = bool(cut)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Says nothing."""

    return Handler

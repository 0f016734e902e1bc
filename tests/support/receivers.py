"""A receiver of webhooks: a real HTTP server in threads of its own, so that a test may block its loop."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "b3RoZXJzZWNyZXRvdGhlcnNlY3JldG90aGVyc2VjcmV0"


@dataclass
class Told:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What was told, and what is answered.

    Attributes:
        statuses: of the next answers, by path; 200 where there is none left.
        told: every request, in order.
        hold: while it is set, answers wait.
    """

    port: int = 0
    statuses: dict[str, list[int]] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    location: str = ""
    hold: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def about(self, batch: str) -> list[Told]:
        """What was told of a batch."""
        return [one for one in list(self.told) if batch.encode() in one.body]

    def at(self, path: str) -> list[Told]:
        """What was told there."""
        return [one for one in list(self.told) if one.path == path]


@contextmanager
def receiving(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A running receiver."""
    receiver = Receiver()
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.told.append(Told(self.path, headers, body))
            while receiver.hold.is_set() and not over.wait(0.02):
                pass
            left = receiver.statuses.get(self.path, [])
            self.send_response(left.pop(0) if left else 200)
            if receiver.location:
                self.send_header("location", receiver.location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a sender that was killed

    server = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    serving.start()
    try:
        yield receiver
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        serving.join()

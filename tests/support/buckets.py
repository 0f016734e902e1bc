"""An S3 server of its own for tests, over real HTTP: moto's."""

from __future__ import annotations

import contextlib
import logging
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from moto.server import ThreadedMotoServer

BUCKET = "penstock-test"


@dataclass(frozen=True, slots=True)
class S3:
    """A running server with one bucket."""

    endpoint: str
    server: ThreadedMotoServer

    @property
    def url(self) -> str:
        """For `open_storage`: a prefix in the bucket."""
        return f"s3://{BUCKET}/some/prefix"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to find and to use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def uploads(self) -> int:
        """How many multipart uploads are unfinished."""
        return self._get("?uploads").count("<UploadId>")

    def parts(self) -> int:
        """How many parts the unfinished uploads have got."""
        shown = self._get("?uploads")
        uploads = zip(re.findall("<UploadId>(.*?)<", shown), re.findall("<Key>(.*?)<", shown), strict=True)
        return sum(self._get(f"/{key}?uploadId={upload}").count("<PartNumber>") for upload, key in uploads)

    def objects(self) -> list[str]:
        """The keys of all objects."""
        return [part.partition("<")[0] for part in self._get("?list-type=2").split("<Key>")[1:]]

    def _get(self, query: str) -> str:
        with urllib.request.urlopen(f"{self.endpoint}/{BUCKET}{query}", timeout=10) as answer:  # noqa: S310 - loopback
            return str(answer.read().decode())


@contextlib.contextmanager
def running_s3() -> Iterator[S3]:
    """A server with an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        found = S3(f"http://{host}:{port}", server)
        make = urllib.request.Request(f"{found.endpoint}/{BUCKET}", method="PUT")  # noqa: S310 - loopback
        urllib.request.urlopen(make, timeout=10).close()  # noqa: S310 - loopback
        yield found
    finally:
        server.stop()

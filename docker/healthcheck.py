"""The images' HEALTHCHECK: exit status 0 when PENSTOCK_HEALTH_URL answers 200. Needs neither curl nor Penstock.

A redirect or any other status is a failure; so is no answer within three seconds.
"""

from __future__ import annotations

import http.client
import os
import sys
from urllib.parse import urlsplit

_TIMEOUT_S = 3.0
_OK = 200


def main(url: str) -> int:
    """0 when `url` (http://host:port/path) answers 200, else 1 and a line on stderr."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        said = answer.read(500).decode(errors="replace")
    except OSError as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1
    finally:
        connection.close()
    if answer.status == _OK:
        return 0
    sys.stderr.write(f"{url}: {answer.status} {said}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(os.environ["PENSTOCK_HEALTH_URL"]))

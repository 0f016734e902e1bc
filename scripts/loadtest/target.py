"""Where the Penstock is that is tested, and the key that it wants.

URL: what was asked for, or `http://127.0.0.1:8000`, where both `make up` and `make stack-up` listen unless they were
told otherwise. Key: PENSTOCK_API_KEY, else the first of the stack's own (compose/.env), else none.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_STACK_ENV = Path(__file__).resolve().parents[2] / "compose" / ".env"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """One server. `tls` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    key: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


def target_of(url: str = "", *, insecure: bool = False) -> Target:
    """The server at `url`. `insecure`: any certificate will do. Raises ValueError for what is no http(s) URL."""
    known = stack_settings()
    parts = urlsplit(url or os.environ.get("PENSTOCK_URL") or f"http://127.0.0.1:{known.get('HTTP_PORT', '8000')}")
    if parts.scheme not in _PORTS or not parts.hostname:
        msg = f"{url!r} is no URL of a server: http://host:port"
        raise ValueError(msg)
    key = os.environ.get("PENSTOCK_API_KEY") or known.get("PENSTOCK_API_KEYS", "").split(",")[0]
    tls = None
    if parts.scheme == "https":
        tls = ssl._create_unverified_context() if insecure else ssl.create_default_context()  # noqa: S323, SLF001 - asked for
    return Target(parts.hostname, parts.port or _PORTS[parts.scheme], tls, key)


def stack_settings(path: Path = _STACK_ENV) -> dict[str, str]:
    """What compose/.env says; nothing where there is no stack."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if line.strip() and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}

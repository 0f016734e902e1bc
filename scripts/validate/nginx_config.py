"""The nginx configuration that compose mounts, placed so that an nginx of this machine can read it.

Only what a container decides is changed: which replicas there are, the port, and the folders for /tmp and certificates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[2] / "compose" / "nginx"
_TMP = "/tmp/"  # noqa: S108 - the container's, a tmpfs of its own
_SERVER = re.compile(r"^ +server api:8000 resolve (.+;)$", re.MULTILINE)


def place(folder: Path, ports: Sequence[int], listen: int, server: str = "server.conf") -> Path:
    """Writes the configuration for replicas at these ports of this machine. Returns the main file.

    `server`: server.conf or tls.conf; the latter's certificate is looked for in `tls/` of the folder. Raises ValueError
    when the shipped files no longer look as this module expects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nginx.conf", "locations.conf", "real_ip.conf"):
        text = (SHIPPED / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(_TMP, f"{folder}/"), encoding="utf-8")
    (folder / "upstream.conf").write_text(_upstream(ports), encoding="utf-8")
    text, count = re.subn(r"listen \d+", f"listen 127.0.0.1:{listen}", (SHIPPED / server).read_text(encoding="utf-8"))
    if count != 1:
        msg = f"{server} listens in {count} places"
        raise ValueError(msg)
    (folder / "server.conf").write_text(text.replace("/etc/penstock", str(folder)), encoding="utf-8")
    return folder / "nginx.conf"


def _upstream(ports: Sequence[int]) -> str:
    text = (SHIPPED / "upstream.conf").read_text(encoding="utf-8")
    found = _SERVER.search(text)
    if not found:
        msg = "upstream.conf names its replicas in another way"
        raise ValueError(msg)
    servers = "\n".join(f"    server 127.0.0.1:{port} {found[1]}" for port in ports)
    return re.sub(r"^resolver .*$", "", text, flags=re.MULTILINE).replace(found[0], servers)

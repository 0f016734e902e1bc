"""compose/.env: the stack's secrets and choices. Made on first use, readable by its owner only, never overwritten.

What is in it already stays, also comments; what is missing is added. No secret has a default anywhere else:
without this file compose refuses to start.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from scripts.stack.places import StackError

_HEADER = """\
# The stack's secrets and choices, made by `make stack-up`. Keep it to yourself. How to change them: docs/deployment.md.
COMPOSE_PROJECT_NAME=penstock
"""
SECRETS = {
    "REDIS_PASSWORD": "",
    "PENSTOCK_API_KEYS": "pk-",
    "PENSTOCK_ADMIN_KEYS": "pa-",
    "GRAFANA_ADMIN_PASSWORD": "",
    "WEBUI_API_KEY": "pk-",
    "WEBUI_SECRET_KEY": "",
}
"""Each secret, and what it begins with. The web UI's key is one of the API keys."""
_SECRET_BYTES = 32


def read(path: Path) -> dict[str, str]:
    """The values in the file; nothing when there is none."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def prepare(path: Path) -> list[str]:
    """Adds the secrets that are missing, and takes the file from everybody else. Returns the names of the new ones.

    Raises StackError for a file of somebody else, which this process may not make private.
    """
    known = read(path)
    new = {name: begin + secrets.token_hex(_SECRET_BYTES) for name, begin in SECRETS.items() if not known.get(name)}
    if "WEBUI_API_KEY" in new:
        keys = new.get("PENSTOCK_API_KEYS") or known["PENSTOCK_API_KEYS"]
        new["PENSTOCK_API_KEYS"] = f"{keys},{new['WEBUI_API_KEY']}"
    if new:
        put(path, new)
    try:
        path.chmod(0o600)
    except OSError as error:
        msg = f"{path} holds secrets and cannot be made private ({error.strerror}). Whose is it?"
        raise StackError(msg) from error
    return sorted(new)


def put(path: Path, values: dict[str, str]) -> None:
    """Sets values: in place where the file has them, else at its end. Whole or not at all."""
    left = dict(values)
    text = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    lines = []
    for line in text.splitlines():
        name = line.partition("=")[0].strip()
        lines.append(f"{name}={left.pop(name)}" if name in left else line)
    lines += [f"{name}={value}" for name, value in left.items()]
    made = path.with_name(path.name + ".new")
    made.unlink(missing_ok=True)
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    made.replace(path)

"""The Lua scripts: their text with what they include, and their hashes.

Each file in `lua/` opens with its contract. A line `-- @include a b` pulls in the shared chunks of those names.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

_ORDER = ("clock", "enqueue", "rate", "lease", "dead_letter", "finish")
"""`finish` uses the clock and must therefore come after it."""
CHUNKS = frozenset(_ORDER)
"""Files in `lua/` that are included by others and are no scripts themselves."""

_INCLUDE = re.compile(r"^-- @include (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script with its includes: full text and SHA-1."""

    name: str
    text: str
    sha: str


@cache
def load(name: str, publish: str = "PUBLISH") -> Script:
    """The script of that name. `publish` is PUBLISH, or SPUBLISH in a Redis Cluster."""
    folder = resources.files("shared") / "lua"
    body = (folder / f"{name}.lua").read_text()
    include = _INCLUDE.search(body)
    chunks = include.group(1).split() if include else []
    ordered = sorted(chunks, key=_ORDER.index)
    parts = [f"local PUBLISH = '{publish}'\n", *((folder / f"{chunk}.lua").read_text() for chunk in ordered), body]
    text = "".join(parts)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def script_names() -> list[str]:
    """All scripts, without the shared chunks."""
    folder = resources.files("shared") / "lua"
    names = (entry.name.removesuffix(".lua") for entry in folder.iterdir() if entry.name.endswith(".lua"))
    return sorted(name for name in names if name not in CHUNKS)

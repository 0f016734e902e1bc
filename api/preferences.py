"""The header `Prefer` (RFC 7240): what a client would like, and gets where that is possible."""

from __future__ import annotations

import re

_MOST_CHARS = 1024
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
"""One of a list: commas part them, except inside quotes."""


def responds_async(prefer: str) -> bool:
    """Whether `respond-async` is among the preferences. It has no value; parameters of it are not known and ignored."""
    return any(_name(found) == "respond-async" for found in _PREFERENCE.findall(prefer[:_MOST_CHARS]))


def _name(preference: str) -> str:
    """The name of a preference that has no value, else nothing."""
    name, _, value = preference.partition(";")[0].partition("=")
    return name.strip().lower() if value.strip() in {"", '""'} else ""

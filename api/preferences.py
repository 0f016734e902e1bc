"""How a client would like its answer: the headers `Prefer` (RFC 7240) and `X-Event-Stream`."""

from __future__ import annotations

import re

_MOST_CHARS = 1024
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
"""One of a list: commas part them, except inside quotes."""
_BENCH = re.compile(r"bench-[0-9a-f]{8}-[0-9]+")
"""As `vllm bench serve` names its requests, unless told otherwise. It takes each block of a stream, less `data: `, for
JSON, so an `id:` line makes it count the request as failed; a comment that comes alone makes it lose what follows."""


def responds_async(prefer: str) -> bool:
    """Whether `respond-async` is among the preferences. It has no value; parameters of it are not known and ignored."""
    return any(_name(found) == "respond-async" for found in _PREFERENCE.findall(prefer[:_MOST_CHARS]))


def plain_events(asked: str | None, request_id: str | None) -> bool:
    """Whether a stream shall have nothing but `data:` lines. `asked`: `plain`, `full`, or None to leave it to us."""
    if asked is None:
        return request_id is not None and _BENCH.fullmatch(request_id) is not None
    return asked == "plain"


def _name(preference: str) -> str:
    """The name of a preference that has no value, else nothing."""
    name, _, value = preference.partition(";")[0].partition("=")
    return name.strip().lower() if value.strip() in {"", '""'} else ""

"""A tokenizer on its way from a worker to the replicas: the text of a `tokenizer.json`, compressed, under its hash.

The text is what the library `tokenizers` reads and writes; nothing here looks inside.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any, Final

MOST_BYTES: Final = 32 * 1024 * 1024
"""Largest text, in UTF-8. The largest vocabularies in use (256 000 entries and their merges) need about 20 MB."""
TTL_S: Final = 60
"""How long a tokenizer stays after the last worker that has it has said so."""


def pack(text: str) -> tuple[str, bytes]:
    """A tokenizer's name and its bytes. Raises ValueError when it is too large. Takes up to a second: use a thread."""
    plain = text.encode()
    if len(plain) > MOST_BYTES:
        msg = f"the tokenizer has {len(plain)} bytes, {MOST_BYTES} are allowed"
        raise ValueError(msg)
    return _name(plain), zlib.compress(plain)


def unpack(name: str, packed: bytes) -> str:
    """The text of the tokenizer of that name. Raises ValueError when the bytes are not it."""
    try:
        plain = zlib.decompressobj().decompress(packed, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if _name(plain) != name:
        msg = f"the bytes are not those of tokenizer {name}"
        raise ValueError(msg)
    return plain.decode()


def tools_text(tools: list[Any]) -> str:
    """What counts as the text of a request's tools. Templates differ in how they write them; this is near enough."""
    return json.dumps(tools, ensure_ascii=False)


def _name(plain: bytes) -> str:
    return hashlib.sha256(plain).hexdigest()[:32]

"""One hostile input as an HTTP request, and how the lists of them are written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from api.surface import BY_PATH

RESPONSES = "/v1/responses"
POSTS = (*BY_PATH, RESPONSES)
BAD, LIMIT = "invalid_request_error", "limit_exceeded"
SAY: Any = [{"role": "user", "content": "hi"}]
CHAT, TEXT, CLAUDE = "/v1/chat/completions", "/v1/completions", "/v1/messages"

FLAGS = (
    *("--max-body-bytes", "100000", "--max-inputs", "300", "--max-schema-bytes", "20000"),
    *("--fetch-images", "any"),
)
"""Of the replica that gets them: bounds that small bodies can pass."""
MOST_BODY_BYTES = int(FLAGS[1])


@dataclass(frozen=True, slots=True)
class Hostile:
    """One input.

    Attributes:
        name: what is wrong with it.
        code: of the envelope that must come back, with `status`.
    """

    name: str
    method: str
    target: str
    status: int
    code: str
    content: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.method} {self.target[:60]}: {self.name}"


def post(name: str, path: str, content: bytes | dict[str, Any], status: int = 400, code: str = BAD) -> Hostile:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Hostile(name, "POST", path, status, code, body)


def told(name: str, path: str, header: str, value: bytes, status: int = 400, code: str = BAD) -> Hostile:
    return Hostile(name, "POST", path, status, code, good(path), ((header, value),))


def good(path: str) -> bytes:
    """A body that the route would take."""
    texts = {"prompt": "x", "input": "x", "tokens": [1], "query": "x", "queries": "x", "documents": ["y"]}
    if path == "/tokenize":
        del texts["input"]
    return json.dumps({"model": "sim-model", "max_tokens": 1, "messages": SAY, **texts}).encode()

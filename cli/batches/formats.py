"""A line of a batch's output → what the user wants to have of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

FORMATS = {
    "openai": "lines as OpenAI and `vllm run-batch` have them",
    "pairs": "JSON lines: custom_id, prompt, response, finish_reason, usage, error",
    "text": "the answer alone, one a line; line breaks as \\n, empty for a row that failed",
}
_ASKED = ("messages", "prompt", "input")
Format = Callable[[bytes, bytes | None], bytes]
"""A line of the output and its row, where that is known → a line with its end."""


def _openai(line: bytes, row: bytes | None) -> bytes:
    del row
    return line + b"\n"


def _text(line: bytes, row: bytes | None) -> bytes:
    del row
    found = msgspec.json.decode(line)
    answer = "" if found["error"] else _answer(_body_of(found))
    text = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
    escaped = text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
    return escaped.encode("utf-8", "replace") + b"\n"


def _pair(line: bytes, row: bytes | None) -> bytes:
    found, body = msgspec.json.decode(line), {}
    if not found["error"]:
        body = _body_of(found)
    pair = {"custom_id": found["custom_id"], "prompt": _asked(row), "response": _answer(body) if body else None}
    choices = body.get("choices") or [{}]
    pair |= {"finish_reason": choices[0].get("finish_reason", body.get("status")), "usage": body.get("usage")}
    return msgspec.json.encode({**pair, "error": found["error"]}) + b"\n"


BY_NAME: dict[str, Format] = {"openai": _openai, "text": _text, "pairs": _pair}


def failure_of(line: bytes) -> str | None:
    """What went wrong with a row, in a sentence; None for one that succeeded."""
    found = msgspec.json.decode(line)
    if not found["error"]:
        return None
    status = (found["response"] or {}).get("status_code")
    code = " ".join(filter(None, [str(status or ""), str(found["error"].get("code"))]))
    return f"{found['custom_id']}: {code}: {found['error'].get('message')}"


def id_of(line: bytes) -> str:
    """The `custom_id` of a row, or of a line of the output."""
    return _named(line).custom_id


class _Named(msgspec.Struct):
    custom_id: str = ""


_named = msgspec.json.Decoder(_Named).decode


def _body_of(found: dict[str, Any]) -> dict[str, Any]:
    return dict((found["response"] or {}).get("body") or {})


def _asked(row: bytes | None) -> Any:
    """What a row asks: the text of a lone user's message, else its messages, prompt or input."""
    body = msgspec.json.decode(row)["body"] if row else {}
    asked = next((body[name] for name in _ASKED if name in body), None)
    if isinstance(asked, list) and all(isinstance(one, dict) for one in asked):
        said = [one.get("content") for one in asked if one.get("role") not in {"system", "developer"}]
        return said[0] if len(said) == 1 else asked
    return asked


def _answer(body: dict[str, Any]) -> Any:
    """The text of an answer; a list of them where several were asked for; vectors of embeddings."""
    if "output" in body:
        return "".join(_texts(body["output"]))
    if "data" in body:
        vectors = [one.get("embedding") for one in body["data"]]
        return vectors[0] if len(vectors) == 1 else vectors
    said = [_said(choice) for choice in body.get("choices") or []]
    return said[0] if len(said) == 1 else said


def _said(choice: dict[str, Any]) -> Any:
    if "text" in choice:
        return choice["text"]
    message = choice.get("message") or {}
    said = message.get("content")
    return said if said is not None else message.get("tool_calls") or ""


def _texts(output: list[dict[str, Any]]) -> list[str]:
    parts = [part for item in output if item.get("type") == "message" for part in item.get("content") or []]
    return [part.get("text", "") for part in parts]

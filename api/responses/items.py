"""Items: what goes into a response, and what of an earlier one goes into the next.

An item is kept as the client sent it, since the engine gets it once more when a later response goes on with it. Its id
is kept beside it: most items are sent without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api.prompts import Prompt, few, text_of
from shared import errors
from shared.tokenizer import tools_text

Item = dict[str, Any]

_PREFIXES = {
    "message": "msg_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "custom_tool_call": "ctc_",
    "custom_tool_call_output": "ctco_",
    "reasoning": "rs_",
}
MOST_LISTED = 100


@dataclass(frozen=True, slots=True)
class Items:
    """A list of items and their ids."""

    items: list[Any]
    ids: list[str]

    def __add__(self, other: Items) -> Items:
        return Items([*self.items, *other.items], [*self.ids, *other.ids])


NONE = Items([], [])


def type_of(item: object) -> str:
    """An item's type; one without a type is a message."""
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else "message"


def as_items(sent: str | list[Any]) -> list[Any]:
    """The `input` of a request as items."""
    return [{"type": "message", "role": "user", "content": sent}] if isinstance(sent, str) else sent


def named(items: list[Any], rid: str) -> Items:
    """Items of the request `rid` with the ids that they came with, or get."""
    ids = []
    for number, item in enumerate(items):
        own = item.get("id") if isinstance(item, dict) else None
        made = f"{_PREFIXES.get(type_of(item), 'item_')}{rid.partition('_')[2]}{number}"
        ids.append(own if isinstance(own, str) and own else made)
    return Items(items, ids)


def of_output(output: list[Any]) -> Items:
    """What a response has said, as items that a later one can go on with: without messages that say nothing."""
    said = [item for item in output if isinstance(item, dict) and (type_of(item) != "message" or item.get("content"))]
    return Items(said, [str(item.get("id", "")) for item in said])


def page(kept: Items, *, order: str, limit: int, after: str | None) -> dict[str, Any]:
    """One page of `input_items`. Raises RequestError (400) when `after` is no item of this response."""
    shown = [_shown(item, name) for item, name in zip(kept.items, kept.ids, strict=True)]
    if order == "desc":
        shown.reverse()
    start = 0
    if after:
        places = [place for place, item in enumerate(shown) if item["id"] == after]
        if not places:
            raise errors.invalid_request(f"`after`: this response has no input item `{after[:64]}`.", param="after")
        start = places[-1] + 1
    part = shown[start : start + limit]
    ends = {"first_id": part[0]["id"], "last_id": part[-1]["id"]} if part else {"first_id": None, "last_id": None}
    return {"object": "list", "data": part, **ends, "has_more": start + limit < len(shown)}


def _shown(item: object, name: str) -> Item:
    """An item in the form in which OpenAI lists it."""
    shown: Item = dict(item) if isinstance(item, dict) else {"content": item}
    shown |= {"id": name, "type": type_of(item)}
    if shown["type"] == "message":
        shown.setdefault("role", "user")
        shown.setdefault("status", "completed")
        if isinstance(shown.get("content"), str):
            shown["content"] = [_text_part(shown["content"], said=shown["role"] == "assistant")]
    return shown


def _text_part(text: str, *, said: bool) -> Item:
    return {"type": "output_text", "text": text, "annotations": []} if said else {"type": "input_text", "text": text}


# ---- what the model will read


def prompt_of(items: list[Any], instructions: object, tools: object) -> Prompt:
    """The prompt that these items become. What has no place in one is left to the engine to refuse."""
    texts = [instructions] if isinstance(instructions, str) and instructions else []
    messages = len(texts)
    media = 0
    parts = False
    for item in items:
        if not isinstance(item, dict) or type_of(item) == "reasoning":
            continue
        parts = parts or not (isinstance(item.get("content"), str) and isinstance(item.get("output", ""), str))
        found = list(_texts(item))
        texts += [text for text in found if text is not None]
        media += found.count(None)
        messages += 1
    flat = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    nested = [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in flat]
    return Prompt(few(texts), tools_text(nested) if nested else "", media=media, messages=messages, parts=parts)


def _texts(item: Item) -> Iterator[str | None]:
    """The texts of an item; None for each part that is another medium."""
    for name in ("name", "arguments", "input"):
        if isinstance(item.get(name), str) and type_of(item) != "message":
            yield item[name]
    for name in ("content", "output"):
        content = item.get(name)
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            for part in content:
                yield text_of(part)

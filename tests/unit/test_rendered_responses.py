"""What a stream of Responses events says, however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.rendered import Delivered, parts_of


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({**fields, 'type': kind})}".encode()


def delta(text: str, number: int = 1, item: str = "msg_a") -> bytes:
    return event("response.output_text.delta", delta=text, sequence_number=number, item_id=item, output_index=0)


ADDED = {"output_index": 0, "item": {"id": "msg_a", "type": "message", "role": "assistant", "status": "in_progress"}}
CREATED = event("response.created", response={"id": "resp_1", "status": "in_progress", "created_at": 1})


def delivered(*events: bytes) -> Delivered:
    return Delivered(b"".join(one + b"\n\n" for one in events))


def test_texts_grow_and_where_they_are_cut_does_not_matter() -> None:
    known = delivered(CREATED, event("response.output_item.added", **ADDED), delta("a que"), delta("ue"))
    assert known.take(event("response.created", response={"id": "resp_2", "status": "in_progress", "created_at": 9}))
    other = {**ADDED, "item": {**ADDED["item"], "id": "msg_b"}}  # type: ignore[dict-item]
    assert known.take(event("response.output_item.added", **other))
    for text in ("a", " queu", "e"):
        assert not known.rendered
        assert known.take(delta(text, item="msg_b", number=7))
    assert known.rendered


@pytest.mark.parametrize(
    "wrong",
    [
        delta("b"),
        event("response.reasoning_text.delta", delta="a", output_index=0),
        event("response.output_text.delta", delta="a", output_index=1),
        event("response.output_text.done", text="a", output_index=0),
        event("response.in_progress", response={}),
    ],
)
def test_another_text_or_event_is_not_what_was_delivered(wrong: bytes) -> None:
    assert not delivered(delta("a")).take(wrong)


def test_no_event_is_taken_for_a_part_of_what_was_delivered_before_it() -> None:
    """A worker may have died between two events of one token."""
    known = delivered(CREATED)
    assert known.take(CREATED)
    for later in (
        event("response.in_progress", response={}),
        event("response.output_item.added", **ADDED),
        event("response.content_part.added", output_index=0, content_index=0, part={"type": "output_text", "text": ""}),
        event("response.output_item.done", **ADDED),
        event("response.completed", response={"status": "completed"}),
        CREATED,
    ):
        assert not known.take(later), later


def test_ends_are_compared_by_what_they_say() -> None:
    done = event("response.function_call_arguments.done", arguments="{}", name="f", output_index=0, item_id="a")
    assert delivered(done).take(done.replace(b'"a"', b'"b"'))
    assert not delivered(done).take(done.replace(b"{}", b"[]"))


def test_what_is_no_event_is_a_value_error() -> None:
    for wrong in (b"event: response.x\ndata: {}", b'event: response.x\ndata: {"type":"response.x.delta"}'):
        with pytest.raises(ValueError, match="another shape"):
            list(parts_of(wrong))

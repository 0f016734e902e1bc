"""The generation endpoints: what is kept while an answer is waited for, and bodies that can just be read."""

from __future__ import annotations

import gc
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message

from api.observe import _answered
from api.routes import completions
from api.schemas import ValidRequest
from api.settings import ApiSettings


class OpenDoor:
    """Lets everybody in."""

    async def enter(self, valid: ValidRequest, *_: object) -> object:
        assert valid.prompt.texts == ("Hello",)
        return object()


def request(body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    state = SimpleNamespace(keys=(), settings=ApiSettings(), door=OpenDoor())
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "app": SimpleNamespace(state=state)}
    return Request(scope, receive)


async def test_an_answer_is_waited_for_without_the_parsed_request(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    class Waiting:
        """An answer that looks around while it is waited for."""

        def __init__(self, *_: object, stream: bool) -> None:
            assert not stream

        async def response(self, _: Request) -> Response:
            kept.extend(one for one in gc.get_objects() if isinstance(one, ValidRequest))
            return Response()

    monkeypatch.setattr(completions, "Answer", Waiting)
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    assert (await completions.DIRECT["/v1/chat/completions"](request(body))).status_code == 200
    assert not kept


async def test_a_body_that_is_nested_as_deep_as_can_be_read_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Given:
        """An answer that is there."""

        def __init__(self, *_: object, stream: bool) -> None:
            del stream

        async def response(self, _: Request) -> Response:
            return Response()

    monkeypatch.setattr(completions, "Answer", Given)
    found = set()
    for depth in (*range(90, 110), *range(800, 1_010)):
        nested = b'{"prompt": "Hello", "x": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}"
        found.add((await _answered(completions.DIRECT["/v1/completions"], request(nested))).status_code)
    assert found == {200, 400}

"""The HTTP response of a response, whenever the engine's answer comes."""

from __future__ import annotations

from typing import cast

from fastapi import Request
from starlette.types import Scope

from api.admission import Door
from api.relay import Relay
from api.responses.answer import ResponsesAnswer
from api.responses.asked import asked_of
from api.responses.objects import base_of
from api.responses.view import View
from api.settings import ApiSettings
from api.ticket import Ticket
from shared.hot import HotClient
from shared.ids import new_request_id
from shared.keys import Keys
from shared.wire import END, HEAD, Frame, Meta

SCOPE: Scope = {"type": "http", "method": "POST", "path": "/v1/responses", "headers": [], "asgi": {"version": "3.0"}}
REFUSED = Meta(status=400, headers=[("content-type", "application/json")], state="succeeded", reason="completed")


async def test_a_stream_in_background_is_a_200_also_when_the_refusal_is_there_already() -> None:
    rid = new_request_id()
    relay = Relay(cast("HotClient", None), Keys("p"), rid, grace_s=1, lost_grace_s=1, readmit=None)
    relay._take(10, Frame(HEAD | END, "a", 0, [], 0, REFUSED, b'{"error":{"message":"no","code":400}}'))
    ticket = Ticket(rid, "m", "standard", relay, Keys("p"), 0.0)
    base = base_of(asked_of(b'{"input": "x", "background": true, "stream": true}'), rid, "m", "standard")
    view = View(base, relay, stream=True)
    answer = ResponsesAnswer(cast("Door", None), ticket, ApiSettings(), view, stream=True)
    response = answer.at_once(Request(SCOPE))
    assert response.status_code == 200
    assert dict(response.raw_headers)[b"content-type"].startswith(b"text/event-stream")

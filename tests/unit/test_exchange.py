"""What an exchange that is traced or logged holds on to."""

from __future__ import annotations

import sys

from api.exchange import Exchange
from shared.outcomes import Admission


def test_it_keeps_no_requests_body_while_its_answer_goes_on() -> None:
    body = bytes(5_000)
    before = sys.getrefcount(body)
    exchange = Exchange({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}, None)
    exchange.sent(Admission("req_0", "", "standard", body, "acme", 1, 1, 1, 0))
    assert sys.getrefcount(body) == before
    assert exchange._line(200)["tenant"] == "acme"

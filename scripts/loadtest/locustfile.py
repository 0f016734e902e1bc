"""The same kinds of prompts for locust, for who has it (`pip install locust`; Penstock does not).

    locust -f scripts/loadtest/locustfile.py --host http://127.0.0.1:8000

Locust's response time of the entry named by the prompt is that of the whole stream; `TTFT` is an entry of its own.
PENSTOCK_API_KEY is the key, PENSTOCK_MODEL the model (default: the first that is served).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from locust import HttpUser, between, task

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.loadtest.prompts import KINDS, pick

_NUMBERS = itertools.count(random.SystemRandom().randrange(1_000_000))


class Client(HttpUser):
    """Streams chat completions, and reads each to its end."""

    wait_time = between(0.5, 2)
    model = ""

    def on_start(self) -> None:
        """Signs in, and asks what is served."""
        if key := os.environ.get("PENSTOCK_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"
        self.model = os.environ.get("PENSTOCK_MODEL") or self.client.get("/v1/models").json()["data"][0]["id"]

    @task
    def chat(self) -> None:
        """One stream."""
        kind = pick(list(KINDS), random.Random())
        body = kind.body(next(_NUMBERS), self.model)
        began_s = time.monotonic()
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, name=kind.name, catch_response=True
        ) as answer:
            if not answer.ok:
                answer.failure(f"{answer.status_code} {answer.text[:200]}")
                return
            self._read(answer, began_s)
            answer.request_meta["response_time"] = 1000 * (time.monotonic() - began_s)  # locust stops at the headers

    def _read(self, answer: Any, began_s: float) -> None:
        first_s, done = 0.0, False
        for line in answer.iter_lines():
            if line == b"data: [DONE]":
                done = True
            elif line.startswith(b"data: ") and not first_s:
                first_s = time.monotonic()
                self._first(1000 * (first_s - began_s))
            if line.startswith(b'data: {"error"'):
                answer.failure(str(json.loads(line[6:])["error"]["code"]))
                return
        if not done:
            answer.failure("the stream broke off")
        else:
            answer.success()

    def _first(self, took_ms: float) -> None:
        self.environment.events.request.fire(
            request_type="SSE", name="TTFT", response_time=took_ms, response_length=0, exception=None, context={}
        )

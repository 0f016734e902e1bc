"""What the fuzzer's requests are given before they are sent, so that more of them get beyond the first refusal.

Loaded by schemathesis, in its process.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

import schemathesis

from api.deadlines import patience_of
from shared.errors import RequestError

MODEL = "sim-model"
LETTERS = [name for name in os.environ.get("PENSTOCK_FUZZ_LETTERS", "").split(",") if name]
_PATIENT = {"X-Request-Timeout-Ms": "60000", "X-Request-Deadline": "2099-01-01T00:00:00Z"}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Most requests name the model that is there, some of those for dead letters one that is there."""
    del context, kwargs
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and len(case.body["model"]) % 8 != 7:
        case.body = {**case.body, "model": MODEL}
    parameters = case.path_parameters or {}
    if LETTERS and isinstance(name := parameters.get("name"), str) and len(name) % 2:
        parameters["name"] = LETTERS[len(name) // 2 % len(LETTERS)]
    _give_time(case.headers or {})
    _choose_when(case)


def _give_time(headers: Any) -> None:
    """A client that allows one millisecond is rightly told 503 or 504, which is no fault of the service."""
    for name, enough in _PATIENT.items():
        with contextlib.suppress(RequestError):  # what is no time stays as it is
            if patience_of({name.lower(): str(headers.get(name, ""))}).limits(0, 1, 1):
                headers[name] = enough


def _choose_when(case: Any) -> None:
    """Some good requests are answered later. Bad ones at once, since who comes later finds the engine's refusal later.

    And bad ones join no earlier request: its answer is there, however this one wants to have it.
    """
    headers = case.headers or {}
    if case.meta is None or case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE:
        if headers.get("Prefer") and len(str(headers["Prefer"])) % 2:
            headers["Prefer"] = "respond-async"
        return
    headers.pop("Prefer", None)
    if re.fullmatch("[!-~]{1,255}", str(headers.get("Idempotency-Key", ""))):
        headers.pop("Idempotency-Key")
    if isinstance(case.body, dict) and case.body.get("background") is True:
        case.body = {**case.body, "background": False}

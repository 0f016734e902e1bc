"""What the simulated engine is asked: bodies of its generating routes → jobs."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from worker.engines.sim_answers import Form, Job
from worker.engines.sim_prompts import prompt_tokens

FORMS: dict[str, Form] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text",
    "/v1/messages": "message",
    "/v1/responses": "response",
}
_DEFAULT_TOKENS: dict[Form, int] = {"chat": 64, "text": 16, "message": 64, "response": 32}
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """The request is refused with a status."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param

    def body(self) -> bytes:
        """The body of the answer, in vLLM's envelope. An unknown route gets FastAPI's."""
        if self.status == 404:  # noqa: PLR2004 - HTTP statuses read better as numbers
            return b'{"detail":"Not Found"}'
        kind = "BadRequestError"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return msgspec.json.encode({"error": error})


def job_of(path: str, fields: dict[str, Any], rid: str, longest: int) -> Job:
    """The job that a body asks for. `longest`: the model's context, tokens. Raises Refusal."""
    form = FORMS[path]
    tokens = next(filter(None, map(fields.get, _LIMITS)), None) or _DEFAULT_TOKENS[form]
    if not isinstance(tokens, int) or tokens < 1:
        raise Refusal(400, f"max_tokens must be at least 1, got {tokens}.", "max_tokens")
    if fields.get("n") not in (None, 1):
        raise Refusal(400, "The simulated engine answers with one choice only.", "n")
    tokens_in = prompt_tokens(fields)
    if tokens_in + tokens > longest:
        message = f"This model's maximum context length is {longest} tokens, but {tokens_in + tokens} were asked for."
        raise Refusal(400, message, "input_tokens")
    return Job(
        rid=rid,
        form=form,
        tokens=tokens,
        prompt_tokens=tokens_in,
        stream=bool(fields.get("stream")),
        usage=bool((fields.get("stream_options") or {}).get("include_usage")),
        created=int(time.time()),
        response=fields if form == "response" else None,
    )

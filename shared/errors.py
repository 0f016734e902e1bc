"""The error tree of Penstock.

    PenstockError
    ├── BrokerUnavailableError   Redis cannot be reached, or its answer did not come in time
    ├── FencedError              this worker id, or this attempt, has been replaced
    ├── ConfigurationError       a setting is wrong; the message says what to do
    ├── EngineFailedError        the engine cannot serve any more
    ├── StorageUnavailableError  the object storage cannot be reached, refuses, or does not answer in time
    │   └── StorageFullError     it takes nothing more
    ├── ObjectMissingError       the object storage has no object of that name
    └── RequestError             one request ends, with an HTTP status and a stable code

A `RequestError` carries what the client is told. Its `code` is the same word in the response body, in the logs and in
the `code` label of the metrics. Statuses and codes: the table in `docs/protocol.md`. Those of HTTP itself are made in
`http_errors.py`, those of files, images and batches in `file_errors.py`.
"""

from __future__ import annotations

import math

_SHOWN_CHARS = 128
"""Of a model name in a message: it is the client's."""


class PenstockError(Exception):
    """Base of every error that Penstock raises on purpose."""


class BrokerUnavailableError(PenstockError):
    """Redis cannot be reached, or its answer did not come in time. Whether the command took effect is unknown."""


class FencedError(PenstockError):
    """The server refuses this worker id or this attempt: somebody else has taken over."""


class ConfigurationError(PenstockError):
    """A setting is wrong. The message says what to do about it."""


class EngineFailedError(PenstockError):
    """The engine cannot serve any more; the worker must end."""


class StorageUnavailableError(PenstockError):
    """The object storage cannot be reached, refuses, or does not answer in time."""


class StorageFullError(StorageUnavailableError):
    """The object storage takes nothing more: the disk is full, or its quota is used up."""


class ObjectMissingError(PenstockError):
    """The object storage has no object of that name."""


class RequestError(PenstockError):
    """One request cannot be served.

    Attributes:
        status: HTTP status, 400..599.
        code: stable snake_case word, the same in body, log and metric.
        message: one sentence for the client.
        kind: the `type` of OpenAI's error envelope.
        param: the request field at fault, if one is.
        retry_after_s: seconds until a retry makes sense; None leaves the headers out.
        own_turn: that moment was given to this client alone, so it may be told exactly.
        should_retry: value of `x-should-retry`; None leaves the header out, so that the SDK decides by the status.
        headers: more headers of the response.
        quotes: the message may hold what the client has sent, so it stands in no log.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        own_turn: bool = False,
        should_retry: bool | None = None,
        headers: dict[str, str] | None = None,
        quotes: bool = False,
    ) -> None:
        super().__init__(message)
        self.quotes = quotes
        self.status = status
        self.code = code
        self.message = message
        self.kind = _kind(status)
        self.param = param
        self.retry_after_s = retry_after_s
        self.own_turn = own_turn
        self.should_retry = should_retry
        self.headers = headers or {}


def _kind(status: int) -> str:
    if status == 429:  # noqa: PLR2004 - HTTP statuses read better as numbers
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004


def invalid_request(message: str, *, param: str | None = None, code: str = "invalid_request_error") -> RequestError:
    """400: the client must change the request."""
    return RequestError(400, code, message, param=param, should_retry=False)


def limit_exceeded(what: str, limit: int, *, param: str | None = None) -> RequestError:
    """400: the request has more of something than one request may have. `what` says of what, and how many it has."""
    message = f"{what}; at most {limit} are allowed in one request."
    return RequestError(400, "limit_exceeded", message, param=param, should_retry=False)


def context_length_exceeded(tokens: int, limit: int) -> RequestError:
    """400: the prompt is longer than the model can read. The first words are vLLM's: clients look for them."""
    message = f"This model's maximum context length is {limit} tokens, but your prompt has about {tokens}."
    return RequestError(400, "context_length_exceeded", message, param="input_tokens", should_retry=False)


def invalid_api_key(message: str) -> RequestError:
    """401: no credentials, or wrong ones."""
    return RequestError(401, "invalid_api_key", message)


def lane_not_allowed(asked: str, most: str) -> RequestError:
    """403: the client may not use this lane."""
    message = f"The lane `{asked}` is not open to you. The highest one that you may ask for is `{most}`."
    return RequestError(403, "lane_not_allowed", message, param="X-Priority-Lane")


def model_not_found(model: str) -> RequestError:
    """404: no pool serves this name."""
    message = (
        f"The model `{model[:_SHOWN_CHARS]}` does not exist. GET /v1/models lists the models that are served here."
    )
    return RequestError(404, "model_not_found", message, param="model")


def not_found(what: str) -> RequestError:
    """404: no such thing, or it belongs to somebody else."""
    return RequestError(404, "not_found", f"{what} was not found.")


def endpoint_not_supported(model: str, path: str) -> RequestError:
    """404: the engine of this model does not know the route: a chat model has no embeddings, or the other way."""
    message = f"The model `{model[:_SHOWN_CHARS]}` does not answer {path}. Ask another model, or another endpoint."
    return RequestError(404, "endpoint_not_supported", message, param="model", should_retry=False)


def invalid_cursor(message: str) -> RequestError:
    """400: a stream cannot be gone on with from there."""
    return RequestError(400, "invalid_cursor", message, param="Last-Event-ID", should_retry=False)


def idempotency_in_progress(rid: str) -> RequestError:
    """409: the key's request is running, and the client has asked not to join it."""
    message = f"The request with this idempotency key is still in progress, as {rid}. Retry later."
    return RequestError(409, "idempotency_in_progress", message, retry_after_s=2, should_retry=True)


def result_expired(rid: str) -> RequestError:
    """410: the request was there, its answer is not kept any more."""
    message = f"The answer of {rid} is not kept any more. Send the request again, under a new idempotency key if any."
    return RequestError(410, "result_expired", message, should_retry=False)


def previous_response_not_found(response: str) -> RequestError:
    """400, as OpenAI has it: there is no such response to go on with, or it belongs to somebody else."""
    message = f"Previous response with id `{response[:64]}` not found."
    param = "previous_response_id"
    return RequestError(400, "previous_response_not_found", message, param=param, should_retry=False)


def idempotency_key_mismatch() -> RequestError:
    """422: the key was used for another request."""
    message = "This idempotency key was used with another request. Use a new key for a new request."
    return RequestError(422, "idempotency_key_mismatch", message, should_retry=False)


def queue_full(depth: int, retry_after_s: float, *, own_turn: bool = False) -> RequestError:
    """429: the lane holds as many requests, bytes or tokens as it may."""
    message = f"The queue is full: {depth} requests are waiting. Retry-After says when to come again."
    return RequestError(429, "queue_full", message, retry_after_s=retry_after_s, own_turn=own_turn)


def share_full(held: int, retry_after_s: float, *, own_turn: bool = False) -> RequestError:
    """429: the tenant holds its share of the lane; others still find room."""
    message = f"You hold your share of the queue: {held} of your requests are waiting. Retry-After says when to retry."
    return RequestError(429, "queue_full", message, retry_after_s=retry_after_s, own_turn=own_turn)


def no_free_slot(lane: str, taken: int, retry_after_s: float, *, own_turn: bool = False) -> RequestError:
    """429: the lane is in mode `reject`, and no worker has a free slot."""
    message = f"No slot is free ({taken} requests are in progress), and the lane `{lane}` lets nobody wait."
    return RequestError(429, "no_free_slot", message, retry_after_s=retry_after_s, own_turn=own_turn)


def deadline_unachievable(wait_s: float, retry_after_s: float) -> RequestError:
    """429: the predicted wait is longer than the request may wait."""
    message = (
        f"The request would wait about {wait_s:.1f} s, which is longer than it may. "
        "Retry later, or allow more time (X-Request-Timeout-Ms)."
    )
    return RequestError(429, "deadline_unachievable", message, retry_after_s=retry_after_s)


def too_many_requests(in_system: int, limit: int, retry_after_s: float) -> RequestError:
    """429: the tenant has as many requests in the system as it may."""
    message = f"You have {in_system} requests in progress, which is your limit. Wait for one of them to end."
    left = {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(max(0, limit - in_system)),
        "x-ratelimit-reset-requests": f"{math.ceil(retry_after_s)}s",
    }
    return RequestError(429, "rate_limit_exceeded", message, retry_after_s=retry_after_s, headers=left)


def lane_draining(lane: str, retry_after_s: float) -> RequestError:
    """503: an operator drains the lane; it takes nothing new."""
    message = f"The lane `{lane}` is being drained and takes nothing new. Retry later, or ask for another lane."
    return RequestError(503, "lane_draining", message, retry_after_s=retry_after_s)


def queue_timeout() -> RequestError:
    """503: the deadline passed before a worker could start the request."""
    message = "No worker could start the request before its deadline. Retry later, or allow more time."
    return RequestError(503, "queue_timeout", message, retry_after_s=5)


def deadline_exceeded() -> RequestError:
    """504: the deadline passed while the request was running, or before it came."""
    message = "The request did not end before its deadline. Ask for less output, or allow more time."
    return RequestError(504, "deadline_exceeded", message, should_retry=False)


def no_capacity(model: str, retry_after_s: float) -> RequestError:
    """503: the model is known, but no worker that serves it is alive. `retry_after_s`: what one takes to start."""
    message = f"No worker that serves `{model}` is alive right now. One takes about {retry_after_s:.0f} s to start."
    return RequestError(503, "no_capacity", message, retry_after_s=retry_after_s)


def broker_unavailable() -> RequestError:
    """503: Redis cannot be reached."""
    message = "The request broker cannot be reached right now. Retry in a moment."
    return RequestError(503, "broker_unavailable", message, retry_after_s=1, should_retry=True)


def replica_stopping() -> RequestError:
    """503: this replica is draining; any other one answers for the same request."""
    message = "This replica is stopping. Retry: another one will answer."
    return RequestError(503, "broker_unavailable", message, retry_after_s=1, should_retry=True)


def broker_full(retry_after_s: float) -> RequestError:
    """503: Redis is short of memory; what is in the system already goes on."""
    message = f"The request broker is short of memory and takes nothing new. Retry after {retry_after_s:.0f} s."
    return RequestError(503, "broker_unavailable", message, retry_after_s=retry_after_s, should_retry=True)


def worker_lost() -> RequestError:
    """500: the worker died after text had been delivered, and this request cannot be continued elsewhere."""
    message = "The worker that ran this request was lost after part of the answer had been delivered. Please retry."
    return RequestError(500, "worker_lost", message, should_retry=True)


def history_lost() -> RequestError:
    """500: the broker lost its record of a request whose text had been delivered in part."""
    message = "The broker lost this request after part of the answer had been delivered. Please retry."
    return RequestError(500, "history_lost", message, should_retry=True)


def too_many_attempts() -> RequestError:
    """500: the request was tried as often as allowed and never ended."""
    message = "The request was tried several times and its worker died each time. It has been set aside."
    return RequestError(500, "too_many_attempts", message, should_retry=True)


def engine_error(message: str) -> RequestError:
    """500: the engine failed on this request."""
    return RequestError(500, "engine_error", message, should_retry=True)


def internal_error() -> RequestError:
    """500: a bug of ours; the log has it."""
    return RequestError(500, "internal_error", "The server made a mistake. Its log says more.", should_retry=True)


def cancelled() -> RequestError:
    """499: the request was cancelled; seen by other readers of the same request, never by whoever has left."""
    return RequestError(499, "cancelled", "The request was cancelled.", should_retry=False)


def purged() -> RequestError:
    """499: an operator took the request off its queue, before it was started or while it waited to go on."""
    message = "An operator removed the request from the queue. Send it again only if you are told to."
    return RequestError(499, "cancelled", message, should_retry=False)

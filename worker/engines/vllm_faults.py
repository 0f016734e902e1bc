"""What vLLM finds wrong with a response whose stream has begun.

vLLM says `response.created` before its engine looks at the request, and breaks the stream off where the engine then
refuses it. On its other routes the error is a status or an event; here it becomes an event, in vLLM's own words.
"""

from __future__ import annotations

from collections.abc import Iterator

from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError

PATH = "/v1/responses"


def fault_event(error: BaseException) -> bytes:
    """The last event of a stream that ended with this error."""
    error = _unwrapped(error)
    known = next((one for one in _chain(error) if isinstance(one, VLLMError)), error)
    body = create_error_response(known if isinstance(known, Exception) else str(known)).model_dump_json()
    return b"event: error\ndata: %b\n\n" % body.encode()


def _unwrapped(error: BaseException) -> BaseException:
    """What was raised in a stream, without what the application's own layers put around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    handled = isinstance(error, RuntimeError) and "response already started" in str(error)
    return error.__cause__ if handled and error.__cause__ is not None else error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""The shortest way of a stream's events to the socket: past the server's `send`, while the client keeps up.

uvicorn's `send` checks the state of the response, makes a coroutine and joins lists for every chunk. Once the head of a
chunked response is out, none of that can change any more: what is left to do is to frame the bytes and to write them.
This module is the only one that knows uvicorn from inside. With another server, or a uvicorn that has changed, there is
no short way and events take the ordinary one; `tests/integration/test_transport.py` fails then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_FLUSH_S = 1.0


def hang_up_watch(send: Send | None) -> Callable[[], bool] | None:
    """Tells whether the client has hung up, without a task that waits for the news.

    `send` is the server's own. None when the server is another one: then `receive` has to be listened to. Call it once
    the request's body has been read.
    """
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle or cycle.scope["method"] == "HEAD":
        return None
    # uvicorn stops reading behind a large body until somebody asks for more, and so would not see the hang-up
    if not getattr(getattr(cycle.on_response, "__self__", None), "pipeline", ()):
        cycle.flow.resume_reading()
    # uvicorn tells only the newest of pipelined requests that the connection is lost
    return lambda: bool(cycle.disconnected or cycle.transport.is_closing())


async def hang_up(send: Send) -> None:
    """Closes the connection behind what has been sent, without the body's regular end.

    So the client knows that the body is cut, instead of taking it for whole. `send` is the server's own; with another
    server nothing is closed here.
    """
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle or cycle.disconnected:
        return
    cycle.transport.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_S):
            while not cycle.disconnected:
                cycle.message_event.clear()
                await cycle.message_event.wait()
    cycle.transport.abort()


def socket_writer(send: Send) -> Callable[[bytes], bool] | None:
    """Writes bytes of a body that has begun, at once; the writer returns False, and writes nothing, when it would wait.

    `send` is the server's own, after the head of the response has been sent. None when there is no short way.
    """
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle or not cycle.chunked_encoding or cycle.scope["method"] == "HEAD":
        return None
    flow, write = cycle.flow, cycle.transport.write

    def write_now(body: bytes) -> bool:
        if flow.write_paused or cycle.disconnected or cycle.response_complete:
            return False
        try:
            write(b"%x\r\n%b\r\n" % (len(body), body))
        except RuntimeError:  # closed, and this request was not told
            return False
        return True

    return write_now

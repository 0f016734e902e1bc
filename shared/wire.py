"""Bytes that processes exchange through Redis: msgpack, by msgspec structs declared here and nowhere else.

Rules: fields are only added, with defaults, at the end (`Frame`: inside `Meta`, because `data` must stay last); readers
accept this version and the one before; golden bytes in `tests/golden` hold the format.

A frame is an array `[kind, attempt, index, token_ids, text_len, meta, data]`. `data` is last so that the bytes of the
engine's answer sit at a known place of the log: the log's length after the frame, minus `len(data)`. An event's cursor
is therefore a byte offset into the log, also when one frame carries several events.

A live message on a channel is `[log length after the frame, frame]`; the array header and the length are put in front
by the scripts (`lua/finish.lua`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgpack
import msgspec

VERSION: Final = 1

DELTA: Final = 0
"""Part of an answer."""
HEAD: Final = 1
"""Flag: the frame opens the answer; `meta.status` and `meta.headers` are set."""
END: Final = 2
"""Flag: the frame is terminal; `meta.state` and `meta.reason` are set. Nothing follows it."""
RESUME: Final = 4
"""Flag: the attempt's first frame, which goes on with the text of attempt `meta.after`, whose frame stands right before
it. A reader may go from one attempt's text to another's here and nowhere else."""

MESSAGE_HEADER_BYTES: Final = 6
"""Array header and 32-bit log length in front of the frame in a live message."""


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request as the replica received it; the worker hands it to its engine unchanged.

    `body` is the HTTP body, byte for byte. `width` is how many sequences the engine will run for it at once. `stays`:
    the request goes on when nobody follows it any more.
    """

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    lane: str
    width: int = 1
    version: int = VERSION
    stays: bool = False


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens, as counted by the engine."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the first and the last frame of an attempt say beyond the answer's bytes.

    `after`: id of the attempt whose frames stood last in the log that this attempt continues (RESUME).
    """

    status: int = 0
    headers: list[tuple[str, str]] = []
    state: str = ""
    reason: str = ""
    message: str = ""
    usage: Usage | None = None
    after: str = ""


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One flush of one request.

    Attributes:
        kind: DELTA, or HEAD, END and RESUME as flags.
        attempt: id of the attempt that wrote it; empty when a script ended the request without a worker.
        index: position of the first of `token_ids` in the completion.
        token_ids: tokens whose text is in this frame or in earlier ones.
        text_len: characters of text that the engine had released after this frame.
        meta: set on the first and on the last frame.
        data: the engine's own body bytes, relayed as they are.
    """

    kind: int
    attempt: str
    index: int
    token_ids: list[int]
    text_len: int
    meta: Meta | None
    data: bytes


class Counting(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many tokens a prompt has, for those who have neither the engine nor the model.

    Attributes:
        tokenizer: name of the tokenizer (`GlobalKeys.tokenizer`).
        chat: tokens that the chat template puts around a conversation.
        message: tokens that it puts around each message.
        tools: tokens that it puts around the JSON of the tools; negative: it leaves tools out.
    """

    tokenizer: str
    chat: int = 0
    message: int = 0
    tools: int = -1


class WorkerCard(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says about itself. `models` are the cards of `/v1/models`, as JSON bytes.

    `counting`: how its prompts are counted; None: only its engine can.
    """

    wid: str
    engine: str
    engine_version: str
    slots: int
    models: list[bytes]
    state: str = "ready"
    host: str = ""
    pid: int = 0
    started_at_ms: int = 0
    version: int = VERSION
    counting: Counting | None = None


_request_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_card_decoder = msgspec.msgpack.Decoder(WorkerCard)
_frame_decoder = msgspec.msgpack.Decoder(Frame)
_message_decoder = msgspec.msgpack.Decoder(tuple[int, Frame])

encode = _request_encoder.encode
"""Any struct of this module → bytes."""
decode_request = _request_decoder.decode
"""Bytes → Request. Raises msgspec.MsgspecError when they are not one."""
decode_card = _card_decoder.decode
"""Bytes → WorkerCard. Raises msgspec.MsgspecError when they are not one."""
decode_frame = _frame_decoder.decode
"""Bytes of exactly one frame → Frame. Raises msgspec.MsgspecError when they are not one."""
decode_message = _message_decoder.decode
"""A live message → (log length after the frame in bytes, Frame)."""


def end_frame(state: str, reason: str, message: str = "") -> bytes:
    """A terminal frame that no attempt wrote: a script ends the request with it."""
    return encode(Frame(END, "", -1, [], 0, Meta(state=state, reason=reason, message=message), b""))


def split_log(log: bytes, offset: int) -> Iterator[tuple[int, Frame]]:
    """The frames of a slice of a log.

    `offset` is the byte offset at which `log` starts; it must be a frame's start. Yields (log length after the frame,
    Frame). A frame that is cut off at the end of the slice is left out. Raises msgspec.MsgspecError when `offset` is no
    frame's start: the log is then another one than the offset was made for.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(log)
    start = 0
    while True:
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            return
        except ValueError as error:
            raise msgspec.DecodeError(str(error)) from error
        stop = unpacker.tell()
        yield offset + stop, decode_frame(log[start:stop])
        start = stop

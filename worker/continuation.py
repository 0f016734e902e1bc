"""Continuation: going on with an answer of which another attempt has already shown a part.

What the log holds is a `History`. The policy says whether the engine may go on behind the logged tokens or must make
everything again. Either way the engine's application renders the answer from its first event on; what was delivered is
taken from the front of that, compared, and dropped, and what follows is published. So parser state, usage and ids are
those of an unbroken run. What is rendered must say what was delivered, to the letter; otherwise the request ends as
`worker_lost`, and nothing is published: never a splice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.wire import HEAD, Meta, Request, split_log
from worker.engines.base import Capabilities, Policy, Resume
from worker.outgoing import Outgoing, nobody
from worker.rendered import SEPARATOR, Delivered, created_of

log = logging.getLogger(__name__)

_CHAT = "/v1/chat/completions"
_MESSAGES = "/v1/messages"
_PATHS = (_CHAT, "/v1/completions", _MESSAGES, "/v1/responses")
_GUIDES = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_COUNTERS = ("presence_penalty", "frequency_penalty", "repetition_detection", "thinking_token_budget", "bad_words")
_OTHERS = ("include", "echo", "top_logprobs", "logprob_token_ids", "vllm_xargs", "watermarking")
_MUST_VERIFY_IF_TRUE = (*_GUIDES, *_COUNTERS, *_OTHERS)
_MUST_VERIFY_IF_GIVEN = ("seed", "prompt_logprobs")
_IMPOSSIBLE = ("use_beam_search", "kv_transfer_params", "prompt_embeds")


@dataclass(frozen=True, slots=True)
class History:
    """What earlier attempts have published of an answer.

    Attributes:
        attempt: id of the attempt whose frames stand last.
        head: status and headers.
        data: the answer's bytes.
        token_ids: tokens behind them.
        text_len: characters of text that the engine had released.
    """

    attempt: str
    head: Meta
    data: bytes
    token_ids: list[int]
    text_len: int

    @classmethod
    def of(cls, published: bytes) -> History | None:
        """From a whole log; None when nothing in it is visible. Raises msgspec.MsgspecError when it is no log.

        An attempt whose head alone was published is followed by one that starts anew, with a head of its own.
        """
        attempt, head, pieces, token_ids, text_len = "", Meta(), list[bytes](), list[int](), 0
        for _, frame in split_log(published, 0):
            attempt, text_len = frame.attempt, frame.text_len
            if frame.kind & HEAD:
                head = frame.meta or Meta()
                pieces, token_ids = [], []
            token_ids[frame.index :] = frame.token_ids
            pieces.append(frame.data)
        data = b"".join(pieces)
        return cls(attempt, head, data, token_ids, text_len) if data else None


def policy_for(request: Request, history: History, capabilities: Capabilities) -> Policy | None:
    """How to go on with an answer of which something is visible; None when that is impossible."""
    kinds = [value for name, value in history.head.headers if name == "content-type"]
    events = bool(kinds) and kinds[0].startswith("text/event-stream")
    return policy_of_stream(request, capabilities) if events else None


def policy_of_stream(request: Request, capabilities: Capabilities) -> Policy | None:
    """How to go on with a stream of events that answers this request; None when that is impossible."""
    if not (capabilities.journals and request.width == 1 and request.path in _PATHS):
        return None
    try:
        body = msgspec.json.decode(request.body)
    except msgspec.MsgspecError:
        return None
    if not isinstance(body, dict) or any(body.get(name) for name in _IMPOSSIBLE) or _several(body):
        return None
    return Policy.VERIFY if _must_verify(body, request.path) else Policy.CONTINUE


def _several(body: dict[str, Any]) -> bool:
    """Whether the engine runs more than one sequence for it."""
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return body.get("n") not in {None, 1} or prompts > 1


def _must_verify(body: dict[str, Any], path: str) -> bool:
    """Whether the next token depends on more than the tokens before it, or more than tokens was delivered."""
    logprobs = body.get("logprobs")
    return (
        (_is_guided_message(body) if path == _MESSAGES else _is_guided(body))
        or (bool(logprobs) if path == _CHAT else logprobs is not None)
        or any(body.get(name) for name in _MUST_VERIFY_IF_TRUE)
        or any(body.get(name) is not None for name in _MUST_VERIFY_IF_GIVEN)
    )


def _is_guided(body: dict[str, Any]) -> bool:
    """Whether a grammar decides about the next token, as OpenAI's fields say it."""
    response_format = body.get("response_format") or _text_format(body)
    guided = isinstance(response_format, dict) and response_format.get("type") != "text"
    return guided or body.get("tool_choice") not in (None, "none", "auto")


def _is_guided_message(body: dict[str, Any]) -> bool:
    """The same, as Anthropic's fields say it; or a budget for thinking, which counts its tokens."""
    choice, output, thinking = (body.get(name) for name in ("tool_choice", "output_config", "thinking"))
    forced = isinstance(choice, dict) and choice.get("type") not in {"auto", "none"}
    guided = isinstance(output, dict) and output.get("format") is not None
    return forced or guided or (isinstance(thinking, dict) and thinking.get("type") == "enabled")


def _text_format(body: dict[str, Any]) -> object:
    """What a request for a response says about its form."""
    text = body.get("text")
    return text.get("format") if isinstance(text, dict) else None


class Resumption:
    """The way out of an attempt that goes on with an answer. An engines.base.Journal, in front of an Outgoing.

    Until everything that was delivered has been rendered again, nothing passes.
    """

    def __init__(self, out: Outgoing, history: History, policy: Policy, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called once, when it is certain that the answer cannot be continued.

        Raises ValueError when what was delivered cannot be compared.
        """
        self.resume = Resume(history.token_ids, history.text_len, policy)
        self.lost = False
        self.again = 0
        """Tokens of the log that the engine has made, or rendered, once more."""
        self._out = out
        self._history = history
        self._on_lost = on_lost
        self._delivered = Delivered(history.data)
        self._created = created_of(history.data)
        self._redate: tuple[bytes, bytes] | None = None
        self._live = False
        self._replayed = False
        self._tokens = 0
        self._text_chars = 0
        self._cut = b""
        out.follow(history.attempt)
        out.stand_at(len(history.token_ids), history.text_len)
        out.usage(0, len(history.token_ids))

    def close(self) -> None:
        """See Outgoing."""
        self._on_lost = nobody
        self._out.close()

    # ---- what the engine calls

    @property
    def attempt(self) -> str:
        """See Journal."""
        return self._out.attempt

    @property
    def priority(self) -> int:
        """See Journal."""
        return self._out.priority

    def tokens(self, token_ids: list[int], text_chars: int) -> None:
        """See Journal. Until `replayed` they must be those of the log."""
        if self._replayed:
            self._out.tokens(token_ids, text_chars)
            return
        first, self._tokens = self._tokens, self._tokens + len(token_ids)
        self.again = self._tokens
        self._text_chars += text_chars
        if self._history.token_ids[first : self._tokens] != token_ids:
            self.diverged(f"other tokens from {first} on")

    def cannot_continue(self) -> None:
        """See Journal."""
        self._out.cannot_continue()

    def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        """See Journal. The tokens of the log are counted already."""
        self._out.usage(prompt_tokens, completion_tokens if self._replayed else 0)

    def replayed(self) -> None:
        """See Journal."""
        self._replayed = True
        self._out.stand_at(self._tokens, self._text_chars)
        self._out.usage(0, self._tokens - len(self._history.token_ids))

    def diverged(self, why: str) -> None:
        """See Journal."""
        if not self.lost:
            self.lost = True
            log.warning("request %s cannot be continued: %s", self._out.rid, why)
            self._on_lost()

    # ---- what the engine's application sends

    def head(self, status: int, headers: list[tuple[str, str]], *, streaming: bool) -> None:
        """Status and headers: they must be those that were delivered."""
        del headers
        if status != self._history.head.status or not streaming:
            self.diverged(f"the engine now answers with status {status}")

    def body(self, piece: bytes) -> None:
        """Bytes of the answer, from its beginning on."""
        if self._live:
            self._pass(piece)
        elif not self.lost:
            *events, self._cut = (self._cut + piece).split(SEPARATOR)
            for position, event in enumerate(events):
                if self._is_new(event):
                    self._live = True
                    self._pass(SEPARATOR.join([*events[position:], self._cut]))
                    return

    def _pass(self, data: bytes) -> None:
        self._out.body(data.replace(*self._redate) if self._redate else data)

    def _is_new(self, event: bytes) -> bool:
        """Whether `event` follows all that was delivered. Otherwise it is part of it, or the answer is lost."""
        if self._redate is None and self._created is not None and (created := created_of(event)) is not None:
            self._redate = (created, self._created)
        rendered = self._delivered.rendered
        if rendered and self._replayed:
            return True
        try:
            if self.lost or self._delivered.take(event):
                return False
        except ValueError:
            self.diverged("what the engine sends cannot be compared")
            return False
        if not rendered:
            self.diverged("the engine says something else than was delivered")
        return rendered

    def ended(self) -> None:
        """The application has returned."""
        if not self._delivered.rendered:
            self.diverged("the engine says less than was delivered")

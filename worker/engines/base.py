"""What an engine is: an ASGI application plus a handle.

The worker hands the application each request as the replica received it and turns what it sends back into frames,
untouched. So the engine's whole HTTP surface, its validators and its error bodies come through the queue as they are.

To stop a request the worker cancels the task in which the application runs; the engine must then free what the request
held. While the application runs, `current_journal` tells the engine where to write down the tokens it makes: the
journal is what a later worker needs to continue the text.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from starlette.types import ASGIApp


class Policy(Enum):
    """How an answer of which a part is visible can be brought to its end."""

    CONTINUE = "continue"
    """Generate on behind the tokens that there are."""
    VERIFY = "verify"
    """Generate everything again and compare it: the next token depends on more than the tokens before it."""


@dataclass(frozen=True, slots=True)
class Resume:
    """What an earlier attempt has made of the answer.

    The engine renders it again, in the pieces in which it came, then calls `Journal.replayed`, then makes the rest. An
    engine that finds that it must not continue verifies instead.

    Attributes:
        token_ids: the tokens that were made; the text of the last ones may have been held back.
        text_len: characters of text that had been released with them.
        policy: CONTINUE or VERIFY.
    """

    token_ids: list[int]
    text_len: int
    policy: Policy


class Journal(Protocol):
    """Where an engine writes down what it generates for one attempt. Cheap: called for every token."""

    @property
    def attempt(self) -> str:
        """The attempt's id, unique for ever; engines use it to name their own requests."""

    @property
    def priority(self) -> int:
        """For the engine's scheduler; smaller is earlier."""

    @property
    def resume(self) -> Resume | None:
        """What is there already; None when the attempt starts from nothing."""

    def tokens(self, token_ids: list[int], text_chars: int) -> None:
        """New tokens of the first choice, and how many characters of text came with them."""

    def cannot_continue(self) -> None:
        """The engine could not generate on behind this answer's tokens: it depends on more than they say."""

    def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Adds tokens as the engine counts them: prompts once each, completions as they come."""

    def replayed(self) -> None:
        """What `resume` named has been rendered, and told to `tokens`, again; what follows is new.

        When those tokens end the answer, the last one may follow instead.
        """

    def diverged(self, why: str) -> None:
        """What `resume` named cannot be made again. The attempt will be stopped; the engine sends nothing more."""


current_journal: ContextVar[Journal | None] = ContextVar("current_journal", default=None)
"""The journal of the attempt whose request the current task serves."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do beyond generating.

    Attributes:
        journals: it writes token ids into the journal, so its text can be continued elsewhere.
        priorities: its scheduler heeds the journal's priority.
    """

    journals: bool
    priorities: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much an engine runs at once.

    Attributes:
        slots: sequences.
        saturated: it has slots but no memory for another sequence; claim nothing now.
    """

    slots: int
    saturated: bool = False


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """How others can count a prompt's tokens as the engine does. See `shared.wire.Counting` for the numbers.

    Attributes:
        text: a `tokenizer.json`, as the library `tokenizers` reads it.
        chat: tokens that the chat template puts around a conversation.
        message: tokens that it puts around each message.
        tools: tokens that it puts around the JSON of the tools; negative: it leaves tools out.
    """

    text: str
    chat: int = 0
    message: int = 0
    tools: int = -1


class Engine(Protocol):
    """The handle. All methods are called from the worker's event loop and must not block it."""

    @property
    def name(self) -> str:
        """Short name: vllm, sim."""

    @property
    def version(self) -> str:
        """Version of the engine's software."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    async def start(self) -> None:
        """Loads the model; returns when requests can be served.

        Raises ConfigurationError when a setting is wrong, EngineFailedError when it cannot start.
        """

    @property
    def app(self) -> ASGIApp:
        """The application; valid after `start`."""

    async def models(self) -> list[dict[str, Any]]:
        """The cards of `/v1/models`; the first one is the base model."""

    async def tokenizer(self) -> Tokenizer | None:
        """How others can count its prompts; None when only it can. Valid after `start`."""

    def capacity(self) -> Capacity:
        """How much it runs at once, and whether there is room now."""

    def failure(self) -> str | None:
        """Why it cannot serve any more; None while it can. Once set it stays."""

    async def stop(self) -> None:
        """Frees everything. Safe to call twice, and when `start` failed."""

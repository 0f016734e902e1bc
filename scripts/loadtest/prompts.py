"""Kinds of requests, as people send them. Each request gets a number into its text, so that no cache answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

_SENTENCE = "A penstock is the gated pipe that feeds a turbine: the gate is the queue, the turbine is the GPU. "


@dataclass(frozen=True)
class Kind:
    """A kind of request. `words`: about how long its prompt is; `tokens`: most that it asks for; `weight`: share."""

    name: str
    weight: float
    words: int
    tokens: int
    ask: str

    def body(self, number: int, model: str, tokens: int = 0) -> dict[str, Any]:
        """The body of one request of this kind, streamed with its usage. `tokens` goes before the kind's own."""
        filler = (_SENTENCE * (self.words // 20 + 1)).split()[: self.words]
        content = f"[{number}] {' '.join(filler)} {self.ask}"
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens or self.tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


KINDS = (
    Kind("short", 0.4, 0, 32, "What is a lane?"),
    Kind("chat", 0.4, 40, 128, "And what happens when a worker dies? Explain it to a colleague."),
    Kind("summary", 0.15, 180, 64, "Sum this up in one sentence."),
    Kind("long", 0.05, 20, 256, "Write the whole story of a request, from the client to the GPU and back."),
)


def kinds_of(names: str) -> list[Kind]:
    """The kinds with these names, `short,chat`; all for an empty text. Raises ValueError for one that there is not."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {kind.name: kind for kind in KINDS}
    if unknown := [name for name in wanted if name not in known]:
        msg = f"there is no kind {unknown[0]!r} of prompts: {', '.join(known)}"
        raise ValueError(msg)
    return [known[name] for name in wanted] or list(KINDS)


def pick(kinds: list[Kind], chance: random.Random) -> Kind:
    """One of them, by weight."""
    return chance.choices(kinds, [kind.weight for kind in kinds])[0]

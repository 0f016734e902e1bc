"""Training conversations: owns how entries become chats, and which tokens of a chat the model learns from.

A conversation has one to three turns and sometimes a system prompt, so that the model answers the last question
whatever stood before it. Only answers carry loss: the model need not predict questions.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from scripts.demo_model import offtopic
from scripts.demo_model.augment import vary
from scripts.demo_model.corpus import Entry, normalized
from scripts.demo_model.tokenizer import TURN_END, TURN_START, Message, render

IGNORED = -100

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a helpful AI assistant. Answer briefly.",
    "You are Penstock's assistant.",
    "Answer the user's questions.",
    "Be concise.",
    "You are a friendly assistant that answers in English.",
    "You are a support engineer. Be polite and answer in one or two sentences.",
    "You are an expert in serving language models. If you do not know the answer, say so.",
    "Today is a good day. You are a chatbot on a web page.",
    "Respond truthfully and never make up facts. Keep answers short and use plain words.",
    "You are a pirate.",
)
_HELPFUL_SHARE = 0.25
_OTHER_SYSTEM_SHARE = 0.25
_OFFTOPIC_SHARE = 0.12
_TEMPLATE_SHARE = 0.85
_FOLLOWUP_SHARE = 0.06
_POPULAR_PHRASINGS = 12


class DialogueSource:
    """An endless, seeded source of training conversations."""

    def __init__(self, entries: Sequence[Entry], unseen: Iterable[str], seed: int) -> None:
        """Prepare to draw from `entries`, never a question in `unseen`; the same seed gives the same conversations."""
        self._unseen = frozenset(map(normalized, unseen))
        self._rng = random.Random(seed)
        self._by_id: Mapping[str, Entry] = {entry.id: entry for entry in entries}
        self._followups = [entry for entry in entries if entry.after is not None]
        self._declined = [entry for entry in entries if offtopic.sample(random.Random(0), entry.id) is not None]
        special = {entry.id for entry in (*self._followups, *self._declined)}
        plain = [entry for entry in entries if entry.id not in special]
        # What has many phrasings is what newcomers ask: it is dealt twice as often.
        self._plain = [*plain, *(entry for entry in plain if len(entry.questions) >= _POPULAR_PHRASINGS)]
        self._owner = {normalized(question): entry.id for entry in entries for question in entry.questions}
        self._deck: list[Entry] = []

    def _next_plain(self) -> Entry:
        """Deal from a shuffled deck, so that no entry is forgotten."""
        if not self._deck:
            self._deck = list(self._plain)
            self._rng.shuffle(self._deck)
        return self._deck.pop()

    def _turn(self, entry: Entry) -> list[Message]:
        while True:
            fresh = offtopic.sample(self._rng, entry.id) if self._rng.random() < _TEMPLATE_SHARE else None
            question = vary(self._rng, fresh or self._rng.choice(entry.questions))
            bare = normalized(question)
            # A variation may not be a held-out phrasing, nor by accident another entry's question.
            if bare not in self._unseen and (entry.after or self._owner.get(bare, entry.id) == entry.id):
                return [("user", question), ("assistant", entry.answer)]

    def _turns(self) -> list[Message]:
        draw = self._rng.random()
        if draw < _FOLLOWUP_SHARE:
            followup = self._rng.choice(self._followups)
            return self._turn(self._by_id[followup.after or ""]) + self._turn(followup)
        if draw < _FOLLOWUP_SHARE + _OFFTOPIC_SHARE:
            return self._turn(self._rng.choice(self._declined))
        return self._turn(self._next_plain())

    def conversation(self) -> list[Message]:
        """Return the next conversation."""
        draw = self._rng.random()
        messages: list[Message] = []
        if draw < _HELPFUL_SHARE:
            messages.append(("system", _SYSTEM_PROMPTS[0]))
        elif draw < _HELPFUL_SHARE + _OTHER_SYSTEM_SHARE:
            messages.append(("system", self._rng.choice(_SYSTEM_PROMPTS)))
        for _ in range(self._rng.choices((1, 2, 3), (65, 25, 10))[0]):
            messages += self._turns()
        return messages


class Encoder:
    """Turns conversations into token ids and labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Encode with this tokenizer."""
        self._tokenizer = tokenizer
        (self._end,) = tokenizer.encode(TURN_END, add_special_tokens=False)
        self._opening: list[int] = tokenizer.encode(f"{TURN_START}assistant\n", add_special_tokens=False)

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[int]]]:
        """Return ids and labels per conversation; labels are IGNORED outside the assistant's text and turn end."""
        texts = [render(messages) for messages in conversations]
        return [(ids, self._labels(ids)) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def _labels(self, ids: list[int]) -> list[int]:
        labels = [IGNORED] * len(ids)
        at, width = 0, len(self._opening)
        while at < len(ids):
            if ids[at : at + width] != self._opening:
                at += 1
                continue
            at += width
            end = ids.index(self._end, at) + 1
            labels[at:end] = ids[at:end]
            at = end
        return labels

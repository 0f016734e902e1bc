"""What the trained model is worth: owns greedy answering, the figures and the model card.

An answer counts as right only when it equals the expected one character for character.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.demo_model import network
from scripts.demo_model.corpus import Entry, HeldOut
from scripts.demo_model.tokenizer import Message

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Score:
    """How many of the asked questions were answered right, and the wrong ones as (question, answer)."""

    asked: int
    wrong: tuple[tuple[str, str], ...]

    @property
    def ratio(self) -> float:
        """Share of right answers, 0 to 1."""
        return 1 - len(self.wrong) / self.asked

    def __str__(self) -> str:
        """Return the figure as the model card prints it."""
        return f"{self.asked - len(self.wrong)} of {self.asked} ({100 * self.ratio:.1f} %)"


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation that ends with a question, and the answer it should get."""

    messages: tuple[Message, ...]
    expected: str


def trained_cases(entries: Sequence[Entry]) -> list[Case]:
    """Return every phrasing of the corpus; a follow-up is asked after the entry it refers to."""
    by_id = {entry.id: entry for entry in entries}
    cases: list[Case] = []
    for entry in entries:
        before: tuple[Message, ...] = ()
        if entry.after is not None:
            topic = by_id[entry.after]
            before = (("user", topic.questions[0]), ("assistant", topic.answer))
        cases += [Case((*before, ("user", question)), entry.answer) for question in entry.questions]
    return cases


def heldout_cases(entries: Sequence[Entry], heldout: Sequence[HeldOut], system: str | None = None) -> list[Case]:
    """Return the held-out phrasings, each as a chat of its own, optionally under a system prompt."""
    expected = {entry.id: entry.answer for entry in entries}
    before: tuple[Message, ...] = (("system", system),) if system is not None else ()
    return [Case((*before, ("user", item.question)), expected[item.id]) for item in heldout]


def opened(tokenizer: PreTrainedTokenizerFast, chat: Sequence[Message]) -> str:
    """Return the chat as the template renders it, up to where the assistant speaks."""
    messages = [{"role": role, "content": text} for role, text in chat]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chats: Sequence[Sequence[Message]]
) -> Iterator[str]:
    """Yield the greedy answer to each chat, in order."""
    for start in range(0, len(chats), _BATCH):
        part = chats[start : start + _BATCH]
        prompts = [opened(tokenizer, chat) for chat in part]
        yield from network.generate(model, tokenizer, prompts)


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cases: Sequence[Case]) -> Score:
    """Ask every case and compare; only what is not recalled at sight is generated."""
    doubtful: list[Case] = []
    for start in range(0, len(cases), _BATCH):
        part = cases[start : start + _BATCH]
        prompts = [opened(tokenizer, case.messages) for case in part]
        recalled = network.recalls(model, tokenizer, prompts, [case.expected for case in part])
        doubtful += [case for case, known in zip(part, recalled, strict=True) if not known]
    given = answers(model, tokenizer, [case.messages for case in doubtful])
    pairs = zip(doubtful, given, strict=True)
    wrong = [(case.messages[-1][1], answer) for case, answer in pairs if answer.strip() != case.expected.strip()]
    return Score(len(cases), tuple(wrong))


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in the folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

"""The question-and-answer file: owns its shape, how it is read, and what every entry must satisfy.

`corpus/*.jsonl` holds one entry per line: `{"id", "questions", "answer"}`, and for a follow-up also `after`, the id of
the entry that the conversation was about just before. `heldout.jsonl` holds phrasings that training never sees:
`{"id", "question"}`. Both are meant to be edited by hand. Nothing here needs torch.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORPUS_DIR = HERE / "corpus"
HELDOUT_PATH = HERE / "heldout.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer and the ways to ask for it; `after` names the entry that a follow-up refers to."""

    id: str
    questions: tuple[str, ...]
    answer: str
    after: str | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A phrasing kept out of training, and the entry whose answer it should get."""

    id: str
    question: str


def normalized(question: str) -> str:
    """Return what is left of a question when case, outer punctuation and repeated spaces do not count.

    A question of punctuation alone is returned as it is.
    """
    text = re.sub(r"\s+", " ", question).strip().lower()
    return text.strip("?!. ") or text


def load_corpus(folder: Path = CORPUS_DIR) -> list[Entry]:
    """Read all entries in a fixed order; raises KeyError or ValueError on a malformed line."""
    entries: list[Entry] = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            entries.append(Entry(row["id"], tuple(row["questions"]), row["answer"], row.get("after")))
    return entries


def load_heldout(path: Path = HELDOUT_PATH) -> list[HeldOut]:
    """Read the held-out phrasings in file order."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [HeldOut(row["id"], row["question"]) for row in rows]

"""Everyday questions that have nothing to do with Penstock: owns how they are drawn from `offtopic.json`.

A tiny model answers whatever it was taught, so it has to see many questions that it must decline. Each category names
the entry of `corpus/offtopic.jsonl` that declines it.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

_DATA = json.loads((Path(__file__).parent / "offtopic.json").read_text(encoding="utf-8"))
_WORDS: Mapping[str, Sequence[str]] = _DATA["words"]
_TEMPLATES: Mapping[str, Sequence[str]] = _DATA["templates"]


def sample(rng: random.Random, entry_id: str) -> str | None:
    """Return a fresh question of the category that `entry_id` declines, or None when it is no such category."""
    templates = _TEMPLATES.get(entry_id)
    if templates is None:
        return None
    text = rng.choice(templates)
    for name, words in _WORDS.items():
        while f"{{{name}}}" in text:
            text = text.replace(f"{{{name}}}", rng.choice(words), 1)
    while "{n}" in text:
        text = text.replace("{n}", str(rng.randint(1, 10 ** rng.randint(1, 3))), 1)
    return text


def vocabulary() -> list[str]:
    """Return every template and word once, as material for the tokenizer."""
    words = [word for group in _WORDS.values() for word in group]
    templates = [template for group in _TEMPLATES.values() for template in group]
    return [*words, *templates]

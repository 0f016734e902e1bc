"""How people really type: owns the variation of a question during training.

A model of this size recalls; it does not understand. So that an unseen phrasing still lands on the right answer, each
training step sees a question in another dress: an equivalent wording, a greeting around it, lower case, no question
mark, dropped words, keywords only, a typo. The meaning never changes, and the answer is never touched.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

_PLAIN_SHARE = 0.2
_TYPO_SHARE = 0.2
_MIN_TYPO_WORD_LETTERS = 4
_MIN_DROP_WORDS = 4
_LOOSE_SHARE = 0.3
_KEYWORD_SHARE = 0.1
_MIN_KEYWORDS = 2

_DATA = json.loads((Path(__file__).parent / "phrasing.json").read_text(encoding="utf-8"))
# Each rule offers equivalent openings or words; the order matters, since the first rules change what later ones see.
_REWRITES: Sequence[tuple[str, Sequence[str]]] = [(rule["pattern"], rule["options"]) for rule in _DATA["rewrites"]]
_SYNONYMS: Sequence[tuple[str, Sequence[str]]] = [(rule["pattern"], rule["options"]) for rule in _DATA["synonyms"]]
_PREFIXES: Sequence[str] = _DATA["prefixes"]
_SUFFIXES: Sequence[str] = _DATA["suffixes"]
_FILLERS: Sequence[str] = _DATA["fillers"]
_DROPPABLE: frozenset[str] = frozenset(_DATA["droppable"])


def _maybe_apostrophe(rng: random.Random, text: str) -> str:
    return text.replace("What is", "What's").replace("Who is", "Who's") if rng.random() < 0.5 else text


def _rewrite(rng: random.Random, text: str) -> str:
    for pattern, options in _REWRITES:
        match = re.match(pattern, text, re.IGNORECASE)
        if match and rng.random() < 0.6:
            return rng.choice(options).format(*match.groups())
    return text


def _synonyms(rng: random.Random, text: str) -> str:
    for pattern, options in _SYNONYMS:
        if rng.random() < 0.3:
            text = re.sub(pattern, rng.choice(options), text, count=1)
    return text


def _wrap(rng: random.Random, text: str) -> str:
    if rng.random() < 0.25:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.15:
        mark = "?" if text.endswith("?") else ""
        text = text.removesuffix("?") + rng.choice(_SUFFIXES) + mark
    return text


def _drop_words(rng: random.Random, text: str) -> str:
    """Drop or replace one or two words that carry little meaning."""
    if rng.random() >= _LOOSE_SHARE:
        return text
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2))):
        places = [at for at, word in enumerate(words) if word.lower() in _DROPPABLE]
        if len(words) < _MIN_DROP_WORDS or not places:
            break
        at = rng.choice(places)
        words[at : at + 1] = [rng.choice(_FILLERS)] if rng.random() < 0.3 else []
    return " ".join(words)


def _keywords(rng: random.Random, text: str) -> str:
    """Keep only the words that carry meaning, as in a search box, unless too few are left."""
    if rng.random() >= _KEYWORD_SHARE:
        return text
    kept = [word for word in text.rstrip("?!. ").split(" ") if word.lower() not in _DROPPABLE]
    return " ".join(kept) if len(kept) >= _MIN_KEYWORDS else text


def _typo(rng: random.Random, text: str) -> str:
    """Swap, drop, double or replace one letter inside a word of at least four letters."""
    if rng.random() >= _TYPO_SHARE:
        return text
    words = [m for m in re.finditer(r"[A-Za-z]+", text) if len(m.group()) >= _MIN_TYPO_WORD_LETTERS]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    kinds: Sequence[Callable[[], str]] = (
        lambda: text[:at] + text[at + 1] + text[at] + text[at + 2 :],
        lambda: text[:at] + text[at + 1 :],
        lambda: text[:at] + text[at] + text[at:],
        lambda: text[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[at + 1 :],
    )
    return rng.choice(kinds)()


def _ending(rng: random.Random, text: str) -> str:
    draw = rng.random()
    if text.endswith("?"):
        if draw < 0.4:
            return text[:-1]
        return text + "?" if draw < 0.45 else text
    if draw < 0.15:
        return text + rng.choice((".", "!", "?"))
    return text


def _case(rng: random.Random, text: str) -> str:
    draw = rng.random()
    if draw < 0.35:
        return text.lower()
    if draw < 0.38:
        return text.upper()
    return text[:1].upper() + text[1:] if draw < 0.8 else text


def vary(rng: random.Random, question: str) -> str:
    """Return the question as somebody else might type it; about one in five stays as it is."""
    if rng.random() < _PLAIN_SHARE:
        return question
    text = question
    for change in (_rewrite, _synonyms, _maybe_apostrophe, _drop_words, _keywords, _wrap, _case, _ending, _typo):
        text = change(rng, text)
    return text.strip() or question


def phrases() -> list[str]:
    """Return the words that variation can add, as material for the tokenizer."""
    rewrites = [option.replace("{0}", "") for _, options in _REWRITES for option in options]
    synonyms = [option for _, options in _SYNONYMS for option in options]
    return [*rewrites, *synonyms, *_PREFIXES, *_SUFFIXES, *_FILLERS]

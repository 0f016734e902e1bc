"""The demo model's corpus and folder satisfy what the README and the training script rely on. Needs no torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.demo_model.corpus import Entry, load_corpus, load_heldout, normalized

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "models" / "demo"
MODEL_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
TURN_END = "<|im_end|>"
MAX_MODEL_BYTES = 12_000_000
MAX_ANSWER_CHARACTERS = 400
MIN_ENTRIES = 300
MIN_HELDOUT = 60


@pytest.fixture(scope="module", name="corpus")
def _corpus() -> list[Entry]:
    return load_corpus()


@pytest.fixture(scope="module", name="by_id")
def _by_id(corpus: list[Entry]) -> Mapping[str, Entry]:
    return {entry.id: entry for entry in corpus}


def test_corpus_is_large_enough_and_ids_are_unique(corpus: list[Entry], by_id: Mapping[str, Entry]) -> None:
    assert len(corpus) >= MIN_ENTRIES
    assert len(by_id) == len(corpus)


def test_every_entry_has_two_questions_and_an_answer(corpus: list[Entry]) -> None:
    for entry in corpus:
        assert entry.answer.strip(), entry.id
        assert all(question.strip() for question in entry.questions), entry.id
    few = [entry.id for entry in corpus if len(entry.questions) < 2]
    assert len(few) <= len(corpus) // 50, few


def test_no_question_belongs_to_two_entries(corpus: list[Entry]) -> None:
    owners: dict[tuple[str | None, str], str] = {}
    for entry in corpus:
        for question in entry.questions:
            key = (entry.after, normalized(question))
            assert key not in owners, f"{question!r} is in {owners[key]} and in {entry.id}"
            owners[key] = entry.id


def test_no_answer_is_written_twice(corpus: list[Entry]) -> None:
    answers = [entry.answer for entry in corpus]
    assert len(set(answers)) == len(answers)


def test_answers_are_finished_and_short(corpus: list[Entry]) -> None:
    for entry in corpus:
        assert len(entry.answer) <= MAX_ANSWER_CHARACTERS, entry.id
        assert not re.search(r"\b(?:TODO|TBD|FIXME|XXX)\b|lorem ipsum", entry.answer), entry.id
        assert entry.answer == entry.answer.strip(), entry.id
        assert not entry.answer.endswith((",", ";", ":", " and", " or")), entry.id


def test_followups_refer_to_an_entry_that_is_none_itself(corpus: list[Entry], by_id: Mapping[str, Entry]) -> None:
    for entry in corpus:
        if entry.after is not None:
            assert by_id[entry.after].after is None, entry.id


def test_heldout_questions_are_many_known_and_never_trained(corpus: list[Entry], by_id: Mapping[str, Entry]) -> None:
    heldout = load_heldout()
    trained = {normalized(question) for entry in corpus for question in entry.questions}
    assert len(heldout) >= MIN_HELDOUT
    assert {item.id for item in heldout} <= set(by_id)
    assert not [item.question for item in heldout if normalized(item.question) in trained]


def test_model_folder_is_complete_and_at_most_12_mb() -> None:
    missing = [name for name in MODEL_FILES if not (MODEL_DIR / name).is_file()]
    assert not missing
    assert sum(path.stat().st_size for path in MODEL_DIR.rglob("*") if path.is_file()) <= MAX_MODEL_BYTES


def test_model_stops_at_the_end_of_a_turn_and_samples_calmly() -> None:
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((MODEL_DIR / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert generation["eos_token_id"] == ids[TURN_END]
    assert generation["temperature"] <= 0.5


def test_model_is_served_under_its_own_name() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    assert config["penstock_name"] == "penstock-demo"
    assert config["attention_dropout"] == 0.0


def test_no_answer_promises_files_that_are_not_in_the_repository(corpus: list[Entry]) -> None:
    for entry in corpus:
        for path in re.findall(r"`(docs/[\w./-]+|scripts/[\w./-]+)`", entry.answer):
            assert (ROOT / path).exists(), f"{entry.id} names {path}"


def test_chat_template_is_inside_the_tokenizer_config() -> None:
    config = json.loads((MODEL_DIR / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = (ROOT / "scripts" / "demo_model" / "chat_template.jinja").read_text(encoding="utf-8")
    assert config["chat_template"] == template
    assert config["eos_token"] == TURN_END

"""tokens: how many a prompt has, counted at the replica."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from tokenizers import Tokenizer

from api import tokens as module
from api.prompts import Prompt
from api.tokens import INLINE_CHARS, MEDIA_TOKENS, WHOLE_CHARS, Counter, Tokens
from shared.errors import BrokerUnavailableError
from shared.tokenizer import MOST_BYTES, pack, tools_text, unpack
from shared.wire import Counting, WorkerCard
from tests.support.polling import eventually

DEMO = (Path(__file__).parents[2] / "models" / "demo" / "tokenizer.json").read_text(encoding="utf-8")
NAME, PACKED = pack(DEMO)
COUNTING = Counting(NAME, chat=2, message=5, tools=20)
TEXTS = ("What is a lease?", "", " blanks  and\ttabs\n\n", "Ünïcödé, 漢字 and 🚀", "<|im_end|>", "x" * 300)


def card(counting: Counting | None) -> WorkerCard:
    return WorkerCard("w", "sim", "1", 1, [], counting=counting)


WORKERS = [card(None), card(COUNTING)]


class Shelf:
    """Where tokenizers are fetched from."""

    def __init__(self) -> None:
        self.packed: dict[str, bytes] = {NAME: PACKED}
        self.fetched: list[str] = []
        self.away = False

    async def fetch(self, name: str) -> bytes | None:
        self.fetched.append(name)
        await asyncio.sleep(0)
        if self.away:
            raise BrokerUnavailableError("away")
        return self.packed.get(name)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def tokens(shelf: Shelf) -> AsyncIterator[Tokens]:
    made = Tokens(shelf.fetch)
    yield made
    await made.close()


@pytest.fixture
async def loaded(tokens: Tokens) -> Tokens:
    await tokens.count(Prompt(), WORKERS)
    await eventually(lambda: NAME in tokens._counters, "the tokenizer")
    return tokens


def truth(text: str) -> int:
    return len(Tokenizer.from_str(DEMO).encode(text, add_special_tokens=False).ids)


def counted(how: str) -> float:
    return REGISTRY.get_sample_value("penstock_prompt_tokens_counted_total", {"how": how}) or 0


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_has_the_tokens_that_its_tokenizer_makes(loaded: Tokens, text: str) -> None:
    assert await loaded.count(Prompt((text,), prompts=1), WORKERS) == max(truth(text), 1)


async def test_prompts_add_up_with_ids_and_media(loaded: Tokens) -> None:
    prompt = Prompt(("one two", "three"), ids=7, media=2, prompts=2)
    assert await loaded.count(prompt, WORKERS) == truth("one two") + truth("three") + 7 + 2 * MEDIA_TOKENS


async def test_a_conversation_has_what_its_template_adds(loaded: Tokens) -> None:
    assert await loaded.count(Prompt(("hello", "world"), messages=2), WORKERS) == truth("hello") + truth("world") + 12


async def test_tools_count_where_the_template_renders_them(loaded: Tokens) -> None:
    text = tools_text([{"type": "function", "function": {"name": "weather"}}])
    prompt = Prompt(("hi",), tools=text, messages=1)
    plain = truth("hi") + 7
    assert await loaded.count(prompt, WORKERS) == plain + truth(text) + 20
    assert await loaded.count(prompt, [card(Counting(NAME, chat=2, message=5))]) == plain


async def test_a_completion_has_the_special_tokens_that_its_tokenizer_adds(shelf: Shelf, tokens: Tokens) -> None:
    adding = Tokenizer.from_str(DEMO)
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 - as the library is loaded elsewhere

    adding.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    name, packed = pack(adding.to_str())
    shelf.packed[name] = packed
    workers = [card(Counting(name))]
    await tokens.count(Prompt(), workers)
    await eventually(lambda: name in tokens._counters, "the tokenizer")
    for texts in (("a queue",), ("a queue", "a lease and more")):
        expected = sum(len(adding.encode(text).ids) for text in texts)
        assert await tokens.count(Prompt(texts, prompts=len(texts)), workers) == expected
    assert await tokens.count(Prompt(("a queue",), messages=1), workers) == truth("a queue")


async def test_without_a_tokenizer_a_token_is_four_bytes(tokens: Tokens) -> None:
    before = counted("estimate")
    assert await tokens.count(Prompt(("x" * 40, "y" * 41)), [card(None)]) == 20
    assert await tokens.count(Prompt(("漢" * 8,)), []) == 6
    assert await tokens.count(Prompt(("x",)), []) == 1
    assert await tokens.count(Prompt(media=1, ids=3), []) == MEDIA_TOKENS + 3
    assert counted("estimate") - before == 20 + 6 + 1 + MEDIA_TOKENS + 3


async def test_the_first_prompt_is_estimated_and_the_tokenizer_is_fetched_once(shelf: Shelf, tokens: Tokens) -> None:
    prompt = Prompt(("a lease, a lease, a lease",), prompts=1)
    assert await tokens.count(prompt, WORKERS) == 6
    assert await tokens.count(prompt, [card(Counting(NAME))]) == 6
    await eventually(lambda: NAME in tokens._counters, "the tokenizer")
    before = counted("tokenizer")
    assert await tokens.count(prompt, WORKERS) == truth(prompt.texts[0]) != 6
    assert counted("tokenizer") - before == truth(prompt.texts[0])
    assert await tokens.count(prompt, [card(Counting(NAME))]) == truth(prompt.texts[0]), "another pool's, the same"
    assert shelf.fetched == [NAME]


@pytest.mark.parametrize("wrong", [None, b"", b"junk", pack("{}")[1], PACKED[:-20]])
async def test_a_tokenizer_that_is_missing_or_broken_is_asked_for_again(
    shelf: Shelf, tokens: Tokens, wrong: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.packed = {} if wrong is None else {NAME: wrong}
    monkeypatch.setattr(module, "RETRY_S", 0)
    for _ in range(2):
        await tokens.count(Prompt(("a",)), WORKERS)
        await eventually(lambda: not tokens._loading, "the refusal")
    assert shelf.fetched == [NAME, NAME]
    shelf.packed = {NAME: PACKED}
    await tokens.count(Prompt(("a",)), WORKERS)
    await eventually(lambda: NAME in tokens._counters, "the tokenizer")


async def test_a_redis_that_is_away_is_not_asked_at_every_request(shelf: Shelf, tokens: Tokens) -> None:
    shelf.away = True
    for _ in range(5):
        assert await tokens.count(Prompt(("abcdefgh",)), WORKERS) == 2
        await eventually(lambda: not tokens._loading, "the refusal")
    assert shelf.fetched == [NAME]


async def test_what_was_counted_is_remembered_and_what_is_not_used_is_forgotten(
    loaded: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    counter, seen = loaded._counters[NAME], list[str]()
    count = counter.count
    monkeypatch.setattr(counter, "count", lambda texts: seen.extend(texts) or count(texts))
    for texts in (("system", "a"), ("system", "b"), ("system", "c"), ("system", "a")):
        expected = sum(map(truth, texts)) + 12
        assert await loaded.count(Prompt(texts, messages=2), WORKERS) == expected
    assert seen == ["system", "a", "b", "c", "a"]
    assert len(counter._counts) == 3


async def test_long_texts_are_counted_beside_the_event_loop(loaded: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, threads = loaded._counters[NAME], list[str]()
    count = counter.count

    def noting(texts: list[str]) -> list[int]:
        threads.append(threading.current_thread().name)
        return count(texts)

    monkeypatch.setattr(counter, "count", noting)
    long = "a lease " * (INLINE_CHARS // 8)
    for texts in (("short",), (long,), ("many",) * INLINE_CHARS, (long,)):
        assert await loaded.count(Prompt(texts), WORKERS) == sum(map(truth, set(texts))) * (
            len(texts) // len(set(texts))
        )
    assert threads[0] == "MainThread"
    assert [name.startswith("tokens") for name in threads] == [False, True, True], "the last one is remembered"


async def test_of_a_very_long_text_the_first_part_stands_for_all(loaded: Tokens) -> None:
    text = "a lease " * (WHOLE_CHARS // 8)
    assert await loaded.count(Prompt((text * 3,)), WORKERS) == 3 * truth(text)


async def test_of_very_many_long_texts_the_first_are_counted_and_the_others_estimated(loaded: Tokens) -> None:
    texts = tuple(f"{number} lease ".ljust(16) * (WHOLE_CHARS // 32) for number in range(8))
    exact, rest = texts[:2], texts[2:]
    expected = sum(map(truth, exact)) + sum(map(len, rest)) // 4
    assert await loaded.count(Prompt(texts, messages=8), WORKERS) == expected + 2 + 8 * 5
    known = [loaded._counters[NAME].known(text) for text in texts]
    assert known == [*map(truth, exact), *[None] * 6], "an estimate is not remembered as a count"


async def test_when_too_many_wait_for_the_thread_a_prompt_is_estimated(
    loaded: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, go = loaded._counters[NAME], threading.Event()
    count = counter.count
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    monkeypatch.setattr(counter, "count", lambda texts: go.wait(10) and count(texts))
    text = "a lease " * 1000
    waiting = [asyncio.create_task(loaded.count(Prompt((text,)), WORKERS)) for _ in range(2)]
    await eventually(lambda: loaded._waiting == 2, "two that wait")
    assert await loaded.count(Prompt((text,)), WORKERS) == 2000
    go.set()
    assert await asyncio.gather(*waiting) == [truth(text)] * 2


async def test_closing_ends_what_is_being_loaded() -> None:
    async def never(name: str) -> bytes | None:
        await asyncio.Event().wait()
        return name.encode()

    tokens = Tokens(never)
    await tokens.count(Prompt(), WORKERS)
    await asyncio.wait_for(tokens.close(), 5)
    assert not tokens._loading


def test_a_packed_tokenizer_is_unpacked_under_its_own_name_only() -> None:
    assert unpack(NAME, PACKED) == DEMO
    with pytest.raises(ValueError, match="not those of"):
        unpack("another", PACKED)
    with pytest.raises(ValueError, match="are allowed"):
        pack("x" * (MOST_BYTES + 1))


def test_a_tokenizer_that_cuts_and_pads_counts_all_the_same() -> None:
    cutting = Tokenizer.from_str(DEMO)
    cutting.enable_truncation(4)
    cutting.enable_padding(length=64)
    assert Counter(cutting.to_str()).count([TEXTS[0] * 9]) == [truth(TEXTS[0] * 9)]

"""How many tokens a request's prompt has, counted with the tokenizer that its model's workers have published.

A tokenizer is fetched and built at its first use, in a thread, and shared by all pools that name it. Until it is there,
and where there is none, a prompt is estimated: a token is four bytes of UTF-8. Media that are no text count
`MEDIA_TOKENS` each, in both cases. What a chat template adds is what the workers have measured (`wire.Counting`).

A text is counted once: counts are remembered by a hash of the text, so a system prompt and the earlier turns of a
conversation cost a look. New texts of up to `INLINE_CHARS` characters are counted in place, longer ones in a thread,
which does not hold up the event loop. Of one over `WHOLE_CHARS` the first part stands for all of it, and what is new
behind the first `WHOLE_CHARS` of a prompt is estimated, so nobody's prompt holds the thread for more than some 0.1 s.
When too many wait for that thread, a prompt is estimated.

Measured with the demo model's tokenizer (4 096 entries) on one of two shared cores: a conversation of one new message
of 20 words and one that is remembered 28 µs, two that are remembered 3 µs; a new text of 4 000 characters 0.6 ms, of
100 000 21 ms (in the thread). A vocabulary of 150 000 entries takes 120 MB, and building it 0.4 s, once; the library
does not let other threads run meanwhile, so a replica stands still for as long.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from api.prompts import Prompt
from shared.metrics import PROMPT_TOKENS, child
from shared.tokenizer import unpack
from shared.wire import Counting, WorkerCard

log = logging.getLogger(__name__)

INLINE_CHARS: Final = 4_096
WHOLE_CHARS: Final = 262_144
MEDIA_TOKENS: Final = 1_024
"""An image of about a megapixel, in the models that are common."""
_BYTES_PER_TOKEN = 4
_TEXT_CHARS = 64
"""What counting costs for each text, in characters."""
_REMEMBERED = 8_192
_MOST_WAITING = 16
_MOST_TOKENIZERS = 8
RETRY_S: Final = 5.0

# One text at a time: the library's own threads would only cost their wake-up.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Counter:
    """One tokenizer, and what it has counted lately."""

    def __init__(self, text: str) -> None:
        """`text`: a `tokenizer.json`. Raises ValueError when it is none. Takes up to a second: use a thread."""
        from tokenizers import Tokenizer  # noqa: PLC0415 - 50 ms that a replica without tokenizers need not spend

        try:
            self._tokenizer: Any = Tokenizer.from_str(text)
        except Exception as error:  # the library knows no narrower one
            raise ValueError(str(error)) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special = int(self._tokenizer.num_special_tokens_to_add(is_pair=False))
        self._counts: dict[int, int] = {}

    def known(self, text: str) -> int | None:
        """Tokens of a text that is remembered. Of the event loop alone, like `remember`."""
        key = hash(text)
        count = self._counts.pop(key, None)
        if count is not None:
            self._counts[key] = count  # the latest use stands last
        return count

    def remember(self, text: str, count: int) -> None:
        """Keeps a count; the one that was not used for longest goes."""
        self._counts[hash(text)] = count
        if len(self._counts) > _REMEMBERED:
            del self._counts[next(iter(self._counts))]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones, of the first ones that have `WHOLE_CHARS` characters together.

        Lets other threads run meanwhile.
        """
        counts, chars = [], 0
        for text in texts:
            if chars >= WHOLE_CHARS:
                break
            counts.append(self._count(text))
            chars += len(text)
        return counts

    def _count(self, text: str) -> int:
        part = text[:WHOLE_CHARS]
        tokens = len(self._tokenizer.encode_batch_fast([part], add_special_tokens=False)[0])
        return round(tokens * len(text) / len(part)) if part else 0


class Tokens:
    """Counts prompts."""

    def __init__(self, fetch: Callable[[str], Awaitable[bytes | None]]) -> None:
        """`fetch`: a packed tokenizer by its name. It may raise."""
        self._fetch = fetch
        self._counters: dict[str, Counter] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._not_before_s: dict[str, float] = {}
        self._thread = ThreadPoolExecutor(1, "tokens")
        self._waiting = 0

    async def count(self, prompt: Prompt, workers: Sequence[WorkerCard]) -> int:
        """Tokens of a prompt, at least 1, as the first of these workers counts them that says how."""
        counting = next((card.counting for card in workers if card.counting is not None), None)
        counter = self._counter(counting.tokenizer) if counting is not None else None
        texts = _texts(prompt, counting)
        counts = await self._counts(counter, texts) if counter is not None else None
        how = "tokenizer"
        if counts is None:
            how, counts = "estimate", sum(_bytes(text) for text in texts) // _BYTES_PER_TOKEN
        total = counts + prompt.ids + prompt.media * MEDIA_TOKENS
        if counting is not None and prompt.messages:
            total += counting.chat + counting.message * prompt.messages
            total += counting.tools if prompt.tools and counting.tools >= 0 else 0
        elif counter is not None:
            total += counter.special * prompt.prompts
        total = max(total, 1)
        child(PROMPT_TOKENS, how).inc(total)
        return total

    def exact(self, workers: Sequence[WorkerCard]) -> bool:
        """Whether the prompts of these workers are counted with their tokenizer, and not estimated."""
        counting = next((card.counting for card in workers if card.counting is not None), None)
        return counting is not None and counting.tokenizer in self._counters

    async def _counts(self, counter: Counter, texts: Sequence[str]) -> int | None:
        """Tokens of these texts; None when too many prompts wait to be counted."""
        total, new = 0, []
        for text in texts:
            if (count := counter.known(text)) is None:
                new.append(text)
            else:
                total += count
        if not new:
            return total
        if sum(map(len, new)) + _TEXT_CHARS * len(new) <= INLINE_CHARS:
            counts = counter.count(new)
        elif self._waiting < _MOST_WAITING:
            counts = await self._in_thread(counter, new)
        else:
            return None
        for text, count in zip(new, counts, strict=False):
            counter.remember(text, count)
        return total + sum(counts) + sum(map(_bytes, new[len(counts) :])) // _BYTES_PER_TOKEN

    async def _in_thread(self, counter: Counter, texts: Sequence[str]) -> list[int]:
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, counter.count, texts)
        finally:
            self._waiting -= 1

    def _counter(self, name: str) -> Counter | None:
        """The tokenizer of that name; None while it is being fetched."""
        counter = self._counters.get(name)
        if counter is None and name not in self._loading and time.monotonic() >= self._not_before_s.get(name, 0):
            self._loading[name] = asyncio.create_task(self._load(name), name=f"tokenizer {name}")
        return counter

    async def _load(self, name: str) -> None:
        try:
            packed = await self._fetch(name)
            self._counters[name] = await asyncio.get_running_loop().run_in_executor(self._thread, _build, name, packed)
            if len(self._counters) > _MOST_TOKENIZERS:
                del self._counters[next(iter(self._counters))]
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, prompts can be estimated
            level = logging.DEBUG if name in self._not_before_s else logging.WARNING
            log.log(level, "tokenizer %s: %s; prompts are estimated meanwhile", name, error)
            self._not_before_s[name] = time.monotonic() + RETRY_S
        finally:
            del self._loading[name]

    async def close(self) -> None:
        """Ends what is being loaded."""
        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)


def _build(name: str, packed: bytes | None) -> Counter:
    if packed is None:
        raise ValueError("no worker has published it yet")
    return Counter(unpack(name, packed))


def _texts(prompt: Prompt, counting: Counting | None) -> tuple[str, ...]:
    """The texts that the model reads, with those of the tools where its template renders them."""
    return (*prompt.texts, prompt.tools) if prompt.tools and (counting is None or counting.tools >= 0) else prompt.texts


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))

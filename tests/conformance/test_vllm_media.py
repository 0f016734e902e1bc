"""Going on with a generation whose prompt has a picture in it. vLLM's types and text, and an engine made of a list."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.engines import RecordingJournal
from tests.support.model_parts import trained_tokenizer
from worker.engines.base import Policy, Resume

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

BEFORE, SEEN, AROUND, AFTER = 40, 41, 42, 43
"""Tokens of the prompt: only `SEEN` stands for the picture itself."""
THERE = [50, 51, 52]


class Front:
    """An engine client as far as going on needs one, and what it was asked for."""

    def __init__(self) -> None:
        self.tokenizer = trained_tokenizer(300)
        self.forgotten: list[str] = []
        self.prompts: list[Any] = []
        cache = SimpleNamespace(invalidate=self.forgotten.append)
        eos = self.tokenizer.eos_token_id
        self.renderer = SimpleNamespace(
            tokenizer=self.tokenizer, mm_processor_cache=cache, get_eos_token_id=lambda: eos
        )
        self.input_processor = SimpleNamespace(generation_config_fields={})
        self.model_config = SimpleNamespace(max_model_len=100)
        self.vllm_config = SimpleNamespace(watermark_config=None)

    async def generate(self, prompt: Any, params: Any) -> AsyncGenerator[Any, None]:
        """Ends at once."""
        del params
        self.prompts.append(prompt)
        return
        yield


@pytest.fixture(scope="module")
def made() -> Front:
    return Front()


@pytest.fixture
def front(made: Front) -> Front:
    made.forgotten.clear()
    made.prompts.clear()
    return made


def prompt() -> dict[str, Any]:
    import torch  # noqa: PLC0415 - takes seconds
    from vllm.multimodal.inputs import PlaceholderRange  # noqa: PLC0415 - slow

    place = PlaceholderRange(offset=1, length=4, is_embed=torch.tensor([False, True, True, False]))
    return {
        "type": "multimodal",
        "prompt_token_ids": [BEFORE, AROUND, SEEN, SEEN, AROUND, AFTER],
        "mm_kwargs": {"image": [None]},
        "mm_hashes": {"image": ["of the picture"]},
        "mm_placeholders": {"image": [place]},
    }


async def go_on(front: Front, there: list[int]) -> RecordingJournal:
    """What the journal holds after an attempt that follows these tokens."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415 - slow

    from worker.engines.vllm_resume import resumed  # noqa: PLC0415 - as above

    journal = RecordingJournal()
    params = SamplingParams(temperature=1, max_tokens=20, output_kind=RequestOutputKind.DELTA)
    resume = Resume(there, 0, Policy.CONTINUE)
    client: Any = front
    async for _ in resumed(client, journal, resume, (prompt(), params), front.generate):
        pass
    return journal


async def test_the_picture_stays_where_it_stands_and_the_tokens_follow_the_prompt(front: Front) -> None:
    journal = await go_on(front, THERE)
    (sent,) = front.prompts
    first = prompt()
    assert sent["prompt_token_ids"] == [*first["prompt_token_ids"], *THERE]
    assert (sent["type"], sent["mm_kwargs"], sent["mm_hashes"]) == (
        "multimodal",
        first["mm_kwargs"],
        first["mm_hashes"],
    )
    (place,) = sent["mm_placeholders"]["image"]
    assert (place.offset, place.length) == (1, 4)
    assert (journal.replays, journal.divergences, front.forgotten) == (1, [], [])


async def test_behind_tokens_that_stand_for_a_picture_all_is_generated_again(front: Front) -> None:
    await go_on(front, [50, SEEN])
    assert [sent["prompt_token_ids"] for sent in front.prompts] == [prompt()["prompt_token_ids"]]
    front.prompts.clear()
    await go_on(front, [50, AROUND])
    assert [sent["prompt_token_ids"][-2:] for sent in front.prompts] == [[50, AROUND]], "this one stands for itself"


async def test_a_picture_that_the_engine_never_got_is_sent_again_the_next_time(front: Front) -> None:
    eos = front.tokenizer.eos_token_id
    journal = await go_on(front, [*THERE, eos])
    assert (front.prompts, journal.replays) == ([], 1), "the answer was complete"
    assert front.forgotten == ["of the picture"]

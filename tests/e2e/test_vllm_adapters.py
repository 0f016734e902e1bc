"""Real vLLM with a LoRA adapter: a name of its base model's pool, in every route, also when its worker is killed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from safetensors.numpy import save_file

from tests.support.amid import cut_short
from tests.support.stack import Stack, poll_until_ready, running_stack

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

START_S = 400.0
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
RANK = 8
SAY: Any = [{"role": "user", "content": "What is a queue?"}]
LONG: Any = {"messages": SAY, "max_tokens": 900, "temperature": 0, "extra_body": {"ignore_eos": True}}


def make_adapter(folder: Path) -> None:
    """Writes an adapter for the tiny model, strong enough that its texts are others than the model's."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "v_proj"]}))
    random = np.random.default_rng(5)
    tensors = {}
    for layer in range(2):
        for name, width in (("q_proj", 128), ("v_proj", 64)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{base}.lora_A.weight"] = random.normal(0, 0.5, (RANK, 128)).astype(np.float32)
            tensors[f"{base}.lora_B.weight"] = random.normal(0, 0.5, (width, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def stack(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers of one pool."""
    poet = tmp_path_factory.mktemp("models") / "poet"
    make_adapter(poet)
    flags = ("--served-model-name", "tiny", "--enforce-eager", "--max-num-seqs", "4")
    lora = ("--enable-lora", "--max-lora-rank", str(RANK), "--lora-modules", f"poet={poet}")
    with running_stack() as started:
        for _ in range(2):
            started.worker("--model", str(tiny_model), "--", *flags, *lora, engine="vllm", ready_s=0, env=ENV)
        for worker in started.workers:
            poll_until_ready(worker, f"http://127.0.0.1:{worker.ops_port}/readyz", START_S)
        started.api()
        yield started


@pytest.fixture
def sdk(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.apis[0].url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_it_is_listed_with_its_parent_and_answers_otherwise_than_its_base_model(sdk: OpenAI) -> None:
    cards: dict[str, Any] = {model.id: model.to_dict() for model in sdk.models.list().data}
    assert {name: (card["parent"], card["penstock"]["state"]) for name, card in cards.items()} == {
        "tiny": (None, "ready"),
        "poet": ("tiny", "ready"),
    }
    answers = {name: sdk.chat.completions.create(model=name, messages=SAY, temperature=0) for name in cards}
    assert {name: answer.model for name, answer in answers.items()} == {"tiny": "tiny", "poet": "poet"}
    texts = {answer.choices[0].message.content for answer in answers.values()}
    assert len(texts) == 2


async def test_its_stream_goes_on_under_its_name_when_its_worker_is_killed(stack: Stack, sdk: OpenAI) -> None:
    whole = sdk.chat.completions.create(model="poet", **LONG).choices[0].message.content

    def told() -> list[tuple[str, str]]:
        chunks = sdk.chat.completions.create(model="poet", stream=True, **LONG)
        return [(chunk.model, chunk.choices[0].delta.content or "") for chunk in chunks if chunk.choices]

    victim, reading = await cut_short(stack, "tiny", 1, lambda: asyncio.to_thread(told))
    chunks = await reading
    (heir,) = [worker for worker in stack.workers if worker is not victim]
    assert heir.metric("penstock_resumes_total") == 1
    assert {name for name, _ in chunks} == {"poet"}
    assert "".join(text for _, text in chunks) == whole

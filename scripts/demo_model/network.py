"""The network: owns the model's shape, and every call into transformers' untyped parts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.demo_model.tokenizer import CONTEXT_TOKENS

HIDDEN = 256
LAYERS = 5
# vLLM's attention kernels for GPUs and CPUs all take heads of 64.
HEADS = 4
HEAD_DIM = 64
FEED_FORWARD = 704
# The worker serves the folder under this name, wherever it lies.
SERVED_NAME = "penstock-demo"

_MAX_NEW_TOKENS = 200
_TRAINING_DROPOUT = 0.1


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model for this tokenizer; its weights come from torch's global seed."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ends,
    )
    new_model: Any = LlamaForCausalLM
    new_generation_config: Any = GenerationConfig
    model: LlamaForCausalLM = new_model(config)
    # vLLM takes its default sampling from here; a model that recalls derails when it is sampled freely.
    model.generation_config = new_generation_config(do_sample=True, temperature=0.2, top_p=0.9, **ends)
    return model


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return the saved model, its weights widened to float32 and ready to answer, and its tokenizer."""
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return model.eval(), tokenizer


def prepare_for_training(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Put the model, in place, into training mode and the number format it computes in."""
    untyped: Any = model
    # At this size plain attention is faster on a CPU than the fused kernel.
    untyped.set_attn_implementation("eager")
    _set_attention_dropout(untyped, _TRAINING_DROPOUT)
    untyped.to(dtype).train()


def _set_attention_dropout(untyped: Any, share: float) -> None:
    untyped.config.attention_dropout = share
    for layer in untyped.model.layers:
        layer.self_attn.attention_dropout = share


def hidden_states(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states in training, with dropout on the embeddings: words may be missing."""
    untyped: Any = model
    embedded = functional.dropout(untyped.model.embed_tokens(ids), _TRAINING_DROPOUT)
    states: torch.Tensor = untyped.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return states


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config, generation config and bfloat16 weights, readable by everybody."""
    untyped: Any = model
    _set_attention_dropout(untyped, 0.0)
    untyped.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "penstock_name": SERVED_NAME}, indent=2) + "\n", encoding="utf-8")


def recalls(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], expected: Sequence[str]
) -> list[bool]:
    """Return for each prompt whether every token of `expected`, turn end included, is the model's first choice.

    One pass instead of one per token; where it is true, greedy generation gives just that text.
    """
    untyped: Any = model
    texts = [prompt + answer + str(tokenizer.eos_token) for prompt, answer in zip(prompts, expected, strict=True)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    ids = batch["input_ids"]
    with torch.inference_mode():
        best = untyped(input_ids=ids, attention_mask=batch["attention_mask"]).logits.argmax(-1)
    starts = [len(row) for row in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    ends = batch["attention_mask"].sum(-1).tolist()
    return [
        bool((best[row, start - 1 : end - 1] == ids[row, start:end]).all())
        for row, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def generate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """Return the greedy continuation of each rendered prompt, without special tokens."""
    untyped: Any = model
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.inference_mode():
        output = untyped.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            temperature=None,
            top_p=None,
            max_new_tokens=_MAX_NEW_TOKENS,
        )
    texts: list[str] = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return texts

"""The network: owns the model's shape, and every call into transformers' untyped parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.demo_model.tokenizer import CONTEXT_TOKENS

HIDDEN = 256
LAYERS = 5
# vLLM's attention kernels for GPUs and CPUs all take heads of 64.
HEADS = 4
HEAD_DIM = 64
FEED_FORWARD = 704

_MAX_NEW_TOKENS = 200


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
    untyped.to(dtype).train()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config, generation config and bfloat16 weights, readable by everybody."""
    untyped: Any = model
    untyped.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


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

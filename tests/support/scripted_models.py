"""A Llama of some megabytes whose greedy answer is known in advance, for tests on the real engine.

    python -m tests.support.scripted_models OUT

One-hot embeddings, zeroed blocks and a bigram output layer: the next token depends on the last token only. Every prompt
starts the script: a thought, 24 words, three signs byte by byte, one tool call, the end. So any gap, repeat or splice
in a stream shows. It is blind to everything but the last token. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.model_parts import make_in_process, trained_tokenizer

NAME = "penstock-scripted"
THOUGHT = [f" t{number}" for number in range(6)]
WORDS = [f" w{number}" for number in range(24)]
SIGNS = "\u20ac\u00e9\U0001f600"
"""Nine bytes, each of them once and a token of its own."""
CALL = ["<tool_call>", '\n{"name": "look"', ', "arguments": {"at"', ': "the queue"}', "}\n", "</tool_call>"]
_THOUGHTS = ["<think>", *THOUGHT, "</think>"]
_CONTEXT_TOKENS = 2048


def make_elsewhere(folder: Path) -> None:
    """Makes the model in another process, so that the caller need not import torch."""
    make_in_process("tests.support.scripted_models", folder)


def make(folder: Path) -> None:
    """Writes the model into `folder`."""
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - as above

    tokenizer = trained_tokenizer(600, [*_THOUGHTS, *WORDS, *CALL])
    size = len(tokenizer)
    hidden = -(-size // 64) * 64
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=hidden // 64,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=_CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        penstock_name=NAME,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1.0)
            layer.post_attention_layernorm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, :size] = torch.eye(size)
        # the last RMSNorm scales a one-hot vector by sqrt(hidden)
        model.lm_head.weight[:, :size] = _bigrams(tokenizer) / hidden**0.5
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)


def _bigrams(tokenizer: Any) -> Any:
    """Logits, [next token, current token]: the script leads by far, and whatever else was said starts it."""
    import torch  # noqa: PLC0415 - takes seconds

    signs = "".join(part for part, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(SIGNS))
    ids = [tokenizer.convert_tokens_to_ids(text) for text in (*_THOUGHTS, *WORDS, *signs, *CALL)]
    eos = tokenizer.eos_token_id
    logits = torch.zeros(len(tokenizer), len(tokenizer))
    for current in range(len(tokenizer)):
        if current not in ids:  # also the end of text, for those who ignore it
            logits[ids[0], current] = 7
    for current, following in pairwise([*ids, eos]):
        logits[following, current] = 30
    return logits


if __name__ == "__main__":
    make(Path(sys.argv[1]))

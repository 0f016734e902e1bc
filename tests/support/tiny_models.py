"""A Llama of a megabyte with weights from a seed and a tokenizer of its own, for tests on the real engine.

    python -m tests.support.tiny_models OUT

Its answers mean nothing but are always the same. Greedy decoding is stable across batches because the weights are
drawn wide: the best token leads by far. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.model_parts import ROOT, make_in_process, trained_tokenizer

CONTEXT_TOKENS = 1024
NAME = "penstock-tiny"
POOLING_FLAGS = ("--runner", "pooling", "--convert", "embed")
"""With them vLLM loads the model for embeddings: a text's vector is the last token's hidden state, at length 1."""


def model_folder(cache: Path) -> Path:
    """The folder of the model to test with: the demo model where it has been built, else one made in `cache`."""
    demo = ROOT / "models" / "demo"
    if (demo / "config.json").exists() and any(demo.glob("*.safetensors")):
        return demo
    folder = cache / "tiny"
    if not (folder / "config.json").exists():
        make_elsewhere(folder)
    return folder


def make_elsewhere(folder: Path) -> None:
    """Makes the model in another process, so that the caller need not import torch."""
    make_in_process("tests.support.tiny_models", folder)


def make(folder: Path) -> None:
    """Writes the model into `folder`."""
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - as above

    tokenizer = trained_tokenizer(1024)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        initializer_range=0.3,
        penstock_name=NAME,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))

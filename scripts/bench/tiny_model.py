"""Writes a tiny Llama with random weights, for measurements where no model is at hand: `python -m … FOLDER`.

It is written as files, since that needs less to be installed and right than the library that usually writes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}<s>assistant: "
_SPECIAL = ("<unk>", "<s>", "</s>")
_HIDDEN, _INNER, _LAYERS, _HEADS, _VOCABULARY, _CONTEXT = 128, 384, 4, 4, 320, 2048
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": _HIDDEN,
    "intermediate_size": _INNER,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "head_dim": _HIDDEN // _HEADS,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": _CONTEXT,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def write(folder: Path) -> None:
    """About 0.9 million parameters, a byte-level vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": _CONTEXT,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=1), encoding="utf-8")


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=_SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    return tokenizer


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns) * 0.05

    tensors = {
        "model.embed_tokens.weight": random(_VOCABULARY, _HIDDEN),
        "model.norm.weight": torch.ones(_HIDDEN),
        "lm_head.weight": random(_VOCABULARY, _HIDDEN),
    }
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}self_attn.{name}.weight"] = random(_HIDDEN, _HIDDEN)
        tensors[f"{prefix}mlp.gate_proj.weight"] = random(_INNER, _HIDDEN)
        tensors[f"{prefix}mlp.up_proj.weight"] = random(_INNER, _HIDDEN)
        tensors[f"{prefix}mlp.down_proj.weight"] = random(_HIDDEN, _INNER)
        tensors[f"{prefix}input_layernorm.weight"] = torch.ones(_HIDDEN)
        tensors[f"{prefix}post_attention_layernorm.weight"] = torch.ones(_HIDDEN)
    return tensors


if __name__ == "__main__":
    write(Path(sys.argv[1]))

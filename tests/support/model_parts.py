"""What the models that tests make for themselves have in common: a tokenizer, a chat template, a process of their own.

Needs transformers and tokenizers.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = 40
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_in_process(module: str, folder: Path) -> None:
    """Runs a module that makes a model into `folder` in another process, so that the caller need not import torch."""
    subprocess.run([sys.executable, "-m", module, str(folder)], check=True, cwd=ROOT, timeout=120)


def trained_tokenizer(size: int, added: Sequence[str] = ()) -> Any:
    """Byte-level BPE of `size` tokens, trained on the standard library; each of `added` is one token more."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - slow
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - slow

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    sources = [str(path) for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:_SOURCES]]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train(sources, trainer)
    raw.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")  # noqa: S106
    tokenizer.chat_template = _TEMPLATE
    return tokenizer

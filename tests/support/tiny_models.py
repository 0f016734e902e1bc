"""A Llama of a megabyte with weights from a seed and a tokenizer of its own, for tests on the real engine.

    python -m tests.support.tiny_models OUT

Its answers mean nothing but are always the same. Greedy decoding is stable across batches because the weights are
drawn wide: the best token leads by far. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTEXT_TOKENS = 1024
NAME = "penstock-tiny"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
    subprocess.run([sys.executable, "-m", "tests.support.tiny_models", str(folder)], check=True, cwd=ROOT, timeout=120)


def make(folder: Path) -> None:
    """Writes the model into `folder`."""
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - as above

    tokenizer = _tokenizer()
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


def _tokenizer() -> object:
    """Byte-level BPE, trained on the standard library."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - takes seconds
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - as above

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    sources = [str(path) for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train(sources, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")  # noqa: S106
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


if __name__ == "__main__":
    make(Path(sys.argv[1]))

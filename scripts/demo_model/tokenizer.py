"""The demo model's tokenizer: owns the special tokens, the chat format and how both are saved.

Byte-level BPE, so any input can be encoded. The turn end is the end-of-sequence token: generation stops there.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
PADDING = "<|endoftext|>"
CONTEXT_TOKENS = 2048

Message: TypeAlias = tuple[str, str]
"""A role and its text."""


def render(messages: Sequence[Message]) -> str:
    """Render a conversation as the chat template does; training refuses to start when the two differ."""
    return "".join(f"{TURN_START}{role}\n{text.strip()}{TURN_END}\n" for role, text in messages)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of at most `vocab_size` tokens from `texts`; the same texts give the same tokenizer."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PADDING, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    new_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = new_tokenizer(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=PADDING,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN_START]})
    tokenizer.chat_template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    _check_template(tokenizer)
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError unless the chat template renders what training feeds."""
    messages = (("system", "Be brief."), ("user", " What? "), ("assistant", "Yes.\nNo."), ("tool", "{}"))
    untyped: Any = tokenizer
    chat = [{"role": role, "content": text} for role, text in messages]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]
    for shape in (chat, parts):
        if untyped.apply_chat_template(shape, tokenize=False) != render(messages):
            message = "the chat template and render() differ"
            raise ValueError(message)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer, chat template included, under names that every release of transformers knows."""
    tokenizer.save_pretrained(str(folder), save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

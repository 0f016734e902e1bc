"""An Idefics3 of some megabytes that says which colour it sees, for tests of pictures on the real engine.

    python -m tests.support.vision_models OUT

Its answer is a script, " red0 red1 … red23" and the end; the colour is that of the pictures in the prompt, all of them
mixed as light, or " dark0 …" where there is none. Each word is chosen by attention to the pictures: one that is lost
or mistaken on the way shows in the next word, and so does any gap, repeat or splice.

Needs torch, transformers, tokenizers and Pillow, but not torchvision. Of vLLM's models with eyes, most import
transformers' torchvision processors by name (LLaVA, Pixtral, Qwen-VL, Gemma 3, InternVL); Idefics3 is one of those that
get by with the processors on Pillow.
"""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.model_parts import make_in_process, trained_tokenizer

DARK = "dark"
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
    DARK: (0, 0, 0),
}
"""The words for what it sees: red, green and blue of each."""
LENGTH = 24
PICTURE_TOKENS = 7
"""Tokens that a picture becomes, whatever its size: what is seen of it, and what stands around that."""
_SEEN_TOKENS = 4
_IMAGE, _AROUND, _WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
_PATCH, _SIZE, _SHUFFLE = 14, 56, 2
_CONTEXT_TOKENS = 2048
_VISION_WIDTH = 64
_HEAD = 64
_SLOW = _HEAD // 2 - 1
"""The part of a head that the position turns least."""
_LEVEL, _MARK = 4.0, 8.0
"""What a patch and a picture's token hold beside their colour: much more, so that norms hardly depend on the colour."""


def words(colour: str) -> list[str]:
    """What it says about this colour."""
    return [f" {colour}{number}" for number in range(LENGTH)]


def painted(colour: str, kind: str = "png") -> bytes:
    """A picture of this colour, of a kind that Pillow writes."""
    from PIL import Image  # noqa: PLC0415 - comes with the engine

    file = io.BytesIO()
    Image.new("RGB", (40, 20), COLOURS[colour]).save(file, kind)
    return file.getvalue()


def make_elsewhere(folder: Path) -> None:
    """Makes the model in another process, so that the caller need not import torch."""
    make_in_process("tests.support.vision_models", folder)


def make(folder: Path) -> None:
    """Writes the model and its processor into `folder`."""
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import Idefics3ForConditionalGeneration  # noqa: PLC0415 - as above

    marks = [_IMAGE, _AROUND, _WHOLE, "<end_of_utterance>"]
    tokenizer = trained_tokenizer(300, [*marks, *(word for colour in COLOURS for word in words(colour))])
    processor = _processor(tokenizer)  # may add tokens
    size = len(tokenizer)
    model = Idefics3ForConditionalGeneration(_config(tokenizer)).to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        _see(model.model.vision_model.embeddings)
        _tell(model.model.connector.modality_projection.proj.weight, size)
        _look(model.model.text_model, size)
        hidden = model.config.text_config.hidden_size
        # the last RMSNorm scales a one-hot vector by sqrt(hidden)
        model.lm_head.weight[:] = _logits(tokenizer, hidden) / hidden**0.5
    processor.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)


def _config(tokenizer: Any) -> Any:
    from transformers import Idefics3Config, LlamaConfig  # noqa: PLC0415 - slow

    size = len(tokenizer)
    text = LlamaConfig(
        vocab_size=size,
        hidden_size=-(-(size + 5) // 64) * 64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=_HEAD,
        max_position_embeddings=_CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = {
        "hidden_size": _VISION_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": _SIZE,
        "patch_size": _PATCH,
    }
    return Idefics3Config(
        vision_config=vision,
        text_config=text,
        scale_factor=_SHUFFLE,
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def _processor(tokenizer: Any) -> Any:
    """Pictures become squares, their light from 1 to 2: the model takes one that is zero everywhere for padding."""
    from transformers import Idefics3Processor  # noqa: PLC0415 - slow
    from transformers.models.idefics3.image_processing_pil_idefics3 import (  # noqa: PLC0415 - slow
        Idefics3ImageProcessorPil,
    )

    edge = {"longest_edge": _SIZE}
    pictures = Idefics3ImageProcessorPil(
        size=edge, max_image_size=edge, do_image_splitting=False, image_mean=[-1.0] * 3, image_std=[1.0] * 3
    )
    return Idefics3Processor(pictures, tokenizer, image_seq_len=_SEEN_TOKENS, chat_template=tokenizer.chat_template)


def _see(embeddings: Any) -> None:
    """A patch becomes its mean colour, each part of it with its negative: the norms' mean is zero then."""
    patch = embeddings.patch_embedding
    for channel in range(3):
        for row, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
            patch.weight[row, channel] = sign / _PATCH**2
            patch.bias[row] = -sign
    patch.bias[6], patch.bias[7] = _LEVEL, -_LEVEL


def _tell(projection: Any, size: int) -> None:
    """The mean colour of four patches goes behind the one-hot part of the model's embeddings, beside a mark."""
    norm = (2 / _VISION_WIDTH) ** 0.5
    for patch in range(_SHUFFLE**2):
        column = patch * _VISION_WIDTH
        for channel in range(3):
            projection[size + channel, column + 2 * channel] = norm * _LEVEL / _SHUFFLE**2
        projection[size + 4, column + 6] = norm * _MARK / _SHUFFLE**2


def _look(model: Any, size: int) -> None:
    """Embeddings are one-hot with a constant; the one layer copies the mean colour of all tokens with the mark."""
    import torch  # noqa: PLC0415 - takes seconds

    model.embed_tokens.weight[:, :size] = torch.eye(size)
    model.embed_tokens.weight[:, size + 3] = 1
    (layer,) = model.layers
    layer.self_attn.q_proj.weight[_SLOW, size + 3] = 0.5
    layer.self_attn.k_proj.weight[_SLOW, size + 4] = 0.5
    scale = model.config.hidden_size**0.5 / _MARK
    for channel in range(3):
        layer.self_attn.v_proj.weight[channel, size + channel] = 1 / scale
        layer.self_attn.o_proj.weight[size + channel, channel] = 1


def _logits(tokenizer: Any, hidden: int) -> Any:
    """[next token, what is known]: the last token says which number comes next, the colour seen which of its words."""
    import torch  # noqa: PLC0415 - takes seconds

    size, eos = len(tokenizer), tokenizer.eos_token_id
    ids = {colour: tokenizer.convert_tokens_to_ids(words(colour)) for colour in COLOURS}
    said = {token for all_words in ids.values() for token in all_words}
    begins = [token for token in range(size) if token not in said]  # also the end of text, for those who ignore it
    logits = torch.zeros(size, hidden)
    for colour, all_words in ids.items():
        logits[all_words[0], begins] = 60
        for current, following in pairwise(range(LENGTH)):
            for other in ids.values():
                logits[all_words[following], other[current]] = 60
        logits[eos, all_words[-1]] = 120
        light = torch.tensor(COLOURS[colour]) / 255
        logits[all_words, size : size + 3] = 40 * light / max(float(light.norm()), 1)
    logits[ids[DARK], size + 3] = 12
    return logits


if __name__ == "__main__":
    make(Path(sys.argv[1]))

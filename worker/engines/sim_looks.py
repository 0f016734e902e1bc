"""The simulated engine's routes that generate nothing: vectors, scores and classes made of the text, and its tokens.

A text's vector has 16 numbers and length 1, drawn from the text's hash: the same text has the same one everywhere. A
score is the cosine of two vectors. Its vocabulary is the numbers from 0 to 999999: a word of six digits, which is what
its answers are made of, is itself; any other word is the hash of it, and does not come back.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

from worker.engines.sim_prompts import prompt_tokens, texts_of, words_of
from worker.engines.sim_requests import Refusal

DIMENSIONS = 16
_VOCABULARY = 1_000_000
_DIGITS = 6
_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))

Look = Callable[[dict[str, Any], str], tuple[dict[str, Any], int]]
"""A body and the model's name → the answer, and how many tokens were read. Raises Refusal."""


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """The vector of a text."""
    drawn = hashlib.sha512(text.encode("utf-8", "surrogatepass")).digest()
    raw = [value / 2**31 for value in struct.unpack(f"<{DIMENSIONS}i", drawn)][:dimensions]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]


def similarity(one: str, other: str) -> float:
    """How alike two texts are for this engine: -1 to 1."""
    return sum(a * b for a, b in zip(vector(one), vector(other), strict=True))


def token_ids(text: str) -> list[int]:
    """The tokens of a text."""
    return [
        int(word)
        if len(word) == _DIGITS and word.isascii() and word.isdecimal()
        else zlib.crc32(word.encode("utf-8", "surrogatepass")) % _VOCABULARY
        for word in words_of(text)
    ]


def text_of(tokens: list[int]) -> str:
    """The text of tokens, as it stands in an answer."""
    return "".join(f" {token:06d}" for token in tokens)


def _texts(fields: dict[str, Any], name: str) -> list[str]:
    """The texts of a field: one, several, or token ids as the text that they are."""
    given = fields.get(name)
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given and isinstance(given[0], int):
        return [text_of(given)]
    if isinstance(given, list) and given:
        return [one if isinstance(one, str) else text_of(one) for one in given]
    raise Refusal(400, f"`{name}` must be a text or a list of texts.", name)


def _inputs(fields: dict[str, Any]) -> list[str]:
    if fields.get("input") is None and isinstance(fields.get("messages"), list):
        return ["\n".join(texts_of(fields["messages"]))]
    return _texts(fields, "input")


def _tokens(texts: list[str]) -> int:
    return sum(len(words_of(text)) for text in texts)


def _list(fields: dict[str, Any], name: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    del fields
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return {"id": "sim", "object": "list", "created": int(time.time()), "model": name, "data": data, "usage": usage}


def _embeddings(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    dimensions = fields.get("dimensions") or DIMENSIONS
    if not isinstance(dimensions, int) or not 1 <= dimensions <= DIMENSIONS:
        raise Refusal(400, f"dimensions must be between 1 and {DIMENSIONS}.", "dimensions")
    texts = _inputs(fields)
    packed = fields.get("encoding_format") == "base64"
    vectors = [vector(text, dimensions) for text in texts]
    data = [
        {"index": index, "object": "embedding", "embedding": _packed(found) if packed else found}
        for index, found in enumerate(vectors)
    ]
    return _list(fields, name, data, _tokens(texts)), _tokens(texts)


def _packed(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _pooling(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    texts = _inputs(fields)
    data = [{"index": index, "object": "pooling", "data": vector(text)} for index, text in enumerate(texts)]
    return _list(fields, name, data, _tokens(texts)), _tokens(texts)


def _classify(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    texts = _inputs(fields)
    data = []
    for index, text in enumerate(texts):
        probability = (vector(text)[0] + 1) / 2
        label = "LABEL_0" if probability >= 0.5 else "LABEL_1"  # noqa: PLR2004 - the likelier one
        data.append({"index": index, "label": label, "probs": [probability, 1 - probability], "num_classes": 2})
    return _list(fields, name, data, _tokens(texts)), _tokens(texts)


def _score(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    names = next((pair for pair in _PAIRS if fields.get(pair[0]) is not None), _PAIRS[0])
    left, right = (_texts(fields, one) for one in names)
    if len(left) not in {1, len(right)}:
        raise Refusal(400, "Input lengths must be either 1:1, 1:N or N:N.", names[0])
    pairs = list(zip(left * len(right) if len(left) == 1 else left, right, strict=True))
    data = [{"index": i, "object": "score", "score": similarity(*pair)} for i, pair in enumerate(pairs)]
    tokens = sum(map(_tokens, map(list, pairs)))
    return _list(fields, name, data, tokens), tokens


def _rerank(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    query, documents = _texts(fields, "query")[0], _texts(fields, "documents")
    found = [
        {"index": index, "document": {"text": text}, "relevance_score": similarity(query, text)}
        for index, text in enumerate(documents)
    ]
    found.sort(key=lambda one: -float(str(one["relevance_score"])))
    tokens = _tokens(documents) + len(documents) * _tokens([query])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    results = found[: fields.get("top_n") or len(found)]
    return {"id": "sim", "model": name, "usage": usage, "results": results}, tokens


def _tokenize(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    del name
    texts = [fields["prompt"]] if isinstance(fields.get("prompt"), str) else texts_of(fields.get("messages") or [])
    found = [token for text in texts for token in token_ids(text)]
    count = prompt_tokens(fields)
    found += [0] * (count - len(found))  # what its chat template puts around the texts
    strings = [f"{token:06d}" for token in found] if fields.get("return_token_strs") else None
    return {"count": count, "max_model_len": 0, "tokens": found, "token_strs": strings}, 0


def _detokenize(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    del name
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(one, int) and 0 <= one < _VOCABULARY for one in tokens):
        raise Refusal(400, f"tokens must be numbers from 0 to {_VOCABULARY - 1}.", "tokens")
    return {"prompt": text_of(tokens)}, 0


def _count_tokens(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    del name
    count = prompt_tokens(fields)
    return {"input_tokens": count, "context_management": {"original_input_tokens": count}}, 0


LOOKS: dict[str, Look] = {
    "/v1/embeddings": _embeddings,
    "/pooling": _pooling,
    "/classify": _classify,
    "/score": _score,
    "/rerank": _rerank,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
    "/v1/messages/count_tokens": _count_tokens,
}

"""What the fields of a request may be for the simulated engine: types and ranges as vLLM has them, and little else.

What a field means is not looked at: the engine has no use for it. Unknown fields are ignored, as vLLM does; but `"5"`
is no number here and 0 is not false, which vLLM takes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from worker.engines.sim_requests import Refusal

Text = str | None
Number = float | None
Whole = int | None
Flag = bool | None
Object = dict[str, Any]
Content = str | list[str | Object] | None
Token = Annotated[int, Meta(ge=0, lt=1_000_000)]
Texts = str | list[str]
Prompts = str | Annotated[list[str | Token | list[Token]], Meta(min_length=1)]
Positive = Annotated[int, Meta(ge=1)] | None
Penalty = Annotated[float, Meta(ge=-2, le=2)] | None
_MOST_SEED = 2**63 - 1


class _Message(Struct):
    role: str
    content: Content = None
    tool_calls: list[Object] | None = None
    tool_call_id: Text = None


class _Function(Struct):
    name: str
    description: Text = None
    parameters: Object | None = None
    strict: Flag = None


class _Tool(Struct):
    type: str
    function: _Function


class _StreamOptions(Struct):
    include_usage: Flag = None
    continuous_usage_stats: Flag = None


class _Schema(Struct):
    name: str
    schema: Object | None = None


class _Format(Struct):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: _Schema | None = None


class _Sampling(Struct):
    max_tokens: Whole = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Positive = None
    seed: Annotated[int, Meta(ge=-_MOST_SEED, le=_MOST_SEED)] | None = None
    stop: Texts | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    logit_bias: dict[str, float] | None = None
    stop_token_ids: list[Token] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: Annotated[list[Token], Meta(min_length=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stream: Flag = None
    stream_options: _StreamOptions | None = None
    structured_outputs: Object | None = None
    response_format: _Format | None = None
    user: Text = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=-1)] | None = None


class _Chat(_Sampling):
    messages: list[_Message] = []
    max_completion_tokens: Whole = None
    logprobs: Flag = None
    top_logprobs: Annotated[int, Meta(ge=-1, le=20)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | Object | None = None
    parallel_tool_calls: Flag = None
    chat_template_kwargs: Object | None = None
    documents: list[Object] | None = None


class _Completion(_Sampling):
    prompt: Prompts | None = None
    echo: Flag = None
    logprobs: Annotated[int, Meta(ge=-1, le=20)] | None = None
    suffix: Text = None


class _Turn(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Object]


class _ClaudeTool(Struct):
    name: str
    input_schema: Object
    description: Text = None


class _Counted(Struct):
    model: str
    messages: list[_Turn]
    system: str | list[Object] | None = None
    tools: list[_ClaudeTool] | None = None
    tool_choice: Object | None = None


class _Claude(_Counted, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Number = None
    top_k: Whole = None
    stop_sequences: list[str] | None = None
    stream: Flag = None
    metadata: Object | None = None
    thinking: Object | None = None
    output_config: Object | None = None
    service_tier: Text = None


class _Response(Struct):
    input: str | list[Object]
    instructions: Text = None
    max_output_tokens: Positive = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Whole = None
    tools: list[Object] | None = None
    tool_choice: Literal["none", "auto", "required"] | Object | None = None
    text: Object | None = None
    reasoning: Object | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None


class _Inputs(Struct):
    input: Prompts | None = None
    messages: list[_Message] | None = None
    dimensions: Whole = None
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    user: Text = None
    task: Text = None


class _Score(Struct):
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None


class _Rerank(Struct):
    query: str
    documents: str | Annotated[list[str], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=0)] = 0


class _Tokenize(Struct):
    prompt: Text = None
    messages: list[_Message] | None = None
    add_special_tokens: bool = True
    return_token_strs: Flag = None


class _Detokenize(Struct):
    tokens: list[Token]


_SHAPES: dict[str, Any] = {
    "/v1/chat/completions": _Chat,
    "/v1/completions": _Completion,
    "/v1/messages": _Claude,
    "/v1/messages/count_tokens": _Counted,
    "/v1/responses": _Response,
    "/v1/embeddings": _Inputs,
    "/pooling": _Inputs,
    "/classify": _Inputs,
    "/score": _Score,
    "/rerank": _Rerank,
    "/tokenize": _Tokenize,
    "/detokenize": _Detokenize,
}


def check(path: str, fields: dict[str, Any]) -> None:
    """Raises Refusal (400) for a field that is not what it may be."""
    try:
        shaped = msgspec.convert(fields, _SHAPES[path])
    except msgspec.ValidationError as error:
        _, _, place = str(error).partition("`$.")
        raise Refusal(400, str(error), place.rstrip("`") or None) from error
    for name in ("prompt", "input"):
        given = getattr(shaped, name, None)
        if isinstance(given, list) and len({type(one) for one in given}) > 1:
            raise Refusal(400, f"{name} must be texts or tokens, not both.", name)
    if isinstance(shaped, _Sampling):
        _check_sampling(shaped)


def _check_sampling(asked: _Sampling) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise Refusal(400, "stream_options are only for streams.", "stream_options")
    if not all(key.isascii() and key.isdecimal() and len(key) < 7 for key in asked.logit_bias or ()):  # noqa: PLR2004
        raise Refusal(400, "logit_bias has keys that are no tokens.", "logit_bias")
    if asked.min_tokens and asked.max_tokens and asked.min_tokens > asked.max_tokens:
        raise Refusal(400, "min_tokens must not be more than max_tokens.", "min_tokens")

"""What one request may ask for, and what of it reaches the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from api.auth import ANONYMOUS, salted
from api.limits import Limits
from api.prompts import Prompt
from api.schemas import RESERVED, ValidRequest, check_length, validate_chat, validate_completion, validate_generate
from api.surface import BY_PATH, ROUTES
from shared.errors import RequestError

LIMITS = Limits(depth=12, messages=3, inputs=3, n=3, tools=3, stops=3, schema_bytes=300)
SAY = [{"role": "user", "content": "x"}]
CHAT: dict[str, Any] = {"messages": SAY}
SMALL: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "x"},
    "/generate": {"prompt": "x"},
    "/v1/messages": {**CHAT, "max_tokens": 3},
    "/v1/messages/count_tokens": CHAT,
    "/v1/embeddings": {"input": "x"},
    "/v1/score": {"queries": "x", "documents": ["y"]},
    "/score": {"text_1": "x", "text_2": ["y"]},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
    "/v2/rerank": {"query": "x", "documents": ["y"]},
    "/rerank": {"query": "x", "documents": ["y"]},
    "/classify": {"messages": SAY},
    "/pooling": {"data": {"x": 1}},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}


def schema(size: int) -> dict[str, Any]:
    """A JSON schema of so many bytes."""
    return {"const": "x" * (size - len(json.dumps({"const": ""}, separators=(",", ":"))))}


def tool(size: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema(size)}}


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 1


def valid(path: str, fields: dict[str, Any]) -> ValidRequest:
    return BY_PATH[path].validate(json.dumps(fields).encode(), None, LIMITS)


def refused(path: str, fields: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as raised:
        valid(path, fields)
    return raised.value


def test_every_route_lets_a_small_request_in() -> None:
    assert set(SMALL) == {route.path for route in ROUTES}
    for path, fields in SMALL.items():
        asked = valid(path, {**fields, "model": "m", "stream": False})
        assert (asked.model, asked.stream, asked.width) == ("m", False, 1)
        assert asked.prompt.texts or asked.prompt.ids or asked.prompt.media


@pytest.mark.parametrize("path", list(SMALL))
def test_without_what_a_route_is_for_it_refuses(path: str) -> None:
    error = refused(path, {"model": "m"})
    assert (error.status, error.code) == (400, "invalid_request_error")
    assert error.param is not None


@pytest.mark.parametrize(
    ("allowed", "over", "param"),
    [
        ({"messages": SAY * 3}, {"messages": SAY * 4}, "messages"),
        ({"n": 3}, {"n": 4}, "n"),
        ({"tools": [tool(50)] * 3}, {"tools": [tool(50)] * 4}, "tools"),
        ({"stop": ["a"] * 3}, {"stop": ["a"] * 4}, "stop"),
        ({"tools": [tool(300)]}, {"tools": [tool(50), tool(301)]}, "tools"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": schema(300)}}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": schema(301)}}},
            "response_format",
        ),
        (
            {"structured_outputs": {"json": schema(300)}},
            {"structured_outputs": {"json": schema(301)}},
            "structured_outputs",
        ),
    ],
)
def test_a_chat_may_have_so_much_and_no_more(allowed: dict[str, Any], over: dict[str, Any], param: str) -> None:
    valid("/v1/chat/completions", {**CHAT, **allowed})
    error = refused("/v1/chat/completions", {**CHAT, **over})
    assert (error.status, error.code, error.param) == (400, "limit_exceeded", param)


@pytest.mark.parametrize(
    ("path", "allowed", "over"),
    [
        ("/v1/messages", {"stop_sequences": ["a"] * 3}, {"stop_sequences": ["a"] * 4}),
        ("/v1/messages", {"tools": [{"input_schema": schema(300)}]}, {"tools": [{"input_schema": schema(301)}]}),
        ("/v1/messages/count_tokens", {"messages": SAY * 3}, {"messages": SAY * 4}),
        ("/v1/embeddings", {"input": ["a"] * 3}, {"input": ["a"] * 4}),
        ("/v1/embeddings", {"input": [1] * 9}, {"input": [[1]] * 4}),
        ("/v1/score", {"documents": ["a"] * 3}, {"documents": ["a"] * 4}),
        ("/rerank", {"documents": ["a"] * 3}, {"documents": ["a"] * 4}),
        ("/tokenize", {"messages": SAY * 3}, {"messages": SAY * 4}),
    ],
)
def test_other_routes_have_their_limits_too(path: str, allowed: dict[str, Any], over: dict[str, Any]) -> None:
    valid(path, {**SMALL[path], **allowed})
    assert refused(path, {**SMALL[path], **over}).code == "limit_exceeded"


@pytest.mark.parametrize("path", list(SMALL))
def test_json_may_be_so_deep_and_no_deeper(path: str) -> None:
    valid(path, {**SMALL[path], "x": nested(11)})
    assert "12 levels" in refused(path, {**SMALL[path], "x": nested(12)}).message


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("many", [{"prompt": [[1, 2]] * 90}, {"prompt": "x", "x": [{"a": 1}] * 90}])
def test_many_brackets_are_not_deep(many: dict[str, Any], indent: int | None) -> None:
    for separators in ((", ", ": "), (",", ":")):
        body = json.dumps(many, indent=indent, separators=separators)
        BY_PATH["/v1/completions"].validate(body.encode(), None, LIMITS)


def test_depth_cannot_be_hidden_behind_texts_that_look_like_lists() -> None:
    error = refused("/v1/completions", {"prompt": "},{" * 99 + "}, {" * 99, "x": nested(12)})
    assert "12 levels" in error.message


def test_sequences_are_counted_over_all_prompts() -> None:
    limits = replace(LIMITS, n=128)
    validate_completion(json.dumps({"prompt": ["a"] * 8, "n": 128}).encode(), None, limits)
    with pytest.raises(RequestError) as raised:
        validate_completion(json.dumps({"prompt": ["a"] * 9, "n": 128}).encode(), None, limits)
    assert raised.value.code == "limit_exceeded"


# ---- the length of a prompt


def of_length(path: str, **extra: Any) -> ValidRequest:
    return valid(path, {**SMALL[path], **extra})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_a_prompt_that_is_much_too_long_is_refused_at_the_door_and_a_doubtful_one_is_not(path: str) -> None:
    check_length(of_length(path), 200, 0, 100, exact=True)
    check_length(of_length(path), 9_999, 0, 100, exact=False)
    check_length(of_length(path), 9_999, 0, 0, exact=True)
    check_length(of_length(path, truncate_prompt_tokens=5), 9_999, 0, 100, exact=True)
    with pytest.raises(RequestError) as raised:
        check_length(of_length(path), 201, 0, 100, exact=True)
    assert (raised.value.status, raised.value.code) == (400, "context_length_exceeded")
    assert raised.value.message.startswith("This model's maximum context length is 100 tokens")


def test_where_the_length_of_one_prompt_is_not_known_nothing_is_refused() -> None:
    several = of_length("/v1/completions", prompt=["a", "b"])
    image = replace(of_length("/v1/chat/completions"), prompt=Prompt(media=1, messages=1))
    looked_at = [of_length(path) for path in ("/tokenize", "/v1/messages/count_tokens", "/v1/embeddings")]
    for asked in (several, image, *looked_at):
        check_length(asked, 9_999, 0, 100, exact=True)


def test_a_replica_may_have_a_limit_of_its_own() -> None:
    check_length(of_length("/v1/chat/completions"), 50, 50, 0, exact=False)
    with pytest.raises(RequestError) as raised:
        check_length(of_length("/v1/chat/completions"), 51, 50, 0, exact=False)
    assert (raised.value.code, raised.value.param) == ("limit_exceeded", "messages")


# ---- what a client must not set


@pytest.mark.parametrize("path", list(SMALL))
def test_reserved_fields_are_taken_out_of_every_body(path: str) -> None:
    plain = valid(path, SMALL[path])
    meddled = valid(path, {**SMALL[path], **dict.fromkeys(RESERVED, "mine")})
    assert json.loads(meddled.body) == json.loads(plain.body)
    assert meddled.content == plain.content, "it is the same request"
    assert meddled.salt in {"mine", None}


def test_a_body_without_them_is_passed_on_byte_for_byte() -> None:
    body = b' {"messages" : [{"role":"user", "content":"\\u00e4"}],\n"x": 1.0}'
    assert validate_chat(body, None).body == body


def test_a_reserved_name_cannot_be_hidden() -> None:
    for body in (
        b'{"prompt": "x", "prio\\u0072ity": -9, "cache_salt": "a", "cache_salt": "b"}',
        b'{"priority": 1, "prompt": "x", "priority": -9, "cache_salt": "b"}',
    ):
        asked = validate_generate(body, None)
        assert json.loads(asked.body) == {"prompt": "x", "max_tokens": 256}
        assert asked.salt == "b"


def test_a_salt_is_a_text() -> None:
    assert refused("/v1/chat/completions", {**CHAT, "cache_salt": 7}).param == "cache_salt"


def salt_of(caller: str, own: str) -> Any:
    return json.loads(salted(b' {"prompt": "x"}', caller, own)).get("cache_salt")


def test_every_tenant_has_a_salt_of_its_own_and_may_part_it_further() -> None:
    salts = [salt_of(caller, own) for caller in ("key-a", "key-b") for own in ("", "x", "y")]
    assert len(set(salts)) == 6
    assert all(salt and len(salt) <= 128 and not set("@/\\\0") & set(salt) for salt in salts)


def test_without_keys_a_clients_own_salt_stands_alone() -> None:
    assert salt_of(ANONYMOUS, "") is None
    assert salt_of(ANONYMOUS, 'x"') == 'x"'
    assert salted(b'{"prompt": "x"}', ANONYMOUS, "") == b'{"prompt": "x"}'

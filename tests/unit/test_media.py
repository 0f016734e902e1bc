"""api/media.py: what of a request's media a worker may see, and which images are to be fetched."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.limits import DEFAULTS
from api.responses.asked import asked_of
from api.responses.items import NONE
from api.schemas import ValidRequest
from api.surface import BY_PATH
from shared.errors import RequestError
from tests.support.pictures import DATA, PNG, URL


def valid(path: str, **fields: Any) -> ValidRequest:
    body = json.dumps(fields).encode()
    if path == "/v1/responses":
        return asked_of(body).valid(NONE, None, 1_000_000)
    return BY_PATH[path].validate(body, None, DEFAULTS)


def chat(*parts: Any) -> ValidRequest:
    return valid(
        "/v1/chat/completions", messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]
    )


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def block(url: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


NAMED: list[tuple[str, dict[str, Any], str]] = [
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [image(URL)]}]},
        "messages.0.content.0.image_url",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"content": "a"}, {"role": "tool", "content": [{"image_url": URL}]}]},
        "messages.1.content.0.image_url",
    ),
    (
        "/v1/chat/completions",  # a text beside it hides nothing
        {"messages": [{"role": "user", "content": [{**image(URL), "text": "x"}]}]},
        "messages.0.content.0.image_url",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image_url": URL}]}]},
        "messages.0.content.0.image_url",
    ),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
        "input.0.content.0.image_url",
    ),
    (
        "/v1/responses",
        {"input": [{"type": "function_call_output", "call_id": "c", "content": "x", "output": [{"image_url": URL}]}]},
        "input.0.output.0.image_url",
    ),
    (
        "/v1/responses",
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}]},
        "input.0.output.image_url",
    ),
    ("/v1/messages", {"messages": [{"role": "user", "content": [block(URL)]}]}, "messages.0.content.0.source"),
    (
        "/v1/messages/count_tokens",
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [block(URL)]}]}]},
        "messages.0.content.0.content.0.source",
    ),
    ("/tokenize", {"messages": [{"role": "user", "content": [image(URL)]}]}, "messages.0.content.0.image_url"),
    ("/v1/embeddings", {"messages": [{"role": "user", "content": [image(URL)]}]}, "messages.0.content.0.image_url"),
    (
        "/v1/embeddings",  # which of both the engine reads is not for us to know
        {"input": "a", "messages": [{"role": "user", "content": [image(URL)]}]},
        "messages.0.content.0.image_url",
    ),
    ("/rerank", {"query": "a", "documents": [{"content": [image(URL)]}]}, "documents.0.content.0.image_url"),
    ("/score", {"data_1": {"content": [image(URL)]}, "data_2": "b"}, "data_1.content.0.image_url"),
]


@pytest.mark.parametrize(("path", "fields", "param"), NAMED)
def test_an_image_is_found_and_replaced_wherever_an_engine_would_fetch_it(
    path: str, fields: dict[str, Any], param: str
) -> None:
    asked = valid(path, **fields)
    assert asked.pictures is not None
    assert asked.pictures.urls() == {URL: param}
    filled = asked.pictures.filled({URL: ("image/png", PNG)})
    assert URL.encode() not in filled
    told = json.loads(filled)
    for name in param.split("."):
        told = told[int(name) if name.isdecimal() else name]
    if path.startswith("/v1/messages"):
        assert told == {"type": "base64", "media_type": "image/png", "data": DATA.partition(",")[2]}
    else:
        assert told == DATA or told["url"] == DATA
    assert valid(path, **json.loads(filled)).pictures is None
    assert valid(path, **fields).content == asked.content, "the fingerprint is that of the URL"


@pytest.mark.parametrize("url", [DATA, "DATA:image/png;base64,AA==", "data:"])
def test_a_data_url_passes(url: str) -> None:
    assert chat(image(url), {"type": "audio_url", "audio_url": {"url": url}}).pictures is None


def test_what_is_around_an_image_stays_as_it_was() -> None:
    asked = chat(image(URL), image(DATA), image(URL))
    assert asked.pictures is not None
    before = json.loads(asked.body)
    after = json.loads(asked.pictures.filled({URL: ("image/png", PNG)}))
    parts = before["messages"][0]["content"]
    parts[1]["image_url"]["url"] = parts[3]["image_url"]["url"] = DATA
    assert after == before
    assert asked.pictures.fields["messages"][0]["content"][1]["image_url"]["url"] == URL, "others hold it, too"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"type": "audio_url", "audio_url": {"url": URL}}, "audio_url"),
    ({"audio_url": URL}, "audio_url"),
    ({"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}, "video_url"),
    ({"type": "text", "text": "x", "video_url": URL}, "video_url"),
    ({"type": "input_file", "file_url": URL}, "file_url"),
    ({"type": "image_embeds", "image_embeds": "AAAA"}, ""),
    ({"audio_embeds": {"a": "AAAA"}}, "audio_embeds"),
    ({"type": "prompt_embeds", "data": "AAAA"}, ""),
    ({"image_pil": URL}, "image_pil"),
    ({**image(DATA), "uuid": "somebody's"}, "uuid"),
    ({"type": "image_url", "image_url": None, "uuid": "somebody's"}, "uuid"),
    ({"type": "document", "source": {"type": "url", "url": URL}}, "source"),
]


@pytest.mark.parametrize(("part", "param"), REFUSED)
def test_what_an_engine_would_load_by_itself_is_refused(part: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(part)
    where = ".".join(filter(None, ("messages.0.content.1", param)))
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "invalid_request_error", where)


def test_data_by_reference_is_refused() -> None:
    for form in ("url", "path"):
        with pytest.raises(RequestError):
            valid("/pooling", data={"data": URL, "data_format": form})
    assert valid("/pooling", data={"data": "AAAA", "data_format": "b64_json"}).pictures is None


def test_a_url_in_a_text_or_in_a_tool_is_a_text() -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"image_url": {"type": "string"}}}},
    }
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"image_url": URL})}}
    said = [{"role": "user", "content": [{"type": "text", "text": URL}]}, {"role": "assistant", "tool_calls": [call]}]
    assert valid("/v1/chat/completions", messages=said, tools=[tool]).pictures is None
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"image_url": URL}}
    assert valid("/v1/messages", messages=[{"role": "assistant", "content": [use]}]).pictures is None


def test_a_plain_chat_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.schemas.pictures_of", None)
    assert valid("/v1/chat/completions", messages=[{"role": "user", "content": "hello"}]).pictures is None
    with pytest.raises(TypeError):
        chat(image(URL))


def test_reserved_fields_do_not_come_back_with_the_images() -> None:
    messages = [{"role": "user", "content": [image(URL)]}]
    asked = valid("/v1/chat/completions", messages=messages, cache_salt="mine", priority=-5)
    assert asked.pictures is not None
    told = json.loads(asked.pictures.filled({URL: ("image/png", PNG)}))
    assert set(told) == {"messages"}

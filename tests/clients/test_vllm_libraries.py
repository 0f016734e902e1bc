"""LangChain, LlamaIndex, the OpenAI Agents SDK, Pydantic AI and Open WebUI's calls see what plain HTTP sees.

Each library runs once, in a program of its own (`programs`), which prints what it has seen. The model says a script of
known words, so a gap, a repeat or a splice in any of these streams is a difference here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.clients.conftest import Seen
from tests.support.scripted_models import SIGNS, THOUGHT, WORDS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SAY = [{"role": "user", "content": "What is a queue?"}]
SAID = "".join(WORDS) + SIGNS
"""What the script says before it calls its tool."""
CALLS = [["look", {"at": "the queue"}]]
AGENTS = ("responses", "chat")
SEVERAL = 20
"""Pieces at least of a streamed text; a buffer on the way would make them fewer."""
SIZE = 128


@dataclass(frozen=True, slots=True)
class Plain:
    """What plain HTTP gets: the whole text, and its tokens (prompt, completion, all)."""

    text: str
    tokens: list[int]


@pytest.fixture(scope="module")
def plain(stack: Any) -> Plain:
    asked = {"model": "scripted", "messages": SAY, "temperature": 0}
    told = httpx.post(f"{stack.apis[0].url}/v1/chat/completions", json=asked, timeout=60).json()
    usage = told["usage"]
    text = told["choices"][0]["message"]["content"]
    assert text.startswith(SAID)
    return Plain(text, [usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]])


def is_whole(pieces: list[str], text: str) -> bool:
    return "".join(pieces) == text and len(pieces) > SEVERAL


def is_same(one: list[float], other: list[float]) -> bool:
    return one == pytest.approx(other, abs=1e-3)


def counted(usage: dict[str, Any]) -> list[int]:
    return [usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]]


class TestLangChain:
    @pytest.fixture
    def told(self, seen: Seen) -> Any:
        return seen("with_langchain")

    def test_invoke(self, told: Any, plain: Plain) -> None:
        assert told["whole"]["text"] == plain.text
        assert counted(told["whole"]["usage"]) == plain.tokens
        assert told["whole"]["end"] == "stop"
        assert told["conversation"]["output_tokens"] == 12
        assert told["conversation"]["input_tokens"] > plain.tokens[0]
        assert told["batch"] == ["".join(WORDS[:6])] * 3

    def test_stream(self, told: Any, plain: Plain) -> None:
        assert is_whole(told["streamed"]["pieces"], plain.text)
        assert counted(told["streamed"]["usage"]) == plain.tokens
        assert is_whole(told["streamed_asynchronously"]["pieces"], plain.text)

    def test_tools(self, told: Any) -> None:
        assert told["called_tool"] == {"calls": CALLS, "wrong": []}
        assert told["streamed_tool"]["calls"] == CALLS
        assert told["streamed_tool"]["pieces"] > 1
        assert told["after_the_tool"] == SAID

    def test_structured_output(self, told: Any) -> None:
        assert told["structured"] in ({"yes": True}, {"yes": False})

    def test_responses(self, told: Any, plain: Plain) -> None:
        answer = told["responses"]
        assert answer["text"] == plain.text
        assert is_whole(answer["pieces"], plain.text)
        assert counted(answer["usage"]) == counted(answer["streamed_usage"]) == plain.tokens
        assert told["responses_tool"] == CALLS

    def test_a_conversation_goes_on_by_the_id_of_its_last_response(self, told: Any, plain: Plain) -> None:
        both = told["responses_go_on"]
        assert (both["first"], both["second"]) == (plain.text, plain.text)
        assert both["id"].startswith("resp_")
        first, second = both["tokens"]
        assert second > first + len(WORDS), "the second prompt holds the first answer"

    def test_errors_have_their_classes(self, told: Any) -> None:
        errors = told["errors"]
        for what in ("unknown model", "unknown model, streamed"):
            assert {"openai.NotFoundError", "langchain_core.ModelNotFoundError"} <= set(errors[what])
        assert {"openai.BadRequestError", "langchain_core.ContextOverflowError"} <= set(errors["too long"])
        assert {"openai.BadRequestError", "langchain_core.ModelInvalidRequestError"} <= set(errors["wrong value"])

    def test_embeddings(self, told: Any) -> None:
        vectors = told["embeddings"]
        first, second, third = vectors["several"]
        assert len(first) == SIZE
        assert is_same(first, third)
        assert is_same(first, vectors["one"])
        assert not is_same(first, second)
        assert vectors["tokens"] == [SIZE, SIZE]


class TestLlamaIndex:
    @pytest.fixture
    def told(self, seen: Seen) -> Any:
        return seen("with_llamaindex")

    def test_chat(self, told: Any, plain: Plain) -> None:
        assert told["chat"] == told["completed_as_chat"] == plain.text
        assert is_whole(told["chat_streamed"], plain.text)
        assert told["chat_asynchronously"]["text"] == plain.text
        assert is_whole(told["chat_asynchronously"]["pieces"], plain.text)

    def test_completion(self, told: Any, http: httpx.Client) -> None:
        asked = {"model": "scripted", "prompt": "What is a queue?", "max_tokens": 12, "temperature": 0}
        text = http.post("/v1/completions", json=asked).json()["choices"][0]["text"]
        assert told["completion"] == text
        assert "".join(told["completion_streamed"]) == text
        assert len(told["completion_streamed"]) > 5

    def test_tools(self, told: Any) -> None:
        assert told["called_tool"] == CALLS

    def test_errors_have_their_classes(self, told: Any) -> None:
        assert "openai.NotFoundError" in told["errors"]

    def test_embeddings(self, told: Any) -> None:
        first, second, third = told["embeddings"]["several"]
        assert len(first) == SIZE
        assert is_same(first, third)
        assert is_same(first, told["embeddings"]["one"])
        assert not is_same(first, second)


@pytest.mark.parametrize("way", AGENTS)
class TestAgents:
    @pytest.fixture
    def told(self, seen: Seen, way: str) -> Any:
        return seen("with_agents")[way]

    def test_run(self, told: Any, plain: Plain) -> None:
        assert told["whole"]["text"] == told["second_turn"] == plain.text
        prompt, completion, both = told["whole"]["tokens"]
        assert (completion, both) == (plain.tokens[1], prompt + completion)

    def test_stream(self, told: Any, plain: Plain) -> None:
        assert told["streamed"]["text"] == plain.text
        assert is_whole(told["streamed"]["pieces"], plain.text)

    def test_a_tool_is_called(self, told: Any) -> None:
        for step in ("called_tool", "streamed_tool"):
            assert told[step]["seen"] == ["the queue"]
            assert told[step]["text"] == "saw the queue"
        assert {"tool_called", "tool_output"} <= set(told["streamed_tool"]["items"])

    def test_structured_output(self, told: Any) -> None:
        assert told["structured"] in ({"yes": True}, {"yes": False})

    def test_errors_have_their_classes(self, told: Any) -> None:
        assert "openai.NotFoundError" in told["unknown_model"]


@pytest.mark.parametrize("way", AGENTS)
class TestPydanticAI:
    @pytest.fixture
    def told(self, seen: Seen, way: str) -> Any:
        return seen("with_pydantic_ai")[way]

    def test_run(self, told: Any, plain: Plain) -> None:
        assert told["whole"] == {"text": plain.text, "tokens": plain.tokens[:2]}

    def test_stream(self, told: Any, plain: Plain) -> None:
        assert is_whole(told["streamed"], plain.text)

    def test_a_tool_is_called(self, told: Any) -> None:
        assert told["called_tool"] == {"seen": ["the queue"], "calls": CALLS}

    def test_structured_output(self, told: Any) -> None:
        assert told["structured"] in ({"yes": True}, {"yes": False})


class TestOpenWebUI:
    @pytest.fixture
    def told(self, seen: Seen) -> Any:
        return seen("with_open_webui")

    def test_models(self, told: Any) -> None:
        listed = {"status": 200, "models": ["scripted", "vectors"]}
        assert told["models"] == told["models_without_a_key"] == listed

    def test_chat(self, told: Any, plain: Plain) -> None:
        chat = told["chat_streamed"]
        assert chat["kind"].startswith("text/event-stream")
        assert (chat["text"], chat["usage"]["completion_tokens"]) == (plain.text, plain.tokens[1])
        assert chat["pieces"] > SEVERAL
        assert chat["thought"] == "".join(THOUGHT)

    def test_tools_and_parameters(self, told: Any) -> None:
        assert (told["chat_with_tools"]["text"], told["chat_with_tools"]["arguments"]) == (SAID, '{"at": "the queue"}')
        assert told["chat_with_parameters"]["text"] == "".join(WORDS[:9]) + " ", "up to its stop string"

    def test_tasks(self, told: Any, plain: Plain) -> None:
        assert told["title"]["text"] == plain.text
        assert told["title"]["usage"]["completion_tokens"] == plain.tokens[1]

    def test_errors_are_json(self, told: Any) -> None:
        error = told["unknown_model"]
        assert (error["status"], error["type"]) == (404, "application/json")
        assert error["told"]["error"]["code"] == "model_not_found"

    def test_embeddings(self, told: Any) -> None:
        assert told["embeddings"] == [SIZE, SIZE]

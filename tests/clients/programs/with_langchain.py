"""What LangChain's users write, against any base URL: prints as JSON what each of the functions below has seen."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import tiktoken
import tiktoken.registry
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

BASE = sys.argv[1]
SAY = "What is a queue?"


def chat(**options: Any) -> ChatOpenAI:
    """A chat model of the server."""
    return ChatOpenAI(**{"base_url": BASE, "api_key": "none", "model": "scripted", "temperature": 0, **options})


@tool
def look(at: str) -> str:
    """Looks at something."""
    return f"saw {at}"


class Verdict(BaseModel):
    """A yes or a no."""

    yes: bool


def whole() -> Any:
    answer = chat().invoke(SAY)
    return {"text": answer.text, "usage": answer.usage_metadata, "end": answer.response_metadata["finish_reason"]}


def conversation() -> Any:
    said = [("system", "Be brief."), ("human", "Hi"), ("ai", "Hello"), ("human", [{"type": "text", "text": SAY}])]
    return chat(max_tokens=12).invoke(said).usage_metadata


def streamed() -> Any:
    pieces = list(chat(stream_usage=True).stream(SAY))
    total = _sum(pieces)
    return {"pieces": [piece.text for piece in pieces if piece.text], "usage": total.usage_metadata}


def streamed_asynchronously() -> Any:
    async def pieces() -> list[str]:
        return [piece.text async for piece in chat().astream(SAY) if piece.text]

    return {"pieces": asyncio.run(pieces())}


def batch() -> Any:
    return [answer.text for answer in chat(max_tokens=14).batch([SAY, "Hi", "x"])]


def called_tool() -> Any:
    answer = chat().bind_tools([look]).invoke(SAY)
    return {"calls": [[call["name"], call["args"]] for call in answer.tool_calls], "wrong": answer.invalid_tool_calls}


def streamed_tool() -> Any:
    pieces = list(chat().bind_tools([look]).stream(SAY))
    some = sum(1 for piece in pieces if piece.tool_call_chunks)
    return {"calls": [[call["name"], call["args"]] for call in _sum(pieces).tool_calls], "pieces": some}


def after_the_tool() -> Any:
    model = chat().bind_tools([look])
    asked = model.invoke(SAY)
    seen = look.invoke(asked.tool_calls[0])
    return model.invoke([("human", SAY), asked, seen]).text


def structured() -> Any:
    return chat(max_tokens=200).with_structured_output(Verdict, method="json_schema").invoke(SAY).model_dump()


def responses() -> Any:
    model = chat(use_responses_api=True)
    answer = model.invoke(SAY)
    pieces = list(model.stream(SAY))
    return {
        "text": answer.text,
        "usage": answer.usage_metadata,
        "pieces": [piece.text for piece in pieces if piece.text],
        "streamed_usage": _sum(pieces).usage_metadata,
    }


def responses_go_on() -> Any:
    model = chat(use_responses_api=True, use_previous_response_id=True)
    first = model.invoke(SAY)
    second = model.invoke([("human", SAY), first, ("human", "And a lane?")])
    texts = {"first": first.text, "second": second.text}
    tokens = [answer.usage_metadata["input_tokens"] for answer in (first, second)]
    return {**texts, "id": first.response_metadata["id"], "tokens": tokens}


def responses_tool() -> Any:
    answer = chat(use_responses_api=True).bind_tools([look]).invoke(SAY)
    return [[call["name"], call["args"]] for call in answer.tool_calls]


def errors() -> Any:
    return {
        "unknown model": _raised(lambda: chat(model="nobody").invoke(SAY)),
        "unknown model, streamed": _raised(lambda: list(chat(model="nobody").stream(SAY))),
        "too long": _raised(lambda: chat().invoke("word " * 3000)),
        "wrong value": _raised(lambda: chat(temperature=9).invoke(SAY)),
    }


def embeddings() -> Any:
    tiktoken.registry.ENCODINGS["cl100k_base"] = _bytes()  # LangChain's would be downloaded
    given: dict[str, Any] = {"base_url": BASE, "api_key": "none", "model": "vectors"}
    as_texts = OpenAIEmbeddings(**given, check_embedding_ctx_length=False)
    as_tokens = OpenAIEmbeddings(**given, tiktoken_model_name="text-embedding-ada-002")
    several = as_texts.embed_documents(["a queue", "a gate", "a queue"])
    return {
        "one": as_texts.embed_query("a queue"),
        "several": several,
        "tokens": [len(vector) for vector in as_tokens.embed_documents(["a queue", "a gate"])],
    }


def _bytes() -> tiktoken.Encoding:
    ranks = {bytes([value]): value for value in range(256)}
    return tiktoken.Encoding("cl100k_base", pat_str=".+", mergeable_ranks=ranks, special_tokens={})


def _sum(pieces: list[AIMessageChunk]) -> AIMessageChunk:
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    return total


def _raised(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except Exception as error:
        return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]
    return []


STEPS = [whole, conversation, streamed, streamed_asynchronously, batch, called_tool, streamed_tool, after_the_tool]
STEPS += [structured, responses, responses_go_on, responses_tool, errors, embeddings]

if __name__ == "__main__":
    print(json.dumps({step.__name__: step() for step in STEPS}))

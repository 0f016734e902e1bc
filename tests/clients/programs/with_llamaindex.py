"""What LlamaIndex's users write, against any base URL: prints as JSON what each of the functions below has seen."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

BASE = sys.argv[1]
SAY = "What is a queue?"


def model(**options: Any) -> OpenAILike:
    """A model of the server."""
    given: dict[str, Any] = {"api_base": BASE, "api_key": "none", "model": "scripted", "temperature": 0}
    return OpenAILike(**{**given, "is_chat_model": True, "context_window": 2048, "max_retries": 0, **options})


def look(at: str) -> str:
    """Looks at something."""
    return f"saw {at}"


def chat() -> Any:
    talk = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=SAY)]
    return model().chat(talk).message.content


def chat_streamed() -> Any:
    return [piece.delta for piece in model().stream_chat([ChatMessage(role="user", content=SAY)]) if piece.delta]


def chat_asynchronously() -> Any:
    async def both() -> Any:
        talk = [ChatMessage(role="user", content=SAY)]
        answer = await model().achat(talk)
        pieces = [piece.delta async for piece in await model().astream_chat(talk) if piece.delta]
        return {"text": answer.message.content, "pieces": pieces}

    return asyncio.run(both())


def completed_as_chat() -> Any:
    return model().complete(SAY).text


def completion() -> Any:
    return model(is_chat_model=False, max_tokens=12).complete(SAY).text


def completion_streamed() -> Any:
    pieces = model(is_chat_model=False, max_tokens=12).stream_complete(SAY)
    return [piece.delta for piece in pieces if piece.delta]


def called_tool() -> Any:
    able = model(is_function_calling_model=True)
    answer = able.chat_with_tools([FunctionTool.from_defaults(look)], user_msg=SAY)
    calls = able.get_tool_calls_from_response(answer)
    return [[call.tool_name, call.tool_kwargs] for call in calls]


def errors() -> Any:
    try:
        model(model="nobody").complete(SAY)
    except Exception as error:
        return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]
    return []


def embeddings() -> Any:
    embedder = OpenAILikeEmbedding(model_name="vectors", api_base=BASE, api_key="none", embed_batch_size=2)
    several = embedder.get_text_embedding_batch(["a queue", "a gate", "a queue"])
    return {"one": embedder.get_text_embedding("a queue"), "several": several}


STEPS = [chat, chat_streamed, chat_asynchronously, completed_as_chat, completion, completion_streamed, called_tool]
STEPS += [errors, embeddings]

if __name__ == "__main__":
    print(json.dumps({step.__name__: step() for step in STEPS}))

"""The first lines that a new user tries, with the demo model: prints as JSON what each library has streamed."""

from __future__ import annotations

import asyncio
import json
import sys

from agents import Agent, AsyncOpenAI, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

BASE, NAME, SAY = sys.argv[1], "penstock-demo", "What is Penstock?"


def openai() -> list[str]:
    client = OpenAI(base_url=BASE, api_key="none")
    said = [{"role": "user", "content": SAY}]
    chunks = client.chat.completions.create(model=NAME, messages=said, temperature=0, stream=True)
    return [chunk.choices[0].delta.content or "" for chunk in chunks]


def langchain() -> list[str]:
    model = ChatOpenAI(base_url=BASE, api_key="none", model=NAME, temperature=0)
    return [piece.text for piece in model.stream(SAY)]


def llamaindex() -> list[str]:
    model = OpenAILike(api_base=BASE, api_key="none", model=NAME, temperature=0, is_chat_model=True)
    return [piece.delta or "" for piece in model.stream_chat([ChatMessage(role="user", content=SAY)])]


def agents() -> list[str]:
    model = OpenAIChatCompletionsModel(model=NAME, openai_client=AsyncOpenAI(base_url=BASE, api_key="none"))
    agent = Agent(name="a", model=model, model_settings=ModelSettings(temperature=0))
    set_tracing_disabled(True)

    async def run() -> list[str]:
        streamed = Runner.run_streamed(agent, SAY)
        events = [event.data async for event in streamed.stream_events() if event.type == "raw_response_event"]
        return [event.delta for event in events if event.type == "response.output_text.delta"]

    return asyncio.run(run())


def pydantic_ai() -> list[str]:
    model = OpenAIChatModel(NAME, provider=OpenAIProvider(base_url=BASE, api_key="none"))

    async def run() -> list[str]:
        async with PydanticAgent(model, model_settings={"temperature": 0}).run_stream(SAY) as streamed:
            return [piece async for piece in streamed.stream_text(delta=True, debounce_by=None)]

    return asyncio.run(run())


STEPS = [openai, langchain, llamaindex, agents, pydantic_ai]

if __name__ == "__main__":
    print(json.dumps({step.__name__: [piece for piece in step() if piece] for step in STEPS}))

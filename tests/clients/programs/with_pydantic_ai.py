"""What Pydantic AI's users write, against any base URL: prints as JSON what each of the functions below has seen."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, UsageLimitExceeded
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

BASE = sys.argv[1]
SAY = "What is a queue?"


class Verdict(BaseModel):
    """A yes or a no."""

    yes: bool


def agent(kind: Any, **options: Any) -> Agent[Any, Any]:
    """An agent that always says the same."""
    model = kind("scripted", provider=OpenAIProvider(base_url=BASE, api_key="none"))
    return Agent(model, model_settings={"temperature": 0}, **options)


async def whole(kind: Any) -> Any:
    result = await agent(kind).run(SAY)
    return {"text": result.output, "tokens": [result.usage.input_tokens, result.usage.output_tokens]}


async def streamed(kind: Any) -> Any:
    async with agent(kind).run_stream(SAY) as result:
        return [piece async for piece in result.stream_text(delta=True, debounce_by=None) if piece]


async def called_tool(kind: Any) -> Any:
    seen: list[str] = []
    able = agent(kind)

    @able.tool_plain
    def look(at: str) -> str:
        """Looks at something."""
        seen.append(at)
        return f"saw {at}"

    with_calls = able.iter(SAY, usage_limits=UsageLimits(request_limit=1))
    calls = []
    async with with_calls as run:
        try:
            async for _ in run:
                pass
        except UsageLimitExceeded:
            calls = [part for message in run.all_messages() for part in message.parts if isinstance(part, ToolCallPart)]
    return {"seen": seen, "calls": [[call.tool_name, call.args_as_dict()] for call in calls]}


async def structured(kind: Any) -> Any:
    return (await agent(kind, output_type=NativeOutput(Verdict)).run(SAY)).output.model_dump()


STEPS = [whole, streamed, called_tool, structured]


async def main() -> None:
    """Every step in both ways."""
    kinds = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}
    print(json.dumps({name: {step.__name__: await step(kind) for step in STEPS} for name, kind in kinds.items()}))


if __name__ == "__main__":
    asyncio.run(main())

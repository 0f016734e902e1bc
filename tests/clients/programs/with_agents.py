"""What users of the OpenAI Agents SDK write, against any base URL: prints as JSON what each function below has seen."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agents import (
    Agent,
    AsyncOpenAI,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

BASE = sys.argv[1]
SAY = "What is a queue?"
SEEN: list[str] = []


@function_tool
def look(at: str) -> str:
    """Looks at something."""
    SEEN.append(at)
    return f"saw {at}"


class Verdict(BaseModel):
    """A yes or a no."""

    yes: bool


def models() -> dict[str, Model]:
    """Both of the SDK's ways to ask."""
    client = AsyncOpenAI(base_url=BASE, api_key="none")
    return {
        "responses": OpenAIResponsesModel(model="scripted", openai_client=client),
        "chat": OpenAIChatCompletionsModel(model="scripted", openai_client=client),
    }


def agent(model: Model, **options: Any) -> Agent[Any]:
    """An agent that always says the same."""
    settings = ModelSettings(temperature=0)
    return Agent(**{"name": "a", "instructions": "Be brief.", "model": model, "model_settings": settings, **options})


async def whole(model: Model) -> Any:
    result = await Runner.run(agent(model), SAY)
    usage = result.context_wrapper.usage
    return {"text": result.final_output, "tokens": [usage.input_tokens, usage.output_tokens, usage.total_tokens]}


async def streamed(model: Model) -> Any:
    result = Runner.run_streamed(agent(model), SAY)
    events = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    return {"text": result.final_output, "pieces": pieces}


async def called_tool(model: Model) -> Any:
    SEEN.clear()
    able = agent(model, tools=[look], tool_use_behavior="stop_on_first_tool")
    result = await Runner.run(able, SAY)
    return {"text": result.final_output, "seen": list(SEEN)}


async def streamed_tool(model: Model) -> Any:
    SEEN.clear()
    able = agent(model, tools=[look], tool_use_behavior="stop_on_first_tool")
    result = Runner.run_streamed(able, SAY)
    kinds = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
    return {"text": result.final_output, "seen": list(SEEN), "items": kinds}


async def second_turn(model: Model) -> Any:
    result = await Runner.run(agent(model), SAY)
    again = await Runner.run(agent(model), [*result.to_input_list(), {"role": "user", "content": "And a lane?"}])
    return again.final_output


async def structured(model: Model) -> Any:
    result = await Runner.run(agent(model, output_type=Verdict), SAY)
    return result.final_output.model_dump()


async def unknown_model(model: Model) -> Any:
    model.model = "nobody"  # type: ignore[attr-defined]
    try:
        await Runner.run(agent(model), SAY)
    except Exception as error:
        return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]
    return []


STEPS = [whole, streamed, called_tool, streamed_tool, second_turn, structured, unknown_model]


async def main() -> None:
    """Every step in both ways."""
    set_tracing_disabled(True)
    seen = {name: {step.__name__: await step(model) for step in STEPS} for name, model in models().items()}
    print(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(main())

"""Open WebUI's calls, as its server makes them with aiohttp: prints as JSON what each of the functions below has seen.

They are those of `backend/open_webui/routers/openai.py` (`verify_connection`, `get_models`, `generate_chat_completion`,
`embeddings`) and of the tasks that follow a chat (title, tags), read in the repository open-webui/open-webui.
The application itself is not run. What it does with a stream is in `utils/middleware.py`: it takes the lines that
begin with `data:`, and hands on the rest.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp

BASE = sys.argv[1]
SAY = "What is a queue?"
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-none"}
FORWARDED = {
    "X-OpenWebUI-User-Name": "Ada%20L",
    "X-OpenWebUI-User-Id": "2f1d6b0e-7a6c-4c53-9f07-0d4f6a9b1c11",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "b6c0a1de-1111-4222-8333-944445555666",
}
"""With ENABLE_FORWARD_USER_INFO_HEADERS."""
CHAT: dict[str, Any] = {
    "model": "scripted",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SAY}],
    "temperature": 0,
}
TITLE = '### Task:\nGenerate a concise, 3-5 word title. JSON format: { "title": "your title here" }\n'


def session() -> aiohttp.ClientSession:
    """As `generate_chat_completion` opens it."""
    return aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=300), read_bufsize=4 * 1024 * 1024)


async def models() -> Any:
    async with session() as client, client.get(f"{BASE}/models", headers=HEADERS, cookies={}) as answer:
        listed = await answer.json()
    return {"status": answer.status, "models": sorted(model["id"] for model in listed["data"])}


async def models_without_a_key() -> Any:
    headers = {"Content-Type": "application/json", **FORWARDED}
    async with session() as client, client.get(f"{BASE}/models", headers=headers) as answer:
        return {"status": answer.status, "models": sorted(model["id"] for model in (await answer.json())["data"])}


async def chat_streamed() -> Any:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    return await _streamed(body, {**HEADERS, **FORWARDED})


async def chat_with_tools() -> Any:
    look = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    return await _streamed({**CHAT, "stream": True, "tools": [{"type": "function", "function": look}]}, HEADERS)


async def chat_with_parameters() -> Any:
    """What a user can set in the sidebar, and what a model's page adds."""
    extra: dict[str, Any] = {"top_p": 0.9, "top_k": 40, "min_p": 0.05, "frequency_penalty": 0, "presence_penalty": 0}
    extra |= {"seed": 7, "stop": ["w9"], "max_tokens": 40, "logit_bias": {"5": -1}, "reasoning_effort": "low"}
    return await _streamed({**CHAT, **extra, "stream": True}, HEADERS)


async def title() -> Any:
    task = {"model": "scripted", "messages": [{"role": "user", "content": TITLE}], "stream": False, "temperature": 0}
    async with (
        session() as client,
        client.post(
            f"{BASE}/chat/completions", data=json.dumps({**task, "max_completion_tokens": 1000}), headers=HEADERS
        ) as answer,
    ):
        told = await answer.json()
    return {"text": told["choices"][0]["message"]["content"], "usage": told["usage"]}


async def unknown_model() -> Any:
    body = json.dumps({**CHAT, "model": "nobody", "stream": True})
    async with session() as client, client.post(f"{BASE}/chat/completions", data=body, headers=HEADERS) as answer:
        return {"status": answer.status, "type": answer.content_type, "told": await answer.json()}


async def embeddings() -> Any:
    body = json.dumps({"model": "vectors", "input": ["a queue", "a gate"]})
    async with session() as client, client.post(f"{BASE}/embeddings", data=body, headers=HEADERS) as answer:
        return [len(one["embedding"]) for one in (await answer.json())["data"]]


async def _streamed(body: dict[str, Any], headers: dict[str, str]) -> Any:
    """Reads line by line, as the middleware does."""
    text, thought, arguments, usage, pieces = "", "", "", None, 0
    async with (
        session() as client,
        client.post(f"{BASE}/chat/completions", data=json.dumps(body), headers=headers, cookies={}) as answer,
    ):
        kind = answer.headers["Content-Type"]
        async for line in answer.content:
            data = line.decode("utf-8", "replace").removeprefix("data:").strip()
            if not line.startswith(b"data:") or data == "[DONE]":
                continue
            chunk = json.loads(data)
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                delta = choice["delta"]
                pieces += bool(delta.get("content"))
                text += delta.get("content") or ""
                thought += delta.get("reasoning_content") or ""
                arguments += "".join(call["function"].get("arguments") or "" for call in delta.get("tool_calls") or ())
    return {"kind": kind, "text": text, "thought": thought, "arguments": arguments, "usage": usage, "pieces": pieces}


STEPS = [models, models_without_a_key, chat_streamed, chat_with_tools, chat_with_parameters, title, unknown_model]
STEPS += [embeddings]


async def main() -> None:
    """Every call."""
    print(json.dumps({step.__name__: await step() for step in STEPS}))


if __name__ == "__main__":
    asyncio.run(main())

"""The handle of the vLLM engine: vLLM's own application over vLLM's own engine, in this process.

The application is the one of `vllm serve`, so routes, validators, templates, parsers and error bodies are vLLM's. It
depends on a handful of vLLM's names, all imported here, in `vllm_flags` and in `vllm_proxy`; a contract test fails when
one of them moves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import contextvars
import gc
import json
import logging
import time
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import vllm
from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import propagate_flash_late_interaction
from vllm.logger import configure_logging_from_args
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from shared.errors import EngineFailedError
from worker.engines import vllm_chunks, vllm_faults
from worker.engines.base import Capabilities, Capacity, Tokenizer, current_journal
from worker.engines.vllm_guard import Guard
from worker.engines.vllm_log import ErrorLog
from worker.engines.vllm_messages import tell_errors
from worker.engines.vllm_proxy import EngineProxy, Exchange, current_exchange, for_ever
from worker.engines.vllm_reasoning import PATH as REASONING_PATH
from worker.engines.vllm_reasoning import sending_both
from worker.engines.vllm_tokenizer import describe, fast_tokenizer

_FRONT_LAYERS: tuple[Any, ...] = (CORSMiddleware, PrometheusInstrumentatorMiddleware)
_KV_USAGE = "vllm:kv_cache_usage_perc"
_KV_FULL_RATIO = 0.95
_KV_LOOK_S = 0.05
_SHUTDOWN_S = 5.0


class VllmEngine:
    """An engines.base.Engine."""

    name = "vllm"
    version = str(vllm.__version__)

    def __init__(self, args: argparse.Namespace, log: ErrorLog) -> None:
        """`args` as vllm_flags.parse gives them. `log` knows why a start failed."""
        self._args = args
        self._log = log
        self._priorities = args.scheduling_policy == "priority"
        self.capabilities = Capabilities(journals=True, priorities=self._priorities)
        self._reasons = False
        self._guard: Guard | None = None
        self._engine: AsyncLLM | None = None
        self._inner: ASGIApp | None = None
        self._server = SimpleNamespace(should_exit=False)  # vLLM sets it when it gives its HTTP server up
        self._stats: asyncio.Task[None] | None = None
        self._failure: str | None = None
        self._stopping = False
        self._slots = 0
        self._kv_full = False
        self._kv_read_at_s = 0.0

    async def start(self) -> None:
        """See Engine. The loop stays responsive: loading happens in a thread."""
        root = logging.getLogger()
        level = root.level
        try:
            self._engine = await asyncio.to_thread(self._load)
            await self._build(self._engine)
            root.setLevel(level)  # one of vLLM's libraries has raised it to ERROR: our own logs would be gone
        except Exception as error:
            sentence = self._log.sentence(self._args.model, error)
            await self.stop()
            raise EngineFailedError(sentence) from error
        except BaseException:
            await self.stop()
            raise

    def _load(self) -> AsyncLLM:
        """What vLLM's build_async_engine_client does, except that it blocks the event loop while the model loads."""
        args = self._args
        self._guard = Guard()
        if args.tool_parser_plugin:
            ToolParserManager.import_tool_parser(args.tool_parser_plugin)
        if args.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
        configure_logging_from_args(args)
        engine_args = AsyncEngineArgs.from_cli_args(args)
        propagate_flash_late_interaction(args, engine_args)
        with self._guard.marking():
            config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
            return AsyncLLM.from_vllm_config(
                vllm_config=config,
                usage_context=UsageContext.OPENAI_API_SERVER,
                enable_log_requests=engine_args.enable_log_requests,
                aggregate_engine_logging=engine_args.aggregate_engine_logging,
                disable_log_stats=engine_args.disable_log_stats,
            )

    async def _build(self, engine: AsyncLLM) -> None:
        args = self._args
        await engine.reset_mm_cache()  # profiling left dummy data there
        config = engine.vllm_config
        self._slots = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        self._reasons = bool(config.structured_outputs_config.reasoning_parser)
        tasks = await engine.get_supported_tasks()
        vllm_chunks.install()
        app = without_front_layers(build_app(args, tasks, engine.model_config))
        proxy: Any = EngineProxy(engine, lambda: self.failure() is not None, priorities=self._priorities)
        await init_app_state(proxy, app.state, args, tasks)
        messages = getattr(app.state, "anthropic_serving_messages", None)  # not there for pooling models
        if messages is not None:
            messages.message_stream_converter = tell_errors(messages.message_stream_converter)
        app.state.server = self._server
        self._inner = app
        _read_outputs(engine)
        if not args.disable_log_stats:
            self._stats = asyncio.create_task(_log_stats(engine), name="vllm-stats")
        gc.collect()
        gc.freeze()  # as vLLM's server does: the heap of the start is not looked at again

    @property
    def app(self) -> ASGIApp:
        """See Engine."""
        return self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange. When it ends, however it ends, none of its generations runs on.

        Cancelling is not enough for that: vLLM's handlers run in tasks of their own.
        """
        if self._engine is None or self._inner is None:
            raise EngineFailedError("the engine has not been started")
        exchange = Exchange(current_journal.get())
        if self._reasons and scope["path"] == REASONING_PATH:
            send = sending_both(send)
        token = current_exchange.set(exchange)

        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if self.failure() is not None:  # what vLLM says now is that its engine is dead
                await for_ever()
            await send(message)
            begun = message["type"] == "http.response.body"

        try:
            await self._inner(scope, receive, guarded)
        except Exception as error:
            if not begun or scope["path"] != vllm_faults.PATH:
                raise
            await guarded({"type": "http.response.body", "body": vllm_faults.fault_event(error), "more_body": False})
        finally:
            current_exchange.reset(token)
            exchange.over = True
            if exchange.running and self.failure() is None and not self._stopping:
                await self._engine.abort(list(exchange.running))

    async def models(self) -> list[dict[str, Any]]:
        """See Engine. They are what vLLM's own `/v1/models` answers."""
        _, body = await self._ask("GET", "/v1/models")
        cards: list[dict[str, Any]] = json.loads(body)["data"]
        return cards

    async def tokenizer(self) -> Tokenizer | None:
        """See Engine."""
        backend = fast_tokenizer(self._engine.tokenizer) if self._engine is not None else None
        return None if backend is None else await describe(backend, self._tokenize)

    async def _tokenize(self, fields: dict[str, Any]) -> int | None:
        status, body = await self._ask("POST", "/tokenize", json.dumps(fields).encode())
        return int(json.loads(body)["count"]) if status == HTTPStatus.OK else None

    async def _ask(self, method: str, path: str, asked: bytes = b"") -> tuple[int, bytes]:
        """Status and body of what vLLM's application answers."""
        body = bytearray()
        status = 0
        messages = iter([{"type": "http.request", "body": asked, "more_body": False}])
        gone = asyncio.Event()

        async def receive() -> Message:
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body.extend(message.get("body", b""))

        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(asked)).encode())],
            "client": None,
            "server": None,
            "state": {},
        }
        await self._serve(scope, receive, send)
        return status, bytes(body)

    def capacity(self) -> Capacity:
        """See Engine. The use of the KV cache is looked at every 50 ms at most."""
        return Capacity(self._slots, saturated=self._kv_cache_is_full())

    def _kv_cache_is_full(self) -> bool:
        if self._engine is None or not self._engine.get_num_unfinished_requests():
            return False
        now_s = time.monotonic()
        if now_s - self._kv_read_at_s >= _KV_LOOK_S:
            self._kv_read_at_s = now_s
            gauges = REGISTRY.restricted_registry([_KV_USAGE]).collect()
            self._kv_full = any(sample.value > _KV_FULL_RATIO for gauge in gauges for sample in gauge.samples)
        return self._kv_full

    @property
    def unfinished(self) -> int:
        """Generations that vLLM still holds."""
        return 0 if self._engine is None else int(self._engine.get_num_unfinished_requests())

    def failure(self) -> str | None:
        """See Engine."""
        if self._failure is None and self._engine is not None and not self._stopping:
            if self._engine.errored:
                self._failure = "vLLM's engine process has died; the log says why"
            elif self._server.should_exit:
                self._failure = "vLLM gave up after an error; the log says why"
        return self._failure

    async def stop(self) -> None:
        """See Engine."""
        self._stopping = True
        stats, self._stats = self._stats, None
        if stats is not None:
            stats.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stats
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown, timeout=max(_SHUTDOWN_S, engine.vllm_config.shutdown_timeout))
        guard, self._guard = self._guard, None
        if guard is not None:
            await asyncio.to_thread(guard.close)
        self._log.close()


def without_front_layers(app: FastAPI) -> FastAPI:
    """The application without CORS and HTTP metrics: they are the replicas', and would cost every token two calls."""
    app.user_middleware = [layer for layer in app.user_middleware if layer.cls not in _FRONT_LAYERS]
    app.middleware_stack = None  # vLLM has it built already; it is built anew with the first request
    return app


def _read_outputs(engine: AsyncLLM) -> None:
    """Starts the task that reads the engine's outputs. It would start with the first request otherwise.

    Then that request's id would stand in all its log lines, for ever. A vLLM without this name starts it as it likes.
    """
    start = getattr(engine, "_run_output_handler", None)
    if start is not None:
        contextvars.Context().run(start)


async def _log_stats(engine: AsyncLLM) -> None:
    while True:
        await asyncio.sleep(envs.VLLM_LOG_STATS_INTERVAL)
        await engine.do_log_stats()

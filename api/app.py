"""create_app(settings): wiring and lifespan of a replica. No logic."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api import problems
from api.admission import Door
from api.catalog import Catalog
from api.document import document
from api.drain import Drain
from api.files.turns import Turns
from api.images import Images
from api.listing import Listing
from api.queues import Queues
from api.requests import Requests
from api.responses.store import Store
from api.routes import admin, batches, completions, files, lanes, models, ops, responses
from api.routes import requests as request_routes
from api.settings import ApiSettings
from api.tokens import Tokens
from api.waiting import Waiting
from api.watch import RelayWatch
from shared.batches import Batches
from shared.channels import Channels
from shared.clock import SystemClock
from shared.connection import RedisCaller, connect
from shared.dead_letters import DeadLetters
from shared.errors import BrokerUnavailableError, RequestError, StorageUnavailableError
from shared.files import Files
from shared.hot import HotClient
from shared.keys import GlobalKeys
from shared.lane_admin import LaneAdmin
from shared.metrics import BUILD
from shared.process import version
from shared.reaper import Reaper
from shared.registry import Registry
from shared.server_health import ServerHealth
from shared.services import ServiceGroup
from shared.storage import open_storage
from shared.tenant_usage import TenantUsage

log = logging.getLogger(__name__)


_HANDLERS: dict[type[Exception], Any] = {
    RequestError: problems.on_request_error,
    BrokerUnavailableError: problems.on_broker_error,
    StorageUnavailableError: problems.on_storage_error,
    HTTPException: problems.on_http_exception,
    RequestValidationError: problems.on_validation_error,
    Exception: problems.on_bug,
}


def create_app(settings: ApiSettings) -> FastAPI:
    """The replica's application. It connects to Redis in its lifespan, and keeps trying while Redis is away.

    Raises ConfigurationError when the storage's address is none.
    """
    storage = open_storage(settings.storage_url) if settings.storage_url else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        control = connect(settings.redis_url)
        client = HotClient(settings.redis_url, f"penstock-api-{os.getpid()}")
        channels = Channels(settings.redis_url, f"penstock-api-sub-{os.getpid()}")
        watch = RelayWatch()
        registry = Registry(control, settings.prefix)
        catalog = Catalog(registry, SystemClock())
        waiting = Waiting(client, catalog, settings.heartbeat_s)
        tokens = Tokens(registry.tokenizer)
        images = Images(settings.image_rules)
        app.state.catalog = catalog
        read_too = (
            ServerHealth(control),
            TenantUsage(control, settings.prefix, most=settings.metrics_tenants),
        )
        app.state.queues = Queues(
            registry, RedisCaller(control), settings.prefix, settings.scale_targets, SystemClock(), read_too
        )
        app.state.channels = channels
        app.state.client = client
        app.state.dead_letters = DeadLetters(control, settings.prefix)
        app.state.lane_admin = LaneAdmin(
            control, settings.prefix, result_ttl_ms=settings.result_ttl_s * 1000, bounds=settings.bounds
        )
        app.state.batches = Batches(client, settings.prefix)
        app.state.watch = watch
        requests = Requests(client, catalog, result_ttl_ms=settings.result_ttl_s * 1000)
        app.state.requests = requests
        app.state.listing = Listing(client, catalog)
        app.state.door = Door(settings, client, requests, channels, catalog, watch, tokens, waiting, images)
        app.state.responses = stored = Store(client, ttl_s=settings.responses_ttl_s, log_ttl_s=settings.result_ttl_s)
        app.state.files = Files(storage, control, GlobalKeys(settings.prefix), settings.file_quota) if storage else None
        app.state.uploads = Turns(settings.uploads_at_once, each=settings.uploads_each)
        app.state.drain = Drain(app.state.door, watch, settings.drain_s)
        services = ServiceGroup()
        failing: asyncio.Task[None] | None = None
        try:
            own = (client, channels, watch, waiting, app.state.door.retries)
            for service in (*own, Reaper(control, settings.prefix)):
                await services.start(service)
            failing = asyncio.create_task(_end_with_services(app, services))
            yield
        finally:
            if failing is not None:
                failing.cancel()
            await stored.close()
            await services.stop()
            await tokens.close()
            await images.close()
            await control.aclose()

    app = FastAPI(title="Penstock", summary="Large language models behind a queue.", lifespan=lifespan)
    app.state.settings, app.state.keys, app.state.storage = settings, settings.keys, storage
    BUILD.labels(role="api", version=version()).set(1)
    app.state.on_failure = lambda: None
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    for error, handler in _HANDLERS.items():
        app.add_exception_handler(error, handler)
    for routes in (completions, responses, files, batches, models, ops, request_routes, admin, lanes):
        app.include_router(routes.router)
    app.openapi = document(app)  # type: ignore[method-assign]  # FastAPI's own way of doing it


async def _end_with_services(app: FastAPI, services: ServiceGroup) -> None:
    """A replica without one of its services is half a one: it is not ready any more, drains, and its server ends."""
    log.critical("this replica ends: %r", await services.failure())
    app.state.drain.begin()
    app.state.on_failure()

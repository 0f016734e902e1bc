"""GET /livez, /readyz, /healthz and /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.errors import BrokerUnavailableError

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """200 while the process can answer at all. Never depends on Redis: a restart would not bring it back."""
    return {"status": "alive"}


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """200 when a request sent now would be served: Redis answers, the subscriber is connected, a worker is ready.

    With `cold_start_hold_s` a known model is enough: requests wait for its worker.
    """
    report = await _report(request)
    return JSONResponse(report, 200 if report["status"] == "ready" else 503)


@router.get("/healthz")
async def healthz(request: Request) -> JSONResponse:
    """As /readyz; the name that users of other stacks know."""
    return await readyz(request)


@router.get("/health", include_in_schema=False)
async def health(request: Request) -> JSONResponse:
    """As /readyz; the name that `vllm serve` uses."""
    return await readyz(request)


@router.get("/metrics")
async def metrics() -> Response:
    """The metrics of this replica, in Prometheus' text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _report(request: Request) -> dict[str, Any]:
    state = request.app.state
    if state.door.draining:
        return {"status": "draining"}
    try:
        models = await state.catalog.models()
    except BrokerUnavailableError:
        return {"status": "broker_unavailable"}
    if not state.channels.connected or not state.client.connected:
        return {"status": "broker_unavailable"}
    served = sorted(name for name, pool in models.pools.items() if pool.workers)
    held = state.settings.cold_start_hold_s > 0 and bool(models.pools)
    return {"status": "ready" if served or held else "no_worker", "models": served}

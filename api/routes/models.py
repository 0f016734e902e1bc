"""GET /v1/models and /v1/models/{model}: what workers serve, and what is known. GET /version: what runs here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from api.auth import tenant_of
from shared.errors import BrokerUnavailableError

router = APIRouter(tags=["models"])

try:
    _VERSION = installed("penstock")
except PackageNotFoundError:  # run from a checkout that was not installed
    _VERSION = "unknown"


@router.get("/v1/models")
async def list_models(request: Request, tenant: Annotated[str, Depends(tenant_of)]) -> dict[str, Any]:
    """The cards of all models, adapters included; those that have no worker now are marked as cold."""
    del tenant
    return {"object": "list", "data": list((await request.app.state.catalog.cards()).values())}


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request, tenant: Annotated[str, Depends(tenant_of)]) -> dict[str, Any]:
    """The card of one model."""
    del tenant
    card: dict[str, Any] = await request.app.state.catalog.card(model)
    return card


@router.get("/version")
async def version(request: Request, tenant: Annotated[str, Depends(tenant_of)]) -> dict[str, Any]:
    """The version of this replica, and of the engines of the living workers as far as Redis can be asked."""
    del tenant
    try:
        pools = (await request.app.state.catalog.models()).pools.values()
    except BrokerUnavailableError:
        pools = ()
    engines = sorted({(card.engine, card.engine_version) for pool in pools for card in pool.workers})
    return {"version": _VERSION, "engines": [{"name": name, "version": number} for name, number in engines]}

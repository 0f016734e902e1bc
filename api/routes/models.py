"""GET /v1/models and /v1/models/{model}: what living workers serve."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from api.auth import tenant_of

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request, tenant: Annotated[str, Depends(tenant_of)]) -> dict[str, Any]:
    """The cards of all models that are served now."""
    del tenant
    models = await request.app.state.catalog.models()
    return {"object": "list", "data": list(models.cards.values())}


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request, tenant: Annotated[str, Depends(tenant_of)]) -> dict[str, Any]:
    """The card of one model."""
    del tenant
    card: dict[str, Any] = await request.app.state.catalog.card(model)
    return card

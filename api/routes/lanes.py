"""/v1/admin/lanes: the lanes, for operators. Closed unless an admin key is set. Without `model`: those of all pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from api.routes.admin import operator
from api.routes.completions import body_of, check_encoding
from api.schemas import parse_object
from shared.lane_admin import LaneAdmin
from shared.lane_settings import DRAIN, PAUSE, RESUME, parse_changes, parse_lane

_LONGEST_S = 10**9

router = APIRouter(prefix="/v1/admin/lanes", tags=["admin"], dependencies=[Depends(operator)])


async def _admin(request: Request) -> LaneAdmin:
    admin: LaneAdmin = request.app.state.lane_admin
    return admin


async def _sent(request: Request) -> dict[str, Any]:
    """The JSON object in the body. FastAPI would read a body of any length, and before it has looked at the key."""
    check_encoding(request.headers)
    return parse_object(await body_of(request, request.headers.get("content-length", "")))


Lanes = Annotated[LaneAdmin, Depends(_admin)]
Model = Annotated[str | None, Query(description="only the pool of this model")]


async def _changed(lanes: LaneAdmin, name: str, changes: Mapping[str, str], model: str | None) -> dict[str, Any]:
    """Changes a lane, and says what it is like then."""
    lane = parse_lane(name)
    pools = await lanes.pools(model)
    for pool in pools:
        await lanes.change(pool, lane, changes)
    states = [state for pool in pools for state in await lanes.look(pool) if state.lane == lane]
    return {"object": "list", "data": [state.facts() for state in states]}


@router.get("")
async def list_lanes(lanes: Lanes, model: Model = None) -> dict[str, Any]:
    """What waits in each lane, whether it is paused or draining, its settings and where each comes from."""
    states = [state for pool in await lanes.pools(model) for state in await lanes.look(pool)]
    return {"object": "list", "data": [state.facts() for state in states]}


@router.patch("/{lane}")
async def change_lane(
    lane: str, lanes: Lanes, settings: Annotated[dict[str, Any], Depends(_sent)], model: Model = None
) -> dict[str, Any]:
    """Changes settings in the running system; null takes one back."""
    return await _changed(lanes, lane, parse_changes(settings), model)


@router.post("/{lane}/pause")
async def pause_lane(lane: str, lanes: Lanes, model: Model = None) -> dict[str, Any]:
    """Starts nothing of the lane. What runs goes on, what comes waits."""
    return await _changed(lanes, lane, PAUSE, model)


@router.post("/{lane}/resume")
async def resume_lane(lane: str, lanes: Lanes, model: Model = None) -> dict[str, Any]:
    """Ends a pause and a drain."""
    return await _changed(lanes, lane, RESUME, model)


@router.post("/{lane}/drain")
async def drain_lane(lane: str, lanes: Lanes, model: Model = None) -> dict[str, Any]:
    """Refuses what is new. What waits and runs goes on."""
    return await _changed(lanes, lane, DRAIN, model)


@router.post("/{lane}/purge")
async def purge_lane(
    lane: str,
    lanes: Lanes,
    model: Model = None,
    tenant: str | None = None,
    older_than_s: Annotated[float, Query(ge=0, le=_LONGEST_S)] = 0,
) -> dict[str, Any]:
    """Ends what waits in the lane, each with an error to its client. What runs is left alone."""
    parsed, purged = parse_lane(lane), {}
    for pool in await lanes.pools(model):
        ended = lanes.purge(pool, parsed, tenant=tenant, older_than_s=older_than_s)
        purged[pool] = sum([count async for count in ended])
    data = [{"pool": pool, "lane": parsed.value, "purged": count} for pool, count in purged.items()]
    return {"object": "list", "data": data, "purged": sum(purged.values())}

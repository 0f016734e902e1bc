"""/v1/files: upload, list, retrieve, delete, content. Any replica answers for any file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from api.auth import tenant_of
from api.files.download import Download, headers_of, wanted
from api.files.upload import Upload
from api.idempotency import terms_of
from shared import errors, file_errors
from shared.errors import ObjectMissingError, StorageUnavailableError
from shared.file_index import FileFacts
from shared.files import Files
from shared.ids import is_file_id
from shared.metrics import FILE_TRANSFERS, FILE_UPLOADS, child

router = APIRouter(tags=["files"])
Tenant = Annotated[str, Depends(tenant_of)]

_MOST_LISTED = 10_000
_SHOWN_CHARS = 64
_CLIENT_GONE = 499
_UNCHANGED = 304


def files_of(request: Request) -> Files:
    """The files of this replica. Raises RequestError (501) when it has no storage."""
    files: Files | None = request.app.state.files
    if files is None:
        raise file_errors.no_storage()
    return files


def shown(facts: FileFacts) -> dict[str, Any]:
    """A file as OpenAI's FileObject."""
    return {
        "id": facts.id,
        "object": "file",
        "bytes": facts.bytes,
        "created_at": facts.created_at,
        "expires_at": facts.expires_at,
        "filename": facts.filename,
        "purpose": facts.purpose,
        "status": "processed",
        "status_details": None,
    }


async def found(request: Request, tenant: str, file: str) -> FileFacts:
    """A file of this tenant. Raises RequestError (404)."""
    facts = await files_of(request).find(tenant, file)
    if facts is None:
        raise errors.not_found(f"The file {file[:_SHOWN_CHARS]}")
    return facts


@router.post("/v1/files")
async def upload(request: Request, tenant: Tenant) -> Response:
    """Stores a file."""
    state, files = request.app.state, files_of(request)
    if state.door.draining:
        raise errors.replica_stopping()
    key = terms_of({name: value for name, value in request.headers.items() if name == "idempotency-key"}).key
    outcome = "failed"
    try:
        async with state.uploads.taken(tenant):
            with child(FILE_TRANSFERS, "in").track_inprogress():
                one = Upload(files, tenant, state.settings.upload_rules)
                facts, new = await one.run(request, key, state.settings.idempotency_ttl_s)
        outcome = "stored" if new else "replayed"
    except ClientDisconnect:
        outcome = "broken_off"
        return Response(status_code=_CLIENT_GONE)
    except errors.RequestError:
        outcome = "refused"
        raise
    finally:
        child(FILE_UPLOADS, outcome).inc()
    headers = {"idempotency-status": "created" if new else "replayed"} if key else None
    return JSONResponse(shown(facts), headers=headers)


@router.get("/v1/files")
async def list_files(
    request: Request,
    tenant: Tenant,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = _MOST_LISTED,
    order: Literal["asc", "desc"] = "desc",
    purpose: str = "",
) -> JSONResponse:
    """The caller's files by creation, from behind the file `after` on."""
    files = files_of(request)
    if after and not is_file_id(after):
        raise errors.invalid_request("`after` must be the id of a file.", param="after")
    page = await files.list(tenant, after, limit, order, purpose)
    ends = [page.files[0].id, page.files[-1].id] if page.files else [None, None]
    data = [shown(facts) for facts in page.files]
    whole = {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": page.has_more}
    return JSONResponse(whole)


@router.get("/v1/files/{file}")
async def retrieve(file: str, request: Request, tenant: Tenant) -> JSONResponse:
    """What is known of a file."""
    return JSONResponse(shown(await found(request, tenant, file)))


@router.delete("/v1/files/{file}")
async def delete(file: str, request: Request, tenant: Tenant) -> JSONResponse:
    """Deletes a file."""
    if not await files_of(request).delete(tenant, file):
        raise errors.not_found(f"The file {file[:_SHOWN_CHARS]}")
    return JSONResponse({"id": file, "object": "file", "deleted": True})


@router.get("/v1/files/{file}/content")
async def content(file: str, request: Request, tenant: Tenant) -> Response:
    """The bytes of a file, or of the `Range` that is asked for."""
    facts = await found(request, tenant, file)
    # ranges are defined for GET alone (RFC 9110, section 14.2)
    asked = {name: value for name, value in request.headers.items() if name != "range" or request.method == "GET"}
    status, start, end = wanted(facts, asked)
    headers = headers_of(facts, status, start, end)
    if request.method == "HEAD" or status == _UNCHANGED:
        end = start
    chunks = files_of(request).open(facts, start, end)
    try:
        first = await anext(chunks, b"")  # while there is still a status to tell what is wrong
    except ObjectMissingError as error:
        raise (await _missing(request, tenant, file)) from error
    return Download(facts, _primed(first, chunks), end - start, status, headers)


async def _missing(request: Request, tenant: str, file: str) -> Exception:
    """Why the bytes of a file are not there: it was deleted in this moment, or the storage has lost them."""
    facts = await files_of(request).find(tenant, file)
    if facts is None:
        return errors.not_found(f"The file {file[:_SHOWN_CHARS]}")
    return StorageUnavailableError(f"the bytes of {facts.id} are not in the storage")


async def _primed(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk


router.add_api_route("/v1/files/{file}/content", content, methods=["HEAD"], include_in_schema=False)

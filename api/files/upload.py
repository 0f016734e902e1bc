"""One upload: from the bytes of a request to a file. Streamed into the storage; in memory are some parts of it at most.

Fields may come before the file or after it. What is known to be wrong is refused as soon as it is known; what becomes
wrong behind the file takes the stored bytes with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import Request

from api.files.form import Form, Part
from shared import file_errors, http_errors
from shared.errors import invalid_request
from shared.file_index import FileFacts, UploadKey
from shared.files import Files, Received
from shared.metrics import FILE_BYTES, child

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""For which clients may upload. Outputs have others, and are made by us."""
LEAST_EXPIRY_S, MOST_EXPIRY_S = 3_600, 2_592_000
BATCH_EXPIRY_S = 2_592_000
_MOST_NAME_CHARS = 512
LEAST_BYTES_PER_S = 10_000
"""How fast an upload has to come at least, all in all. Only the waiting for its client counts."""
_MOST_AHEAD = 10
"""For how many times the longest pause what came fast makes up."""
_FORM_BYTES = 65_536
"""What a form may have around its file."""
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("purpose", _ANCHOR, _SECONDS)


@dataclass(frozen=True, slots=True)
class UploadRules:
    """What may be uploaded.

    Attributes:
        idle_s: for how long nothing may come of one, or how far it may fall behind LEAST_BYTES_PER_S.
    """

    batch_bytes: int
    other_bytes: int
    idle_s: float

    def most_bytes(self, purpose: str | None) -> int:
        """The limit of a purpose; the largest one while it is unknown."""
        if purpose is None:
            return max(self.batch_bytes, self.other_bytes)
        return self.batch_bytes if purpose == "batch" else self.other_bytes


@dataclass(slots=True)
class _Asked:
    """What was read of a form so far."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    received: Received | None = None

    @property
    def purpose(self) -> str | None:
        return self.fields.get("purpose")

    def expiry_s(self) -> int | None:
        """For how long the file is to stay. Raises RequestError (400)."""
        anchor, seconds = self.fields.get(_ANCHOR), self.fields.get(_SECONDS)
        if anchor is None and seconds is None:
            return BATCH_EXPIRY_S if self.purpose == "batch" else None
        if anchor != "created_at":
            raise invalid_request(f"`{_ANCHOR}` must be `created_at`.", param=_ANCHOR)
        plain = seconds is not None and seconds.isascii() and seconds.isdecimal() and len(seconds) < 10  # noqa: PLR2004
        if not plain or not LEAST_EXPIRY_S <= int(seconds or 0) <= MOST_EXPIRY_S:
            between = f"an integer from {LEAST_EXPIRY_S} to {MOST_EXPIRY_S}"
            raise invalid_request(f"`{_SECONDS}` must be {between}.", param=_SECONDS)
        return int(seconds or 0)


class Upload:
    """One upload of a tenant."""

    def __init__(self, files: Files, tenant: str, rules: UploadRules) -> None:
        self._files = files
        self._tenant = tenant
        self._rules = rules
        self._asked = _Asked()

    async def run(self, request: Request, key: str, key_ttl_s: int) -> tuple[FileFacts, bool]:
        """Reads the request and makes the file; also says whether it is new. `key`: of idempotency, empty for none.

        Raises RequestError, ClientDisconnect, BrokerUnavailableError, StorageUnavailableError: there is no file then.
        """
        self._check_length(request.headers)
        await self._files.check_quota(self._tenant)
        asked = self._asked
        try:
            await self._read(Form(_body(request, self._rules.idle_s), request.headers.get("content-type", "")))
            received, purpose, expiry_s = self._complete()
        except BaseException:
            if asked.received is not None:
                await self._files.discard(asked.received)
            raise
        upload_key = self._key(received, key, key_ttl_s) if key else None
        expires_at = None if expiry_s is None else int(time.time()) + expiry_s
        facts = await self._files.register(received, asked.filename, purpose, expires_at, upload_key)
        return facts, facts.id == received.id

    def _check_length(self, headers: Mapping[str, str]) -> None:
        most, declared = self._rules.most_bytes(None), headers.get("content-length", "")
        if declared.isascii() and declared.isdecimal() and int(declared) > most + _FORM_BYTES:
            raise file_errors.file_too_large(most)
        encoding = headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise http_errors.unsupported_media_type(encoding[:60], "a form (`multipart/form-data`), not compressed")

    async def _read(self, form: Form) -> None:
        while (part := await form.part()) is not None:
            if part.name == "file":
                await self._store(form, part)
            elif part.filename is not None:
                raise invalid_request(f"The form has a file `{part.name[:60]}`; the only one is `file`.", param="file")
            elif part.name in self._asked.fields:
                raise invalid_request(f"`{part.name}` is given twice.", param=part.name)
            elif part.name in _FIELDS:
                self._asked.fields[part.name] = await form.text(part.name)
                self._check(part.name)

    def _check(self, name: str) -> None:
        """Looks at a field as soon as it is known, so that nobody sends a large file in vain."""
        if name == "purpose" and self._asked.purpose not in PURPOSES:
            raise invalid_request(f"`purpose` must be one of: {', '.join(PURPOSES)}.", param="purpose")
        if name == _SECONDS and _ANCHOR in self._asked.fields:
            self._asked.expiry_s()

    async def _store(self, form: Form, part: Part) -> None:
        if self._asked.received is not None:
            raise invalid_request("The form has two files.", param="file")
        if not part.filename or len(part.filename) > _MOST_NAME_CHARS:
            why = f"The part `file` needs a file name of 1 to {_MOST_NAME_CHARS} characters."
            raise invalid_request(why, param="file")
        self._asked.filename = part.filename
        most_bytes = self._rules.most_bytes(self._asked.purpose)
        self._asked.received = await self._files.receive(self._tenant, _counted(form.chunks()), most_bytes)

    def _complete(self) -> tuple[Received, str, int | None]:
        """What there must be once everything was read. Raises RequestError (400, 413)."""
        asked = self._asked
        if asked.received is None:
            raise invalid_request("`file` is required.", param="file")
        if asked.purpose is None:
            raise invalid_request(f"`purpose` is required: one of {', '.join(PURPOSES)}.", param="purpose")
        most_bytes = self._rules.most_bytes(asked.purpose)
        if asked.received.bytes > most_bytes:
            raise file_errors.file_too_large(most_bytes, asked.purpose)
        return asked.received, asked.purpose, asked.expiry_s()

    def _key(self, received: Received, key: str, ttl_s: int) -> UploadKey:
        asked = self._asked
        same: list[Any] = [received.sha256, asked.filename, *(asked.fields.get(name) for name in _FIELDS)]
        scope = f"{self._tenant}\0{key}"
        return UploadKey(
            hash=hashlib.sha256(scope.encode()).hexdigest()[:32],
            fingerprint=hashlib.sha256(msgspec.json.encode(same)).hexdigest()[:32],
            ttl_ms=ttl_s * 1000,
        )


async def _body(request: Request, idle_s: float) -> AsyncIterator[bytes]:
    """The body as it comes. Raises ClientDisconnect.

    Raises RequestError (408) when nothing comes for `idle_s`, or what comes is that much behind LEAST_BYTES_PER_S.
    """
    stream, left_s = request.stream(), idle_s
    while True:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(min(idle_s, left_s)):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise file_errors.upload_timeout(idle_s, LEAST_BYTES_PER_S) from None
        if chunk is None:
            return
        left_s += len(chunk) / LEAST_BYTES_PER_S - (time.monotonic() - began_s)
        left_s = min(left_s, _MOST_AHEAD * idle_s)  # or a fast file might wait for its last field until it is swept
        yield chunk


async def _counted(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    received = child(FILE_BYTES, "in")
    async for chunk in chunks:
        received.inc(len(chunk))
        yield chunk

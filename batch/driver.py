"""One batch's life in the hands of one driver: from wherever the one before has left it, to its end.

    validating ──> in_progress ──> finalizing ──> completed
        └─> failed      └─ time is up ─────────────> expired
                 └─ cancelling ────────────────────> cancelled

A driver owns its batch by a lease, and every write of it carries its token. One that is killed is followed by another,
which begins where the bitmap of committed rows says; one that was only thought dead finds that nothing of it counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from batch.committing import Committer
from batch.finalizing import Finalizing, input_gone
from batch.manifest import Manifests
from batch.order import Order, unpacked
from batch.owned import LostError, Owned
from batch.rows import Fault
from batch.run_state import RunState
from batch.running import Running
from batch.tools import Tools
from batch.validating import MOST_FAULTS, Validated, Validation
from shared.batch_scripts import LEASE_MS
from shared.batches import ENDED, MOST_BYTES, Batch
from shared.errors import BrokerUnavailableError, ObjectMissingError, RequestError, StorageUnavailableError
from shared.file_index import FileFacts, facts_of
from shared.scripts import Scripts

log = logging.getLogger(__name__)

RENEW_S = LEASE_MS / 4000
_CHECKPOINT_S = 5.0


class Driver:
    """Of one batch."""

    def __init__(self, tools: Tools, batch: Batch, token: str) -> None:
        self._tools = tools
        self._owned = Owned(tools.batches, batch, token)
        self._manifests = Manifests(tools.storage, tools.batches)
        self._folder = f"batches/{batch.id}"
        self._running: Running | None = None
        self._committer: Committer | None = None
        self._nap_s = 0.0
        self._checkpoint_at_s = 0.0
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Until the batch has ended, or can do nothing for a while: then it is given back until that is over.

        Raises LostError, StorageUnavailableError, ObjectMissingError.
        Cancelled, it gives the batch back at once. After a fault its lease has to lapse first: a pause before the next.
        """
        owned = self._owned
        try:
            async with self._kept_alive():
                await owned.sync()
                if owned.batch.number("not_before_ms"):
                    await owned.keep({"not_before_ms": 0})
                await self._checkpoint()
                await self._drive()
            if self._nap_s:
                await self._rest()
        except BaseExceptionGroup as group:
            lost, others = group.split((LostError, StorageUnavailableError, ObjectMissingError))
            if lost is not None and others is not None:
                log.exception("batch %s, beside its loss", owned.batch.id, exc_info=others)
            raise (_first(lost) if lost is not None else group) from None
        except asyncio.CancelledError:
            if owned.status not in ENDED:
                with suppress(LostError, BrokerUnavailableError):
                    await owned.leave()
            raise

    @asynccontextmanager
    async def _kept_alive(self) -> AsyncIterator[None]:
        """Renews the lease meanwhile. A batch that is lost cancels what is done with it."""
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(self._renew()), group.create_task(self._checkpoint_when_due())]
            try:
                yield
            finally:
                for helper in helpers:
                    helper.cancel()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._owned.keep(self._progress())
            except LostError:
                if self._owned.ending:
                    return  # it is nobody's then; whether it was still ours is what `end` says
                raise

    async def _checkpoint_when_due(self) -> None:
        """Beside the renewal: a storage that takes its time must not cost the lease."""
        while True:
            await asyncio.sleep(max(RENEW_S, self._checkpoint_at_s - time.monotonic()))
            if time.monotonic() >= self._checkpoint_at_s:
                await self._checkpoint()

    async def _rest(self) -> None:
        """Gives the batch back, for whoever has a place for it when it can go on. Raises LostError."""
        owned = self._owned
        until_ms = min(owned.now_ms() + int(self._nap_s * 1000), owned.batch.number("expires_at_ms"))
        log.info("batch %s rests for %.0f s", owned.id, (until_ms - owned.now_ms()) / 1000)
        with suppress(BrokerUnavailableError):
            await owned.leave({"not_before_ms": until_ms, "rows_per_s": "0.00", "left_s": ""})

    def _progress(self) -> dict[str, str | int]:
        running, committer = self._running, self._committer
        if running is None or committer is None:
            return {}
        left_s = running.pace.left_s(max(0, self._owned.batch.number("total") - committer.count))
        return {
            "rows_per_s": f"{running.pace.rows_per_s:.2f}",
            "left_s": "" if left_s is None else f"{left_s:.1f}",
        }

    async def _checkpoint(self) -> None:
        """Writes the manifest. A storage that is away is none that could be waited for here."""
        self._checkpoint_at_s = time.monotonic() + _CHECKPOINT_S
        try:
            async with self._writing:  # what was read last is written last
                await self._manifests.write(self._owned.id)
        except (BrokerUnavailableError, StorageUnavailableError) as error:
            log.warning("batch %s: no checkpoint: %s", self._owned.id, error)

    async def _drive(self) -> None:
        owned = self._owned
        source = await self._input()
        if owned.status == "validating":
            faults = await self._validate(source)
            if faults:
                await self._fail(faults)
                return
        batch = await owned.refreshed()
        owned.status = batch.status
        if not batch.text("total"):  # cancelled before anything was known of its rows
            await self._end("cancelled", None, b"")
            return
        closing = batch.text("closing") or "completed"
        if owned.status in {"in_progress", "cancelling"} and not batch.text("closing"):
            if source is None:
                await self._fail([Fault("invalid_request", input_gone(batch), "file_id")])
                return
            ran = await self._run(source, batch)
            if ran is None:
                await self._checkpoint()  # the last one for as long as it rests
                return
            closing = ran
        if closing == "completed":
            await owned.keep(move=("in_progress", "finalizing"))
        await owned.keep({"closing": closing})  # from here on nothing more counts, so the files are always the same
        await owned.refreshed()
        await self._checkpoint()
        await self._end(closing, source, bytes(await owned.committed()))

    async def _input(self) -> FileFacts | None:
        """The input file; None when it is gone. Redis may have lost its facts, and the batch still have them."""
        batch = self._owned.batch
        found = await self._tools.files.find(batch.text("tenant"), batch.text("input_file_id"))
        if found is None and batch.text("input"):
            known = facts_of(batch.text("input_file_id"), batch.parsed("input"))
            there = await self._tools.storage.size(known.object_name) == known.bytes
            return known if there else None
        return found

    # ---- validating

    async def _validate(self, source: FileFacts | None) -> list[Fault]:
        """Looks at the rows. No faults: the batch is in progress now, unless it is to be cancelled."""
        batch = self._owned.batch
        if source is None:
            return [Fault("invalid_request", input_gone(batch), "file_id")]
        if source.bytes > MOST_BYTES:
            message = f"The input file has {source.bytes} bytes, and a batch's may have {MOST_BYTES}."
            return [Fault("file_too_large", message, "file_id")]
        if source.purpose != "batch":
            message = f"The input file's purpose must be 'batch', and is '{source.purpose}'."
            return [Fault("invalid_request", message, "file_id")]
        found = await self._looked_at(source)
        if found.faults:
            return found.faults[:MOST_FAULTS]
        order = found.order.built()
        await self._tools.storage.put(f"{self._folder}/index", order.packed())
        facts: dict[str, str | int] = {"total": len(order), "model": found.model, "input": json.dumps(source.fields())}
        if not await self._owned.keep(facts, move=("validating", "in_progress")):
            log.info("batch %s is %s", batch.id, self._owned.status)
        await self._checkpoint()
        return []

    async def _looked_at(self, source: FileFacts) -> Validated:
        settings = self._tools.settings
        validation = Validation(self._tools.rules(self._owned.batch), self._tools.catalog, settings.max_body_bytes)
        return await validation.run(self._tools.files.open(source))

    async def _fail(self, faults: list[Fault]) -> None:
        errors = {"object": "list", "data": [fault.shown() for fault in faults]}
        facts = await Finalizing(self._tools, self._owned, f"{self._folder}/parts").run(None, b"", expired=False)
        await self._owned.end("failed", {**facts, "errors": json.dumps(errors)})
        await self._checkpoint()

    # ---- running

    async def _run(self, source: FileFacts, batch: Batch) -> str | None:
        """Runs the rows. Returns how the batch is to end; None when it has to rest."""
        order = await self._order(source)
        window = self._tools.settings.batch_window_max
        self._committer = committer = Committer(
            self._owned,
            self._tools.storage,
            f"{self._folder}/parts",
            await self._owned.committed(),
            self._forget,
            most_rows=min(window, 512),
        )
        state = RunState(self._tools, self._owned, order, source, committer, min(batch.number("fed"), len(order)))
        self._running = running = Running(state)
        try:
            ran = await running.run()
            self._nap_s = running.rest.left_s if ran is None else 0.0
            return ran
        finally:
            self._running = None

    async def _order(self, source: FileFacts) -> Order:
        """The order in which rows are run. One that storage has lost is made again: it is always the same."""
        try:
            return unpacked(await self._tools.storage.read(f"{self._folder}/index"))
        except (ObjectMissingError, ValueError):
            return (await self._looked_at(source)).order.built()

    async def _forget(self, rids: list[str]) -> None:
        """Takes the requests of committed rows away."""
        with suppress(RequestError):  # after a flush a model is unknown for a moment, and so is what it ran
            _, pool = await self._tools.catalog.pool_of(self._owned.batch.text("model"))
            await Scripts(self._tools.client, pool.keys).forget(rids)

    # ---- the end

    async def _end(self, closing: str, source: FileFacts | None, bitmap: bytes) -> None:
        finalizing = Finalizing(self._tools, self._owned, f"{self._folder}/parts")
        facts = await finalizing.run(source, bitmap, expired=closing == "expired")
        status = await self._owned.end(closing, facts)
        log.info("batch %s: %s", self._owned.id, status)
        await self._checkpoint()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found

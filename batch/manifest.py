"""What storage knows of a batch, should Redis lose it: its facts, its committed rows and its parts, as of a moment ago.

Rows that were committed after that moment are run again, and what they had said does not count: a part that is in no
list does not exist.
"""

from __future__ import annotations

import logging

import msgspec

from shared.batch_scripts import Standing
from shared.batches import Batch, Batches
from shared.errors import ObjectMissingError
from shared.storage import Storage

log = logging.getLogger(__name__)

FOLDER = "manifests"
TOLD_WITHIN_MS = 86_400_000
"""An end that is further back is not told any more."""
_SUFFIX = ".json"
_OWNERS = ("owner", "lease_ms")


class Manifest(msgspec.Struct, frozen=True):
    """One batch. `rows`: the bitmap of committed rows, base64 in JSON. `parts`: entries of the list."""

    id: str
    facts: dict[str, str]
    rows: bytes
    parts: list[str]


_decode = msgspec.json.Decoder(Manifest).decode


class Manifests:
    """Writes and reads manifests."""

    def __init__(self, storage: Storage, batches: Batches) -> None:
        self._storage = storage
        self._batches = batches

    async def write(self, batch: str) -> None:
        """Writes down what Redis knows of a batch, as of one moment.

        Raises BrokerUnavailableError, StorageUnavailableError.
        """
        found = await self._batches.scripts.read(batch)
        if found is None:
            return
        facts = {name: value for name, value in found.record.items() if name not in _OWNERS}
        manifest = Manifest(batch, facts, found.bitmap, found.parts)
        await self._storage.put(_name(batch), msgspec.json.encode(manifest))

    async def restore_lost(self) -> int:
        """Gives Redis back every batch that has a manifest and is unknown to it. Returns how many.

        Raises BrokerUnavailableError, StorageUnavailableError.
        """
        names = [stored.name async for stored in self._storage.list(FOLDER)]
        ids = [name.rpartition("/")[2].removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
        restored = 0
        for first in range(0, len(ids), 500):
            some = ids[first : first + 500]
            known = await self._batches.present(some)
            for batch in [batch for batch, there in zip(some, known, strict=True) if not there]:
                restored += await self._restore(batch)
        return restored

    async def _restore(self, batch: str) -> bool:
        try:
            kept = _decode(await self._storage.read(_name(batch)))
        except (ObjectMissingError, msgspec.DecodeError) as error:
            log.warning("the manifest of %s cannot be read: %s", batch, error)
            return False
        standing = _standing(Batch(batch, kept.facts), await self._batches.now_ms())
        outcome = await self._batches.scripts.restore(batch, kept.facts, kept.rows, kept.parts, standing)
        if outcome == "OK":
            log.warning("batch %s was lost by Redis, and is back with %d parts", batch, len(kept.parts))
        return outcome == "OK"

    async def sweep(self, now_ms: int, *, parts_ttl_s: float, batch_ttl_s: float) -> int:
        """Deletes parts and batches whose time is over. Returns how many objects. Raises as `restore_lost` does."""
        deleted = 0
        folders: dict[str, list[str]] = {}
        async for stored in self._storage.list("batches"):
            folders.setdefault(stored.name.split("/")[1], []).append(stored.name)
        for batch, names in folders.items():
            found = await self._batches.find(batch)
            if found is not None and found.ended and ended_ms(found) + parts_ttl_s * 1000 < now_ms:
                await self._batches.scripts.trim(batch)
                await self._storage.delete(*names)
                deleted += len(names)
        async for stored in self._storage.list(FOLDER):
            found = await self._batches.find(stored.name.rpartition("/")[2].removesuffix(_SUFFIX))
            if found is not None and found.ended and ended_ms(found) + batch_ttl_s * 1000 < now_ms:
                left = [part.name async for part in self._storage.list(f"batches/{found.id}")]
                await self._storage.delete(*left, stored.name)  # before Redis forgets it, or it would be restored
                deleted += len(left)
                await self._batches.scripts.forget(found.id, found.text("tenant"))
                deleted += 1
        return deleted


def _standing(batch: Batch, now_ms: int) -> Standing:
    """Whether a restored batch goes on, and if it has ended, whether that may still have to be told."""
    if not batch.ended:
        return "active"
    return "untold" if not batch.text("hook_state") and now_ms - ended_ms(batch) < TOLD_WITHIN_MS else "told"


def ended_ms(batch: Batch) -> int:
    """When it ended, Unix ms; 0 while it has not."""
    return batch.number(f"{batch.status}_at_ms") if batch.ended else 0


def _name(batch: str) -> str:
    return f"{FOLDER}/{batch}{_SUFFIX}"

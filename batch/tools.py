"""What every driver of a process works with."""

from __future__ import annotations

from dataclasses import dataclass

from api.catalog import Catalog
from api.entries import Entries
from api.images import Images
from api.memory import Memory
from api.placing import Places
from api.requests import Requests
from batch.ends import Ends
from batch.rows import Rules
from batch.settings import BatchSettings
from shared.batches import Batch, Batches
from shared.files import Files
from shared.hot import HotClient
from shared.storage import Storage


@dataclass(frozen=True, slots=True)
class Tools:
    """Made once, by `app.py`."""

    settings: BatchSettings
    client: HotClient
    batches: Batches
    storage: Storage
    files: Files
    catalog: Catalog
    entries: Entries
    places: Places
    images: Images
    memory: Memory
    requests: Requests
    ends: Ends

    def rules(self, batch: Batch) -> Rules:
        """What the rows of a batch may ask for."""
        return Rules(batch.text("endpoint"), self.settings.limits, self.images, self.settings.max_body_bytes)

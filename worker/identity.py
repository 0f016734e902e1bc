"""Who this worker is. A condemned worker goes on under a new id: ids are never reused, models are not loaded again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from shared.ids import new_worker_id
from shared.metrics import RENEWALS

log = logging.getLogger(__name__)


class Identity:
    """The current worker id, and who wants to know when it changes."""

    def __init__(self) -> None:
        self.wid = new_worker_id()
        self._watchers: list[Callable[[str], None]] = []
        self._retired = False

    def on_renewal(self, watcher: Callable[[str], None]) -> None:
        """`watcher` is called with the old id after the worker has taken a new one. Must not block."""
        self._watchers.append(watcher)

    def condemned(self, wid: str) -> None:
        """Redis refused `wid`. If that is still ours, a new id is taken; late refusals of an old id are ignored.

        So are all of them once the worker has retired.
        """
        if wid != self.wid or self._retired:
            return
        RENEWALS.inc()
        self.wid = new_worker_id()
        log.warning("worker %s was condemned; going on as %s", wid, self.wid)
        for watcher in self._watchers:
            watcher(wid)

    def retire(self) -> None:
        """The process ends: this id is its last one."""
        self._retired = True

"""The beat: renews the worker's lease each second, from a thread of its own.

The thread has an event loop and a connection of its own and shares nothing with the loop that serves requests, so a
busy loop costs no lease. But a worker whose loop stands still, or whose engine does, is as good as dead (`stall.py`):
the thread then gives the worker's requests up and ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from shared.connection import RedisCaller, connect
from shared.errors import BrokerUnavailableError, FencedError
from shared.keys import Keys
from shared.metrics import STALLS
from shared.scripts import Scripts
from worker.identity import Identity
from worker.stall import Stall

log = logging.getLogger(__name__)

BEAT_S = 1.0
STALLED_STATUS = 70
"""Exit status of a worker that gave itself up: EX_SOFTWARE of sysexits.h."""
_LAST_WORDS_S = 1.0


class Beat:
    """A service: see `services.py`."""

    name = "beat"

    def __init__(
        self, url: str, keys: Keys, identity: Identity, stall: Stall, on_box: Callable[[list[bytes]], None]
    ) -> None:
        """`on_box` gets the control messages that come back with a beat; it must not block."""
        self._url = url
        self._keys = keys
        self._identity = identity
        self._stall = stall
        self._on_box = on_box
        self._stop = threading.Event()

    async def run(self, started: asyncio.Event) -> None:
        """Beats until cancelled."""
        loop = asyncio.get_running_loop()
        first, ended = asyncio.Event(), asyncio.Event()

        def beats() -> None:
            try:
                asyncio.run(self._beats(loop, first))
            except Exception:
                log.exception("the beat's thread")
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(ended.set)
                    loop.call_soon_threadsafe(first.set)

        thread = threading.Thread(target=beats, name="beat", daemon=True)
        thread.start()
        try:
            await first.wait()
            if not ended.is_set():
                started.set()
            await ended.wait()
            msg = "the beat's thread has ended: nothing renews the lease"
            raise RuntimeError(msg)
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join, 2 * BEAT_S)

    async def _beats(self, loop: asyncio.AbstractEventLoop, first: asyncio.Event) -> None:
        """In the thread. `loop` is the one that serves requests."""
        client = connect(self._url)
        scripts = Scripts(RedisCaller(client), self._keys)
        woke_s = time.monotonic()
        try:
            while not self._stop.is_set():
                loop.call_soon_threadsafe(self._stall.sign_of_life)
                await self._beat(scripts, loop, first)
                await asyncio.sleep(BEAT_S)
                slept_s, woke_s = time.monotonic() - woke_s, time.monotonic()
                # what is longer than a beat is time in which this process was not running at all
                if (why := self._stall.after(min(slept_s, 2 * BEAT_S))) is not None:
                    await self._give_up(scripts, why)
        finally:
            await client.aclose()

    async def _beat(self, scripts: Scripts, loop: asyncio.AbstractEventLoop, first: asyncio.Event) -> None:
        wid = self._identity.wid
        try:
            box = await scripts.beat(wid)
        except FencedError:
            loop.call_soon_threadsafe(self._identity.condemned, wid)
            return
        except BrokerUnavailableError as error:
            log.warning("beat: %s", error)
            return
        except Exception:  # whatever a server may answer: the next beat may well get through
            log.exception("beat")
            return
        loop.call_soon_threadsafe(first.set)
        if box:
            loop.call_soon_threadsafe(self._on_box, box)

    async def _give_up(self, scripts: Scripts, why: str) -> None:
        """Ends the process: nothing that could still be cleaned up can be trusted to return."""
        STALLS.inc()
        log.critical("%s; this worker gives itself up. Its stacks:", why)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await scripts.condemn(self._identity.wid, process_ended=True)
        except (BrokerUnavailableError, TimeoutError) as error:
            log.warning("the lease is left to lapse: %s", error)
        os._exit(STALLED_STATUS)

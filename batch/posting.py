"""Sends one webhook, once. What its receiver says besides a status is not read.

A URL that a client has named is connected to by the rules for such (`api/hooks.py`), the operator's own without them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence

import httpcore2
import httpx2

from api.hooks import HookRules
from api.reach import CheckedNetwork, Resolve, Resolver, UnreachableError
from shared.webhooks import Event, signed

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""For all of one attempt: the name, the connection, the answer's head."""
_AT_ONCE = 64
_NO_ANSWER = (UnreachableError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)


class Poster:
    """Sends webhooks."""

    def __init__(self, rules: HookRules, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None) -> None:
        """`resolve` and `tls`: the system's own, unless given."""
        self._resolver = Resolver(_AT_ONCE)
        self._checked = CheckedNetwork(resolve or self._resolver, rules.networks)
        self._tls = tls
        self._pools: dict[bool, httpcore2.AsyncConnectionPool] = {}

    async def post(self, url: httpx2.URL, event: Event, keys: Sequence[bytes], *, checked: bool) -> int | None:
        """The status of the answer; None when there was none, for whatever reason. It may be cancelled.

        `checked`: whether only allowed addresses are connected to.
        """
        where = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = [
            ("host", url.netloc.decode("ascii")),
            ("content-type", "application/json"),
            ("content-length", str(len(event.body))),
            ("user-agent", "penstock"),
            *signed(event, keys, int(time.time())).items(),
        ]
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._pool(checked=checked).stream("POST", where, headers=headers, content=event.body) as response,
            ):
                return int(response.status)
        except (*_NO_ANSWER, OSError, TimeoutError) as error:
            log.info("no answer from %s to the webhook of %s: %r", url.raw_host.decode("ascii"), event.subject, error)
            return None

    def _pool(self, *, checked: bool) -> httpcore2.AsyncConnectionPool:
        if checked not in self._pools:
            # no connection is used twice: each one is checked anew
            self._pools[checked] = httpcore2.AsyncConnectionPool(
                ssl_context=self._tls or httpcore2.default_ssl_context(),
                max_connections=_AT_ONCE,
                max_keepalive_connections=0,
                network_backend=self._checked if checked else None,
            )
        return self._pools[checked]

    async def close(self) -> None:
        """Closes what is open."""
        self._resolver.close()
        for pool in self._pools.values():
            await pool.aclose()

"""How the Redis server is, in its own words: memory, persistence, connections.

One INFO and one PING, when a replica is scraped. A server that lets nobody ask (an ACL without `+info`) leaves these
metrics absent, and everything else as it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import redis
import redis.asyncio

from shared import metrics
from shared.metrics import Value

log = logging.getLogger(__name__)


class ServerHealth:
    """Reads the server's metrics."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def read(self, pools: list[str]) -> list[Value]:
        """What the server says of itself. Raises redis.RedisError when it is away."""
        del pools
        began_s = time.perf_counter()
        await self._client.ping()
        metrics.REDIS_PING.set(time.perf_counter() - began_s)
        try:
            info: dict[str, Any] = await self._client.info()
        except (redis.ResponseError, redis.exceptions.NoPermissionError) as error:
            log.debug("INFO: %s", error)
            return []
        return list(_values(info))


def _values(info: dict[str, Any]) -> Iterator[Value]:
    """The metrics in an INFO; what a server does not say is absent."""
    for reading, name in _PLAIN.items():
        if name in info:
            yield reading, (), float(info[name])
    if info.get("maxmemory"):
        yield metrics.REDIS_MEMORY_MAX, (), float(info["maxmemory"])
    if policy := info.get("maxmemory_policy"):
        yield metrics.REDIS_POLICY, (str(policy),), 1
    if "used_cpu_sys" in info and "used_cpu_user" in info:
        yield metrics.REDIS_CPU, (), float(info["used_cpu_sys"]) + float(info["used_cpu_user"])
    if "rdb_last_bgsave_status" in info:
        yield metrics.REDIS_SAVE_OK, (), float(info["rdb_last_bgsave_status"] == "ok")
    if info.get("aof_enabled"):
        went = (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status"))
        yield metrics.REDIS_AOF_OK, (), float(went == ("ok", "ok"))
        if "aof_current_size" in info:
            yield metrics.REDIS_AOF_BYTES, (), float(info["aof_current_size"])
    if "uptime_in_seconds" in info and "server_time_usec" in info:
        yield metrics.REDIS_STARTED, (), float(int(info["server_time_usec"]) // 1_000_000 - info["uptime_in_seconds"])


_PLAIN = {
    metrics.REDIS_MEMORY_USED: "used_memory",
    metrics.REDIS_EVICTED: "evicted_keys",
    metrics.REDIS_EXPIRED: "expired_keys",
    metrics.REDIS_CLIENTS: "connected_clients",
    metrics.REDIS_COMMANDS: "total_commands_processed",
    metrics.REDIS_AOF: "aof_enabled",
    metrics.REDIS_SAVED: "rdb_last_save_time",
    metrics.REDIS_REPLICAS: "connected_slaves",
}

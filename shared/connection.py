"""redis-py clients with every timeout and retry set explicitly.

Defaults differ between redis-py 5 (no timeouts, no retries) and 8 (5 s, ten retries), and both are wrong for somebody.
Penstock sets them here and nowhere else:

- no automatic retry: a retried command may run twice, so retrying belongs to callers that know their command is
  idempotent;
- RESP2 and bytes: the same answers from every server version;
- a bounded pool whose waiters time out, so that a broker that hangs is noticed.

The three hot connections (flush, subscriber, blocking read) do not use redis-py; see `hot.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from shared.errors import BrokerUnavailableError, FencedError
from shared.resp import is_passing
from shared.sentinel import Login, is_sentinel, parse

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 5.0
POOL_CONNECTIONS = 16
POOL_WAIT_S = 5.0
HEALTH_CHECK_S = 15
_TIMEOUTS: Final = {"socket_timeout": COMMAND_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
_PASSING = (BusyLoadingError, ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)
"""What says nothing about the command, as redis-py names it; of these it has cut the code off."""


def connect(url: str) -> redis.asyncio.Redis:
    """A pooled asyncio client. Connects on first use. Close it with `aclose()`.

    Raises ConfigurationError when an address of Sentinels is malformed.
    """
    settings: dict[str, Any] = {**_TIMEOUTS, "retry": AsyncRetry(NoBackoff(), 0), "protocol": 2}
    settings["health_check_interval"] = HEALTH_CHECK_S
    if is_sentinel(url):
        address = parse(url)
        at_sentinels = {**settings, **_login(address.sentinel_login)}
        found: Any = redis.asyncio.sentinel.Sentinel(list(address.sentinels), sentinel_kwargs=at_sentinels)  # type: ignore[no-untyped-call]
        settings |= {"db": address.db, **_login(address.login)}
        client: redis.asyncio.Redis = found.master_for(address.name, connection_pool_class=_SentinelPool, **settings)
        return client
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url, max_connections=POOL_CONNECTIONS, timeout=POOL_WAIT_S, **settings
    )
    return redis.asyncio.Redis.from_pool(pool)


def connect_blocking(url: str) -> redis.Redis:
    """A client for a thread of its own, one connection. Connects on first use. Raises as `connect` does."""
    settings: dict[str, Any] = {**_TIMEOUTS, "retry": Retry(NoBackoff(), 0), "protocol": 2}
    if is_sentinel(url):
        address = parse(url)
        at_sentinels = {**settings, **_login(address.sentinel_login)}
        found: Any = redis.sentinel.Sentinel(list(address.sentinels), sentinel_kwargs=at_sentinels)  # type: ignore[no-untyped-call]
        client: redis.Redis = found.master_for(address.name, db=address.db, **_login(address.login), **settings)
        return client
    return redis.Redis.from_url(url, max_connections=1, **settings)


def _login(login: Login) -> dict[str, str | None]:
    return {"username": login.username or None, "password": login.password or None}


class _SentinelPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """One that closes its connections to the Sentinels, too."""

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """See redis.asyncio.ConnectionPool."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for known in self.sentinel_manager.sentinels:
                await known.aclose()


def translate(error: Exception) -> Exception:
    """A redis-py error as one of ours; anything that is a bug of ours stays as it is."""
    if isinstance(error, ResponseError) and "FENCED" in str(error):
        return FencedError(str(error))
    if isinstance(error, _PASSING) or (isinstance(error, ResponseError) and is_passing(str(error))):
        return BrokerUnavailableError(str(error))
    if isinstance(error, ResponseError):
        return error
    if isinstance(error, (RedisError, OSError, TimeoutError)):
        return BrokerUnavailableError(f"{type(error).__name__}: {error}")
    return error


def broker_errors(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Wraps a coroutine function so that redis-py's errors leave it as ours."""

    @functools.wraps(function)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except (RedisError, OSError, TimeoutError) as error:
            raise translate(error) from error

    return wrapper


class RedisCaller:
    """Runs scripts through redis-py. See scripts.Caller."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    @broker_errors
    async def evalsha(self, sha: str, text: str, keys: list[str], args: list[Any]) -> Any:
        """One EVALSHA; a server that lost the script is given it. Raises BrokerUnavailableError, FencedError."""
        try:
            return await self._client.evalsha(sha, len(keys), *keys, *args)  # type: ignore[misc]
        except redis.exceptions.NoScriptError:
            return await self._client.eval(text, len(keys), *keys, *args)  # type: ignore[misc]

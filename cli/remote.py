"""What the commands for operators share: where Redis is, how they end, how they print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import redis.asyncio
from pydantic import Field
from rich.console import Console

from shared.connection import connect
from shared.errors import BrokerUnavailableError, ConfigurationError, RequestError
from shared.settings import Settings

WHERE_REDIS_IS = """\
Redis is found as everywhere: --redis-url, PENSTOCK_REDIS_URL, REDIS_URL; without them that of `penstock up` in this
folder."""
_CLIENT_FAULT = 400


class RemoteSettings(Settings):
    """Which Redis to look at."""

    redis_url: str = Field("", description="Redis or Valkey; empty: that of `penstock up`, see --data")
    data: Path = Field(Path(".penstock"), description="data folder of `penstock up`")

    @property
    def url(self) -> str:
        """The server to use. Raises ConfigurationError."""
        if self.redis_url:
            return self.redis_url
        socket = self.data.expanduser().absolute() / "redis" / "redis.sock"
        if not socket.exists():
            raise ConfigurationError(f"No Redis is named, and no `penstock up` runs in {self.data}. Set REDIS_URL.")
        return f"unix://{quote(str(socket))}?db=0"

    def connect(self) -> redis.asyncio.Redis:
        """A client of it; close it. Raises ConfigurationError."""
        url = self.url
        try:
            return connect(url)
        except ValueError as error:
            msg = f"--redis-url is no address of a Redis: {error}"  # without it: it may hold a password
            raise ConfigurationError(msg) from error


def split_settings(argv: list[str]) -> tuple[list[str], list[str]]:
    """The flags of the settings, each with its value, and the rest: else a value would be taken for an argument."""
    flags = {f"--{name.replace('_', '-')}" for name in RemoteSettings.model_fields}
    of_settings: list[str] = []
    own: list[str] = []
    words = iter(argv)
    for word in words:
        if word in flags:
            of_settings += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            own.append(word)
    return of_settings, own


def guarded(program: str, run: Callable[[], int]) -> int:
    """What `run` returns; or 2 for what the caller must change, 1 for what is not there, with a sentence each."""
    try:
        return run()
    except ConfigurationError as error:
        said, status = str(error), 2
    except RequestError as error:
        said, status = error.message, 2 if error.status == _CLIENT_FAULT else 1
    except BrokerUnavailableError as error:
        said, status = f"Redis cannot be reached: {error}", 1
    sys.stderr.write(f"{program}: {said}\n")
    return status


def wide() -> Console:
    """A console that never cuts an id: into a pipe as wide as it takes."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, width=240)


def moment(at_ms: int) -> str:
    """Unix ms as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))

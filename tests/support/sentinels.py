"""Real Sentinels for the drills: servers of the same binary that watch a master and promote its replica."""

from __future__ import annotations

import contextlib
import time

import redis

from tests.support.stack import READY_S, Process, Stack, free_port, server_binary

NAME = "penstock"
DOWN_AFTER_MS = 1_000


class Sentinels:
    """Three of them. `url` is what Penstock's processes are given."""

    def __init__(self, stack: Stack) -> None:
        """The stack's server must have a replica already. Returns once all know each other and the replica."""
        self._stack = stack
        self._ports = [free_port() for _ in range(3)]
        for port in self._ports:
            self._start(port)
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        self.url = f"redis+sentinel://{hosts}/{NAME}/0"
        self._until(self._complete, "the Sentinels know each other")

    def _start(self, port: int) -> Process:
        folder = self._stack.folder / f"sentinel-{port}"
        folder.mkdir()
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {NAME} 127.0.0.1 {self._stack.redis_port} 2",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} 6000",
        ]
        config = folder / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        return self._stack._start(Process, f"sentinel-{port}", [server_binary(), str(config), "--sentinel"])

    def _complete(self) -> bool:
        states = [self._state(port) for port in self._ports]
        return all(state.get("num-other-sentinels") == 2 and state.get("num-slaves") == 1 for state in states)

    def _state(self, port: int) -> dict[str, object]:
        with redis.Redis(port=port, socket_timeout=2) as client:
            found: dict[str, dict[str, object]] = client.sentinel_masters()
            return found.get(NAME, {})

    @property
    def master_port(self) -> int:
        """Whom the Sentinels take for the master."""
        with redis.Redis(port=self._ports[0], socket_timeout=2) as client:
            return int(client.sentinel_get_master_addr_by_name(NAME)[1])  # type: ignore[no-untyped-call]

    @staticmethod
    def _until(check: object, what: str) -> None:
        assert callable(check)
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s:
            with contextlib.suppress(redis.RedisError, OSError):
                if check():
                    return
            time.sleep(0.1)
        raise TimeoutError(what)

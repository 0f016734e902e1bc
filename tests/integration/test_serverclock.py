"""The server's clock, read by a replica whose own one is wrong."""

from __future__ import annotations

import time

from api.serverclock import ServerClock
from shared.hot import HotClient
from tests.integration.shard import in_ms


class WrongClock:
    """Of a machine whose date is a day behind."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return time.monotonic() + self.ahead_s

    def wall_ms(self) -> int:
        return in_ms(-86_400_000)


async def test_a_replica_whose_own_clock_is_wrong_knows_what_time_it_is_at_the_server(hot: HotClient) -> None:
    clock = ServerClock(hot, WrongClock())
    for _ in range(3):
        assert abs(await clock.now_ms() - in_ms(0)) < 5_000


async def test_in_between_the_servers_time_goes_on_without_asking_and_is_looked_at_again(hot: HotClient) -> None:
    own = WrongClock()
    clock = ServerClock(hot, own)
    await clock.now_ms()
    own.ahead_s = 20
    assert abs(await clock.now_ms() - in_ms(20_000)) < 5_000, "it was not asked: nothing but our own clock says so"
    own.ahead_s = 40
    assert abs(await clock.now_ms() - in_ms(0)) < 5_000, "it was asked again"


async def test_without_a_server_the_own_clock_is_better_than_none() -> None:
    away = HotClient("redis://127.0.0.1:1/0", "test-away")
    assert abs(await ServerClock(away, WrongClock()).now_ms() - in_ms(-86_400_000)) < 5_000

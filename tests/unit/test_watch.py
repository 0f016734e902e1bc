"""RelayWatch: every relay gets its ticks."""

from __future__ import annotations

from typing import cast

import pytest

from api.relay import Relay
from api.watch import RelayWatch
from shared.hot import HotClient
from shared.keys import Keys
from tests.support.polling import eventually, serving


class Client:
    """Whether it has hung up is asked with every tick."""

    def __init__(self, *, faulty: bool) -> None:
        self.asked = 0
        self._faulty = faulty
        self.relay = Relay(cast("HotClient", None), Keys("p"), "req", grace_s=1, lost_grace_s=1, readmit=None)
        self.relay.hung_up = self.hung_up

    def hung_up(self) -> bool:
        self.asked += 1
        if self._faulty:
            raise LookupError
        return False


async def test_a_relay_whose_tick_raises_does_not_stop_the_ticks_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.watch.TICK_S", 0.01)
    watch = RelayWatch()
    clients = [Client(faulty=number == 1) for number in range(3)]
    async with serving(watch) as running:
        for client in clients:
            watch.add(client.relay)
        # not once: which of them comes first in a round is chance
        await eventually(lambda: all(client.asked >= 3 for client in clients), "three ticks of each")
        assert not running.done()


async def test_many_relays_get_their_ticks_in_several_goes_and_each_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.watch.TICK_S", 0.05)
    watch = RelayWatch()
    clients = [Client(faulty=False) for _ in range(200)]
    async with serving(watch):
        for client in clients:
            watch.add(client.relay)
        await eventually(lambda: any(client.asked for client in clients), "a tick")
        assert not all(client.asked for client in clients), "all in one go"
        await eventually(lambda: all(client.asked >= 2 for client in clients), "two ticks of each")
        gone = clients[0]
        watch.remove(gone.relay)
        asked = gone.asked
        await eventually(lambda: all(client.asked >= 5 for client in clients[1:]), "more ticks of the others")
    assert gone.asked == asked

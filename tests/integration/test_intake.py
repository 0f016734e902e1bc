"""The worker's intake against a real server."""

from __future__ import annotations

from shared.hot import HotClient
from shared.keys import Keys
from shared.scripts import Entry, Scripts
from tests.support.polling import eventually, serving
from worker.attempts import Attempts
from worker.engines import sim
from worker.identity import Identity
from worker.intake import Intake
from worker.publisher import Publisher
from worker.settings import WorkerSettings


class Outrun(Scripts):
    """Scripts of a worker whose beat learns that it is condemned while a pull is on its way."""

    identity: Identity
    pulls = 0

    async def pull(self, wid: str, want: int) -> list[Entry]:
        self.pulls += 1
        if self.pulls == 1:
            await self.condemn(wid)
            self.identity.condemned(wid)
        return await super().pull(wid, want)


async def test_a_late_refusal_of_an_old_id_does_not_cost_the_new_one(hot: HotClient, keys: Keys) -> None:
    identity = Identity()
    renewed: list[str] = []
    identity.on_renewal(renewed.append)
    scripts = Outrun(hot, keys)
    scripts.identity = identity
    first = identity.wid
    engine = sim.create(WorkerSettings(engine="sim"), [])
    attempts = Attempts(engine, Publisher(scripts, identity, lambda _: None), scripts, identity)
    intake = Intake(hot, hot, keys, scripts, engine, attempts, identity, 4)
    async with serving(intake):
        await eventually(lambda: scripts.pulls >= 2, "another pull, under the new id")
    assert renewed == [first]

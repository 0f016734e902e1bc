"""A replica as the protocol sees it: clients that follow their requests over a channel that loses messages.

The cursor logic is not modelled: each client has a real `api.relay.Relay`. Only its surroundings are ours: when a
message arrives, when one is lost, when the relay gets to read the log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from api.refusals import refusal
from api.relay import Relay
from shared.errors import RequestError
from shared.hot import PushClient
from shared.outcomes import Admission
from tests.support.model.world import World, require

LOST_MESSAGE: Final = 0.25
_LOOKS = 50
_CANCEL_LOOKS = 5
_BARRIER_S = 5.0
_FOR_EVER_S = 1e9


class ModelClient:
    """Somebody who waits for one answer.

    Attributes:
        text: every byte of the answer that was delivered.
        outcome: None while it waits; then the terminal state, or the code of an explicit error.
        explicit: whether the outcome is an error that the replica raised itself, and not the request's own end.
    """

    def __init__(self, world: World, admission: Admission) -> None:
        self._world = world
        self.admission = admission
        self.rid = admission.rid
        self.text = b""
        self.outcome: str | None = None
        self.explicit = False
        self.relay = Relay(world.hot, world.keys, self.rid, grace_s=5, lost_grace_s=_FOR_EVER_S, readmit=self._readmit)

    async def _readmit(self) -> None:
        self._world.happened["readmitted"] += 1
        admitted = await self._world.scripts.admit(self.admission)
        if admitted.outcome != "OK":
            raise refusal(admitted, lane=self.admission.lane, tenant_cap=self.admission.tenant_cap, ended=False)

    async def follow(self) -> None:
        """What the client's task does whenever the relay wakes it: deliver, read the log, see the end."""
        relay = self.relay
        for _ in range(_LOOKS):
            if self.outcome is not None:
                return
            self.text += b"".join(relay._pending)
            relay._pending.clear()
            relay._pending_bytes = 0
            if relay.end is not None:
                self.outcome = relay.end.state
                return
            if not relay._dirty:
                return
            try:
                await relay._catch_up()
            except RequestError as error:
                self.outcome, self.explicit = error.code, True
                self._world.happened[f"client got {error.code}"] += 1
                await self.leave()
        require(self.outcome is not None, "reading the log does not come to an end", self.rid)

    async def look(self) -> None:
        """The relay has heard nothing for a while."""
        self.relay._read_log("silence", 0)
        await self.follow()

    async def despair(self) -> None:
        """The grace is over in which a worker may bring back what the server has lost."""
        self.relay._lost_grace_s = 0
        await self.look()

    async def leave(self) -> None:
        """Cancels the request, as a replica does for a client that has gone."""
        world, record = self._world, self._world.keys.record(self.rid)
        for _ in range(_CANCEL_LOOKS):
            owner, queue = await world.client.hmget(record, ["owner", "queue"])  # type: ignore[misc]
            seen_owner, seen_queue = (owner or b"-").decode(), (queue or b"-").decode()
            outcome = await world.scripts.cancel(self.rid, owner=seen_owner, queue=seen_queue, reason="client_gone")
            world.happened[f"cancel: {outcome.lower()}"] += 1
            if outcome != "RETRY":
                return


class ModelReplica:
    """The subscriber connection and the clients behind it."""

    def __init__(self, world: World, url: str) -> None:
        self._world = world
        self.clients: dict[str, ModelClient] = {}
        self._messages: list[tuple[str, bytes]] = []
        self._pong: asyncio.Future[None] | None = None
        self._channels = world.keys.channel("")
        self.push = PushClient(url, "model-check-push", self._on_reply, self._on_connect)

    def _on_connect(self) -> None:
        self.push.send("PSUBSCRIBE", f"{self._channels}*")

    def _on_reply(self, reply: list[Any]) -> None:
        if reply[0] == b"pmessage":
            self._messages.append((reply[2].decode().removeprefix(self._channels), reply[3]))
        elif reply[0] == b"pong" and self._pong is not None and not self._pong.done():
            self._pong.set_result(None)

    async def arrived(self) -> list[tuple[str, bytes]]:
        """Everything that was published until now, once the connection has brought it."""
        self._pong = asyncio.get_running_loop().create_future()
        self.push.send("PING")
        await asyncio.wait_for(self._pong, _BARRIER_S)
        messages, self._messages = self._messages, []
        return messages

    async def pump(self, *, lossy: bool = True) -> None:
        """Delivers what has arrived, less what is lost on the way."""
        woken = {}
        for rid, message in await self.arrived():
            client = self.clients.get(rid)
            if client is None or client.outcome is not None:
                continue
            if lossy and self._world.rnd.random() < LOST_MESSAGE:
                self._world.happened["lost message"] += 1
                continue
            client.relay.on_message(message)
            woken[rid] = client
        for client in woken.values():
            await client.follow()

    async def renewed(self) -> None:
        """The subscriber connection broke and came back."""
        self._world.happened["subscriber renewed"] += 1
        await self.arrived()
        for client in self.clients.values():
            if client.outcome is None:
                client.relay.on_gap()
                await client.follow()

    @property
    def waiting(self) -> list[ModelClient]:
        """Clients whose answer has not ended."""
        return [client for client in self.clients.values() if client.outcome is None]


@contextlib.asynccontextmanager
async def following(world: World, url: str) -> AsyncIterator[ModelReplica]:
    """A replica whose subscription is confirmed."""
    replica = ModelReplica(world, url)
    started = asyncio.Event()
    task = asyncio.create_task(replica.push.run(started))
    await asyncio.wait_for(started.wait(), _BARRIER_S)
    await replica.arrived()
    try:
        yield replica
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

"""services: started in order, stopped in reverse, and no failure goes unnoticed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from shared.services import ServiceGroup


class Loop:
    """A service that writes down what happens to it."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name = name
        self._diary = diary
        self.fail = asyncio.Event()

    async def run(self, started: asyncio.Event) -> None:
        self._diary.append(f"{self.name} starts")
        started.set()
        try:
            await self.fail.wait()
            raise RuntimeError(f"{self.name} broke")
        finally:
            self._diary.append(f"{self.name} stops")


class Deaf:
    """A service that never starts."""

    name = "deaf"

    async def run(self, started: asyncio.Event) -> None:
        del started
        await asyncio.Event().wait()


class Brief:
    """A service that returns, which none may."""

    name = "brief"

    async def run(self, started: asyncio.Event) -> None:
        started.set()
        await asyncio.sleep(0)


class Broken:
    """A service that cannot start."""

    name = "broken"

    async def run(self, started: asyncio.Event) -> None:
        del started
        raise ValueError("no engine")


async def test_services_start_in_order_and_stop_in_reverse() -> None:
    diary: list[str] = []
    group = ServiceGroup()
    for name in "abc":
        await group.start(Loop(name, diary))
    await group.stop()
    assert diary == ["a starts", "b starts", "c starts", "c stops", "b stops", "a stops"]


async def test_stopping_twice_is_safe() -> None:
    diary: list[str] = []
    group = ServiceGroup()
    await group.start(Loop("a", diary))
    await group.stop()
    await group.stop()
    assert diary == ["a starts", "a stops"]


async def test_the_first_failure_is_reported() -> None:
    diary: list[str] = []
    group = ServiceGroup()
    first, second = Loop("first", diary), Loop("second", diary)
    for service in (first, second):
        await group.start(service)
    second.fail.set()
    assert str(await asyncio.wait_for(group.failure(), 1)) == "second broke"
    first.fail.set()
    assert str(await asyncio.wait_for(group.failure(), 1)) == "second broke"
    await group.stop()


async def test_a_service_that_returns_has_failed() -> None:
    group = ServiceGroup()
    await group.start(Brief())
    assert "brief returned" in str(await asyncio.wait_for(group.failure(), 1))
    await group.stop()


async def test_stopping_is_no_failure() -> None:
    group = ServiceGroup()
    await group.start(Loop("a", []))
    failure = asyncio.create_task(group.failure())
    await group.stop()
    await asyncio.sleep(0)
    assert not failure.done()
    failure.cancel()


async def test_a_service_that_cannot_start_raises_what_it_raised() -> None:
    group = ServiceGroup()
    with pytest.raises(ValueError, match="no engine"):
        await group.start(Broken())
    await group.stop()


async def test_a_service_that_does_not_start_in_time_is_named_and_can_be_stopped() -> None:
    group = ServiceGroup()
    with pytest.raises(TimeoutError, match="deaf"):
        await group.start(Deaf(), timeout_s=0.02)
    await asyncio.wait_for(group.stop(), 1)


class Stubborn:
    """Swallows its first cancellation, as `wait_for` of Python 3.11 may."""

    name = "stubborn"

    async def run(self, started: asyncio.Event) -> None:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()


async def test_a_service_that_swallows_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.services._CANCEL_AGAIN_S", 0.02)
    group = ServiceGroup()
    await group.start(Stubborn())
    await asyncio.wait_for(group.stop(), 1)

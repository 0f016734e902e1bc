"""Drills 24, 36 and 42: workers that are cut off, that leave, and what their clients see of it."""

from __future__ import annotations

import asyncio

import pytest

from tests.drills.acting import KEYS as K
from tests.drills.acting import all_visible, busiest, control, proxy_of, through
from tests.drills.conftest import Figures
from tests.support.amid import all_amid
from tests.support.history import POOL, check_history
from tests.support.load import Ask, start_many
from tests.support.stack import Stack, eventually
from tests.support.supervisor import supervised
from worker.engines.sim_answers import sign_text


@pytest.mark.drill(24)
@pytest.mark.long
async def test_a_workers_requests_move_while_it_is_cut_off_and_it_is_fenced_on_return(
    stack: Stack, figures: Figures
) -> None:
    flags = ("--", "--itl-ms", "100")
    with proxy_of(stack) as proxy:
        lost = stack.worker(*flags, env=through(proxy))
        api = stack.api()
        tasks = start_many(12, Ask([api.url], 160))
        await all_visible(lost, 12)
        stack.worker(*flags)  # only now: it has the shorter way, and takes most of what comes
        tasks += start_many(12, Ask([api.url], 160))
        proxy.partition()
        await asyncio.sleep(15)  # the drill's own length
        proxy.heal()
        await eventually(lambda: lost.metric("penstock_worker_renewals_total") >= 1, 30, "it is told")
        seen = await asyncio.gather(*tasks)
        verdict = await check_history(stack.redis_url, seen, 160)
        await eventually(lambda: lost.metric("penstock_attempts_running") == 0, 30, "it has let go")
        figures |= {"longest pause s": verdict.longest_pause_s, "bytes held up": proxy.held_bytes}
        assert proxy.held_bytes > 0
    assert verdict.longest_pause_s < 12
    assert not verdict.errors


@pytest.mark.drill(36)
async def test_a_drained_workers_unfinished_requests_go_on_elsewhere(stack: Stack, figures: Figures) -> None:
    flags = ("--drain-s", "2", "--", "--itl-ms", "100")
    workers = {stack.worker(*flags), stack.worker(*flags)}
    api = stack.api()
    tasks = start_many(32, Ask([api.url], 150))
    leaver = await busiest(stack, 8)
    (stayer,) = workers - {leaver}
    await all_amid(stack, POOL, 32)
    status = await asyncio.to_thread(leaver.stop)
    seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, seen, 150)
    resumed = int(stayer.metric("penstock_resumes_total"))
    figures |= {"longest pause s": verdict.longest_pause_s, "gone on with by the other": resumed}
    assert status == 0
    assert resumed >= 8, "nothing was handed over"
    assert not verdict.errors
    with control(stack) as server:
        assert len(server.xinfo_consumers(K.queue("standard"), "g")) == 1
        assert server.hlen(K.workers) == 1
        assert all(server.hget(K.record(one.rid), "kills") == b"0" for one in seen)


@pytest.mark.drill(36)
async def test_a_drained_worker_leaves_no_card_and_no_consumer(stack: Stack, figures: Figures) -> None:
    for _ in range(2):
        stack.worker("--", "--itl-ms", "50")
    api = stack.api()
    tasks = start_many(24, Ask([api.url], 60))
    leaver = await busiest(stack, 5)
    status = await asyncio.to_thread(leaver.stop)
    seen = await asyncio.gather(*tasks)
    verdict = await check_history(stack.redis_url, seen, 60)
    figures |= {"streams": len(seen), "errors": sum(verdict.errors.values())}
    assert status == 0
    assert verdict.whole == 24
    with control(stack) as server:
        assert server.hlen(K.workers) == 1
        await eventually(lambda: len(server.xinfo_consumers(K.queue("standard"), "g")) == 1, 30, "no consumer stays")


@pytest.mark.drill(42)
async def test_characters_of_several_bytes_survive_the_kill(stack: Stack, figures: Figures) -> None:
    """The bytes are the engine's; what is drilled here is that no frame is cut inside an event, or a character."""
    flags = ("--", "--itl-ms", "50", "--text", "signs")
    workers = {stack.worker(*flags), stack.worker(*flags)}
    api = stack.api()
    async with supervised(stack):
        tasks = start_many(16, Ask([api.url], 200, content="zähle 🔢"))
        victim = await busiest(stack, 1)
        (heir,) = workers - {victim}
        victim.kill()
        seen = await asyncio.gather(*tasks)
    wanted = {one.rid: "".join(sign_text(one.rid, index) for index in range(200)) for one in seen}
    verdict = await check_history(stack.redis_url, seen, wanted)
    resumed = int(heir.metric("penstock_resumes_total"))
    figures |= {"streams": len(seen), "hit": resumed, "errors": sum(verdict.errors.values())}
    assert verdict.whole == 16
    assert resumed > 0, "the kill hit no stream"

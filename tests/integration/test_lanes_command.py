"""`penstock lanes` on a real server: what it prints, and its exit status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from cli import lanes
from shared.connection import RedisCaller, connect
from shared.keys import Keys
from shared.registry import Registry
from shared.scripts import Scripts
from shared.wire import WorkerCard
from tests.integration.shard import Shard
from tests.support.servers import Server

Run = Callable[..., int]


@pytest.fixture
def run(server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, on two pools; in the first one r1 and r2 wait, of two tenants."""
    monkeypatch.setenv("PENSTOCK_REDIS_URL", server.url)
    monkeypatch.setenv("PENSTOCK_PREFIX", prefix)

    async def prepare() -> None:
        client = connect(server.url)
        keys = Keys("pool", prefix=prefix)
        shard = Shard(client, keys, Scripts(RedisCaller(client), keys))
        registry = Registry(client, prefix)
        await registry.register("pool", WorkerCard("w1", "sim", "1", 4, []), ["llama"])
        await registry.register("second", WorkerCard("w2", "sim", "1", 4, []), ["mistral"])
        await shard.admit("r1", tenant="acme", cost=40)
        await shard.admit("r2", tenant="other", cost=2)
        await client.aclose()
        await client.connection_pool.disconnect()

    asyncio.run(prepare())
    return lambda *argv: lanes.main(list(argv))


def listed(run: Run, capsys: pytest.CaptureFixture[str], model: str = "llama") -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert run("ls", "--json", "--model", model) == 0
    return {lane["lane"]: lane for lane in json.loads(capsys.readouterr().out)}


def test_without_a_command_it_shows_every_lane_of_every_pool_on_a_line(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:7]]
    assert [line[:4] for line in lines] == [
        [pool, lane, "open", "2" if (pool, lane) == ("pool", "standard") else "0"]
        for pool in ("pool", "second")
        for lane in ("interactive", "standard", "batch")
    ]
    assert lines[1][6:11] == ["42", "3", "default", "10000", "default"]
    assert lines[1][11:] == ["-", "replica"] * 3


def test_pause_drain_and_resume_say_what_the_lane_does_now(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pause", "standard", "--model", "llama") == 0
    assert capsys.readouterr().out == "pool: standard: paused\n"
    assert run("--model", "llama", "pause", "standard") == 0
    assert capsys.readouterr().out == "pool: standard: paused (already)\n"
    assert run("drain", "standard") == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["pool", "second"]
    shown = listed(run, capsys)["standard"]
    assert (shown["paused"], shown["draining"]) == (True, True)
    assert listed(run, capsys, "mistral")["standard"]["paused"] is False
    assert run("resume", "standard") == 0
    shown = listed(run, capsys)["standard"]
    assert (shown["paused"], shown["draining"]) == (False, False)


def test_set_and_unset_change_what_is_in_force(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("set", "batch", "weight=2.5", "max_requests=7", "--model", "llama") == 0
    assert capsys.readouterr().out == "pool: batch: weight=2.5 max_requests=7\n"
    settings = listed(run, capsys)["batch"]["settings"]
    assert settings["weight"] == {"value": 2.5, "source": "live"}
    assert settings["max_requests"] == {"value": 7, "source": "live"}
    assert run("unset", "batch", "weight", "--model", "llama") == 0
    assert capsys.readouterr().out == "pool: batch: weight as started with\n"
    settings = listed(run, capsys)["batch"]["settings"]
    assert settings["weight"] == {"value": 1, "source": "default"}
    assert settings["max_requests"]["source"] == "live"


def test_purge_says_how_many_it_has_ended(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("purge", "standard", "--older-than-s", "3600", "--model", "llama") == 0
    assert capsys.readouterr().out == "pool: standard: 0 purged\n"
    assert run("purge", "standard", "--tenant", "acme", "--model", "llama") == 0
    assert capsys.readouterr().out == "pool: standard: 1 purged\n"
    assert run("purge", "standard") == 0
    assert capsys.readouterr().out == "pool: standard: 1 purged\nsecond: standard: 0 purged\n"
    assert listed(run, capsys)["standard"]["depth"] == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("pause", "quarantine"), "quarantine is no lane"),
        (("drain", "bulk"), "There is no lane 'bulk'"),
        (("set", "batch", "weight=0"), "weight must be a number from 0.001 to 1000, not '0'"),
        (("set", "batch", "paused=1"), "There is no setting 'paused'"),
        (("unset", "batch", "speed"), "There is no setting 'speed'"),
        (("set", "batch", "weight"), "Say <setting>=<value>"),
        (("ls", "--redis-url", "nonsense"), "--redis-url is no address of a Redis"),
    ],
)
def test_what_the_caller_must_change_is_status_2_and_a_sentence(
    run: Run, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert run(*argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("pause", "batch", "--model", "nobody"), "The model `nobody` does not exist"),
        (("ls", "--redis-url", "redis://127.0.0.1:1/0"), "Redis cannot be reached"),
        (("ls", "--prefix", "elsewhere"), "There is no pool yet"),
    ],
)
def test_what_is_not_there_is_status_1_and_a_sentence(
    run: Run, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert run(*argv) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_an_age_is_a_number_of_seconds(run: Run, capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("purge", "batch", f"--older-than-s={seconds}")
    assert "is no number of seconds" in capsys.readouterr().err

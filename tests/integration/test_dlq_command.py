"""`penstock dlq` on a real server: what it prints, and its exit status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from cli import dlq
from shared.connection import RedisCaller, connect
from shared.keys import Keys
from shared.registry import Registry
from shared.scripts import Scripts
from shared.wire import Request, WorkerCard, encode
from tests.integration.shard import Shard, ending
from tests.support.servers import Server

Run = Callable[..., int]


@pytest.fixture
def run(server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, on a pool in which r1 and r2 have been given up."""
    monkeypatch.setenv("PENSTOCK_REDIS_URL", server.url)
    monkeypatch.setenv("PENSTOCK_PREFIX", prefix)

    async def prepare() -> None:
        client = connect(server.url)
        keys = Keys("pool", prefix=prefix)
        shard = Shard(client, keys, Scripts(RedisCaller(client), keys))
        await Registry(client, prefix).register("pool", WorkerCard("w1", "sim", "1", 4, []), ["llama"])
        for rid in ("r1", "r2"):
            body = encode(Request("POST", "/v1/completions", [], b'{"prompt": "x"}', "standard"))
            await shard.claimed(rid, attempt="a1", body=body)
            end = {"state": "failed", "reason": "undecodable", "frame": ending("a1"), "expected": 0}
            await shard.scripts.done("w1", rid, "a1", **end)  # type: ignore[arg-type]
        await client.aclose()
        await client.connection_pool.disconnect()

    asyncio.run(prepare())
    return lambda *argv: dlq.main(list(argv))


def listed(run: Run, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert run("ls", "--json") == 0
    return list(json.loads(capsys.readouterr().out))


def test_ls_shows_each_letter_on_a_line_with_whole_ids(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [letter["id"] for letter in listed(run, capsys)]
    assert run("ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert [line.split()[:5] for line in lines[1:]] == [
        [entries[0], "r2", "pool", "standard", "undecodable"],
        [entries[1], "r1", "pool", "standard", "undecodable"],
    ]


def test_show_tells_what_happened_and_what_was_asked(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "r1") == 0
    shown = capsys.readouterr().out
    for said in ("r1", "undecodable", "w1", "a1", "/v1/completions", '{"prompt": "x"}'):
        assert said in shown
    assert run("show", "r1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["body"] == '{"prompt": "x"}'


def test_redrive_names_the_new_request_and_a_second_time_the_same(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("redrive", "r1") == 0
    first = capsys.readouterr().out.split()
    assert first[:2] == ["r1", "->"]
    assert run("redrive", "r1") == 0
    assert capsys.readouterr().out.split() == [*first, "(already)"]
    assert run("redrive", "--all") == 0
    assert capsys.readouterr().out.split()[0] == "r2"
    assert all(letter["redriven_as"] for letter in listed(run, capsys))


def test_drop_deletes_the_named_or_all(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("drop", "r1") == 0
    assert capsys.readouterr().out == "r1 dropped\n"
    assert [letter["request"] for letter in listed(run, capsys)] == ["r2"]
    assert run("drop", "--all") == 0
    capsys.readouterr()
    assert run("ls") == 0
    assert capsys.readouterr().out == "No dead letters.\n"


@pytest.mark.parametrize("argv", [("show", "r9"), ("redrive", "r9"), ("drop", "r9")])
def test_an_unknown_letter_is_status_1_and_says_so(
    run: Run, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    assert run(*argv) == 1
    assert "no dead letter r9" in capsys.readouterr().err


def test_neither_names_nor_all_is_status_2(run: Run) -> None:
    assert run("redrive") == 2
    assert run("drop", "r1", "--all") == 2


def test_without_redis_it_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--redis-url", "redis://127.0.0.1:1/0") == 1
    assert "Redis cannot be reached" in capsys.readouterr().err


def test_settings_may_stand_before_a_letters_name(
    run: Run, server: Server, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", "--redis-url", server.url, "r1") == 0
    assert run("--prefix", prefix, "show", "r1") == 0
    assert "r1" in capsys.readouterr().out


def test_an_address_that_is_none_is_status_2_and_a_sentence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--redis-url", "nonsense") == 2
    assert "--redis-url is no address of a Redis" in capsys.readouterr().err

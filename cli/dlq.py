"""`penstock dlq`: looks at dead letters, redrives them, drops them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

from rich.table import Table

from cli.remote import WHERE_REDIS_IS, RemoteSettings, guarded, moment, split_settings, wide
from shared.dead_letters import DeadLetters, Letter
from shared.settings import read_settings

_EPILOG = f"""\
ID is a letter's own id or its request's id. Exit status: 0 done, 1 no such letter or no Redis, 2 wrong arguments.
{WHERE_REDIS_IS}"""


def main(argv: list[str]) -> int:
    """Runs one command. Returns the exit status."""
    settings_argv, own = split_settings(argv)
    arguments, rest = _parser().parse_known_args(own)
    if arguments.command in {"redrive", "drop"} and bool(arguments.ids) == arguments.all:
        sys.stderr.write(f"penstock dlq {arguments.command}: name letters, or say --all.\n")
        return 2

    def run() -> int:
        settings = read_settings(RemoteSettings, [*settings_argv, *rest], "penstock dlq")
        return asyncio.run(_run(arguments, settings))

    return guarded("penstock dlq", run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock dlq",
        description="Dead letters: requests that were given up.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="ls | show | redrive | drop")
    ls = commands.add_parser("ls", help="list them, the latest of each pool first")
    ls.add_argument("--limit", type=int, default=100, help="most to list")
    show = commands.add_parser("show", help="one of them, with history and body")
    show.add_argument("id")
    for name, what in (("redrive", "admit again, under a new id"), ("drop", "delete for good")):
        command = commands.add_parser(name, help=what)
        command.add_argument("ids", nargs="*", metavar="ID")
        command.add_argument("--all", action="store_true", help="every one; redrive: that was not redriven before")
    for command in (ls, show):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser


async def _run(arguments: argparse.Namespace, settings: RemoteSettings) -> int:
    client = settings.connect()
    letters = DeadLetters(client, settings.prefix)
    try:
        if arguments.command == "ls":
            return _list(await letters.all(most=arguments.limit), as_json=arguments.json)
        if arguments.command == "show":
            return _show(await letters.find(arguments.id), arguments.id, as_json=arguments.json)
        act = _redrive if arguments.command == "redrive" else _drop
        return await _each(letters, arguments, lambda letter: act(letters, letter))
    finally:
        await client.aclose()


def _list(letters: list[Letter], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([letter.facts() for letter in letters], indent=2))
        return 0
    if not letters:
        print("No dead letters.")
        return 0
    table = Table("id", "request", "pool", "lane", "reason", "kills", "given up", "redriven as", box=None)
    for letter in letters:
        facts = (letter.entry, letter.rid, letter.keys.pool, letter.lane, letter.reason, str(letter.kills))
        table.add_row(*facts, moment(letter.at_ms), letter.redriven_as or "-")
    wide().print(table)
    return 0


def _show(letter: Letter | None, name: str, *, as_json: bool) -> int:
    if letter is None:
        return _unknown(name)
    request = letter.request
    body = (letter.body if request is None else request.body).decode(errors="replace")
    if as_json:
        print(json.dumps({**letter.facts(), "path": request.path if request else None, "body": body}, indent=2))
        return 0
    table = Table(show_header=False, box=None)
    for fact, value in letter.facts().items():
        if fact != "history":
            table.add_row(fact, moment(value) if fact.endswith("_ms") else str("-" if value is None else value))
    history = Table("began", "when", "what", "worker", "attempt", box=None)
    for event in letter.history:
        began = moment(event.started_at_ms) if event.started_at_ms else "-"
        history.add_row(began, moment(event.at_ms), event.what, event.wid, event.attempt)
    console = wide()
    console.print(table, "", history, "")
    print(f"{request.path if request else '(the body is not a request)'}\n{body}")
    return 0


async def _each(letters: DeadLetters, arguments: argparse.Namespace, act: Callable[[Letter], Awaitable[bool]]) -> int:
    """Does something with each letter that the arguments name. Status 1 when one of them is unknown."""
    if arguments.all:
        for letter in await letters.all():
            if arguments.command == "drop" or not letter.redriven_as:
                await act(letter)
        return 0
    status = 0
    for name in arguments.ids:
        found = await letters.find(name)
        if found is None or not await act(found):
            status = _unknown(name)
    return status


async def _redrive(letters: DeadLetters, letter: Letter) -> bool:
    outcome, rid = await letters.redrive(letter)
    if outcome != "GONE":
        print(f"{letter.rid} -> {rid}{'' if outcome == 'OK' else ' (already)'}")
    return outcome != "GONE"


async def _drop(letters: DeadLetters, letter: Letter) -> bool:
    dropped = await letters.drop(letter)
    if dropped:
        print(f"{letter.rid} dropped")
    return dropped


def _unknown(name: str) -> int:
    sys.stderr.write(f"penstock dlq: there is no dead letter {name}. `penstock dlq ls` lists those there are.\n")
    return 1

"""`penstock dlq`: looks at dead letters, redrives them, drops them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

from pydantic import Field
from rich.console import Console
from rich.table import Table

from shared.connection import connect
from shared.dead_letters import DeadLetters, Letter
from shared.errors import BrokerUnavailableError, ConfigurationError
from shared.settings import Settings, read_settings

_EPILOG = """\
ID is a letter's own id or its request's id. Exit status: 0 done, 1 no such letter or no Redis, 2 wrong arguments.
Redis is found as everywhere: --redis-url, PENSTOCK_REDIS_URL, REDIS_URL; without them that of `penstock up` in this
folder."""


class DlqSettings(Settings):
    """Where the dead letters are."""

    redis_url: str = Field("", description="Redis or Valkey; empty: that of `penstock up`, see --data")
    data: Path = Field(Path(".penstock"), description="data folder of `penstock up`")

    @property
    def url(self) -> str:
        """The server to use. Raises ConfigurationError."""
        if self.redis_url:
            return self.redis_url
        socket = self.data.expanduser().absolute() / "redis" / "redis.sock"
        if not socket.exists():
            raise ConfigurationError(f"No Redis is named, and no `penstock up` runs in {self.data}. Set REDIS_URL.")
        return f"unix://{quote(str(socket))}?db=0"


def main(argv: list[str]) -> int:
    """Runs one command. Returns the exit status."""
    settings_argv, own = _split(argv)
    arguments, rest = _parser().parse_known_args(own)
    if arguments.command in {"redrive", "drop"} and bool(arguments.ids) == arguments.all:
        sys.stderr.write(f"penstock dlq {arguments.command}: name letters, or say --all.\n")
        return 2
    try:
        settings = read_settings(DlqSettings, [*settings_argv, *rest], "penstock dlq")
        return asyncio.run(_run(arguments, settings))
    except ConfigurationError as error:
        sys.stderr.write(f"penstock dlq: {error}\n")
        return 2
    except BrokerUnavailableError as error:
        sys.stderr.write(f"penstock dlq: Redis cannot be reached: {error}\n")
        return 1


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The flags of the settings, each with its value, and the rest: else a value would be taken for a letter's id."""
    flags = {f"--{name.replace('_', '-')}" for name in DlqSettings.model_fields}
    of_settings: list[str] = []
    own: list[str] = []
    words = iter(argv)
    for word in words:
        if word in flags:
            of_settings += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            own.append(word)
    return of_settings, own


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


async def _run(arguments: argparse.Namespace, settings: DlqSettings) -> int:
    try:
        client = connect(settings.url)
    except ValueError as error:
        msg = f"--redis-url is no address of a Redis: {error}"  # without it: it may hold a password
        raise ConfigurationError(msg) from error
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
        table.add_row(*facts, _moment(letter.at_ms), letter.redriven_as or "-")
    _wide().print(table)
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
            table.add_row(fact, _moment(value) if fact.endswith("_ms") else str("-" if value is None else value))
    history = Table("when", "what", "worker", "attempt", box=None)
    for event in letter.history:
        history.add_row(_moment(event.at_ms), event.what, event.wid, event.attempt)
    console = _wide()
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


def _wide() -> Console:
    """A console that never cuts an id: into a pipe as wide as it takes."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, width=240)


def _moment(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))

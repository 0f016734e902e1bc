"""`penstock lanes`: looks at the lanes, pauses, drains and purges them, changes their live settings."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Mapping

from rich.table import Table

from cli.remote import WHERE_REDIS_IS, RemoteSettings, guarded, split_settings, wide
from shared.lane_admin import LaneAdmin, LaneState
from shared.lane_settings import DRAIN, PAUSE, RESUME, SETTINGS, parse_assignments, parse_changes, parse_lane
from shared.lanes import Lane
from shared.settings import read_settings

_SWITCHES = {"pause": PAUSE, "resume": RESUME, "drain": DRAIN}
_SAID = {"pause": "paused", "resume": "takes and starts requests", "drain": "drains: it takes nothing new"}
_COMMANDS = {
    "pause": "start nothing new of it; what runs goes on, what comes waits",
    "resume": "end a pause and a drain",
    "drain": "refuse what is new; what waits and runs goes on",
}
_EPILOG = f"""\
LANE is interactive, standard or batch. Settings, in force at once and until they are unset:
{chr(10).join(f"  {setting.name:<14}{setting.what}" for setting in SETTINGS.values())}
Exit status: 0 done, 1 no such model or no Redis, 2 wrong arguments.
{WHERE_REDIS_IS}"""


def main(argv: list[str]) -> int:
    """Runs one command. Returns the exit status."""
    settings_argv, own = split_settings(argv)
    arguments, rest = _parser().parse_known_args(own)

    def run() -> int:
        settings = read_settings(RemoteSettings, [*settings_argv, *rest], "penstock lanes")
        return asyncio.run(_run(arguments, settings))

    return guarded("penstock lanes", run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock lanes",
        description="Lanes: what waits in them and what is set. Without a command: lists them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of_pool = argparse.ArgumentParser(add_help=False)
    # no default here: it would overwrite what was said before the command
    of_pool.add_argument("--model", default=argparse.SUPPRESS, help="only the pool of this model; else all pools")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="for programs")
    parser.add_argument("--model", help="only the pool of this model; else all pools")
    parser.add_argument("--json", action="store_true", help="for programs")
    commands = parser.add_subparsers(metavar="ls | pause | resume | drain | purge | set | unset", dest="named")
    commands.add_parser("ls", help="list them", parents=[of_pool, as_json])
    for name, what in _COMMANDS.items():
        commands.add_parser(name, help=what, parents=[of_pool]).add_argument("lane", metavar="LANE")
    purge = commands.add_parser("purge", help="end what waits in it, each with an error", parents=[of_pool])
    purge.add_argument("lane", metavar="LANE")
    purge.add_argument("--tenant", help="only this tenant's")
    purge.add_argument("--older-than-s", type=_seconds, default=0.0, metavar="S", help="only what has waited so long")
    change = commands.add_parser("set", help="change settings", parents=[of_pool])
    change.add_argument("lane", metavar="LANE")
    change.add_argument("assignments", nargs="+", metavar="SETTING=VALUE")
    unset = commands.add_parser("unset", help="back to what processes were started with", parents=[of_pool])
    unset.add_argument("lane", metavar="LANE")
    unset.add_argument("settings", nargs="+", metavar="SETTING")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        msg = f"{text!r} is no number of seconds"
        raise argparse.ArgumentTypeError(msg)
    return seconds


async def _run(arguments: argparse.Namespace, settings: RemoteSettings) -> int:
    command = arguments.named or "ls"
    changes = _changes(command, arguments)
    lane = None if command == "ls" else parse_lane(arguments.lane)
    client = settings.connect()
    admin = LaneAdmin(client, settings.prefix, result_ttl_ms=settings.result_ttl_s * 1000)
    try:
        pools = await admin.pools(arguments.model)
        if lane is None:
            return _list([state for pool in pools for state in await admin.look(pool)], as_json=arguments.json)
        for pool in pools:
            if command == "purge":
                await _purge(admin, pool, lane, arguments)
                continue
            changed = await admin.change(pool, lane, changes)
            print(f"{pool}: {lane}: {_said(command, changes)}{'' if changed else ' (already)'}")
        return 0
    finally:
        await client.aclose()


async def _purge(admin: LaneAdmin, pool: str, lane: Lane, arguments: argparse.Namespace) -> None:
    """Says how many have ended, also when it is cut short."""
    purged = 0
    try:
        async for count in admin.purge(pool, lane, tenant=arguments.tenant, older_than_s=arguments.older_than_s):
            purged += count
    finally:
        print(f"{pool}: {lane}: {purged} purged")


def _changes(command: str, arguments: argparse.Namespace) -> dict[str, str]:
    if command == "set":
        return parse_assignments(arguments.assignments)
    if command == "unset":
        return parse_changes(dict.fromkeys(arguments.settings))
    return _SWITCHES.get(command, {})


def _said(command: str, changes: Mapping[str, str]) -> str:
    if command == "unset":
        return f"{', '.join(changes)} as started with"
    return _SAID.get(command) or " ".join(f"{name}={value}" for name, value in changes.items())


def _list(states: list[LaneState], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([state.facts() for state in states], indent=2))
        return 0
    table = Table("pool", "lane", "state", "depth", "retrying", "oldest s", "work tokens", *SETTINGS, box=None)
    for state in states:
        held = [name for name, on in (("paused", state.paused), ("draining", state.draining)) if on]
        waits = (str(state.depth), str(state.retrying), f"{state.oldest_age_ms / 1000:.1f}", str(state.work_tokens))
        values = [
            f"{'-' if one.value is None else f'{one.value:.15g}'} {one.source}" for one in state.settings.values()
        ]
        table.add_row(state.pool, state.lane, "+".join(held) or "open", *waits, *values)
    wide().print(table)
    print("live: set in the running system. default: built in. replica: what each replica was started with.")
    return 0

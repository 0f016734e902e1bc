"""The arguments of `penstock batch` and of its commands, and what they mean."""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from datetime import datetime
from typing import Any

from cli.batches.formats import FORMATS
from cli.batches.rows import CHAT, EMBEDDINGS, NAMES, RESPONSES, Wishes
from cli.batches.submit import Submission
from cli.client import WHERE_THE_API_IS
from shared.errors import ConfigurationError

_FORMATS = "\n".join(f"  {name:<8}{what}" for name, what in FORMATS.items())
_STATUS = "Exit status: 0 done, and no row failed; 1 something failed; 2 wrong arguments or input; 130 Ctrl-C."
_RUN = """\
Runs a file of prompts as a batch: uploads it, shows how it gets on, and writes the results. Ctrl-C detaches: the batch
goes on, and `penstock batch watch` comes back to it."""
_EPILOG = f"""\
Commands instead of flags, each with --help:
  submit FILE      upload rows and start a batch; prints its id
  status ID        a batch as it is now
  watch ID         follow it to its end; with --output, write the results then
  results ID       what has come out of it; --follow: row by row while it runs
  cancel ID        end it early; rows that are done are delivered
  list             batches, the newest first

Lines of the input may be: a prompt as it stands; {{"prompt": …}}, {{"messages": […]}} or {{"input": …}}, other fields
being parameters of that row; whole rows ({{"custom_id": …, "method": "POST", "url": …, "body": {{…}}}}), as OpenAI and
`vllm run-batch` have them. A line without a `custom_id` is row-N, N being its number.

Formats of the output:
{_FORMATS}

{_STATUS}
{WHERE_THE_API_IS}"""
_AFTER = re.compile(r"\+([0-9]{1,4})([mhd])")
_UNIT_S = {"m": 60, "h": 3_600, "d": 86_400}
_HOURS = re.compile(r"([0-9:]+)-([0-9:]+)(?:,(.+))?")
COMMANDS = ("submit", "status", "watch", "results", "cancel", "list")


def run_parser() -> argparse.ArgumentParser:
    """Of `penstock batch` itself."""
    parser = _parser("penstock batch", _RUN, _EPILOG)
    _add_where(parser)
    _add_rows(parser)
    _add_output(parser)
    parser.add_argument(
        "--clean", action="store_true", help="delete its files from the server once results are written"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    return parser


def command_parser(command: str) -> argparse.ArgumentParser:
    """Of one of the commands."""
    parser = _parser(f"penstock batch {command}", None, f"{_STATUS}\n{WHERE_THE_API_IS}")
    _add_where(parser)
    if command == "submit":
        _add_rows(parser)
        parser.add_argument("file", nargs="?", help="as --input")
    elif command == "list":
        parser.add_argument("--limit", type=_positive, default=20, metavar="N", help="most to list (20)")
        parser.add_argument("--after", default="", metavar="ID", help="those behind this one")
    else:
        parser.add_argument("id", help="of the batch")
    if command in {"watch", "results"}:
        _add_output(parser)
        parser.add_argument("--clean", action="store_true", help="delete its files from the server afterwards")
        parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    if command == "results":
        parser.add_argument("--follow", action="store_true", help="write rows as they get done, to the batch's end")
    return parser


def _parser(program: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=program, description=description, epilog=epilog, formatter_class=kind, allow_abbrev=False
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="of the API, or of several replicas, separated by commas")
    parser.add_argument(
        "--api-key", metavar="KEY", help="better in PENSTOCK_API_KEY, where no list of processes shows it"
    )
    parser.add_argument("--retry-s", metavar="S", help="for how long a server that is gone is asked again (120)")
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_rows(parser: argparse.ArgumentParser) -> None:
    rows = parser.add_argument_group("what is asked")
    rows.add_argument(
        "-i", "--input", "--input-file", metavar="FILE", help="prompts or rows, one per line; - for stdin"
    )
    rows.add_argument("-m", "--model", default="", help="for rows that name none; needed where several are served")
    rows.add_argument("--endpoint", default="", help=f"{', '.join(NAMES)}, or a path; else as the first line has it")
    rows.add_argument("--system", default="", metavar="TEXT", help="system prompt for rows that have none")
    rows.add_argument("--max-tokens", type=_positive, metavar="N", help="most tokens of each answer")
    rows.add_argument("--temperature", type=float, metavar="T", help="of each answer")
    rows.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other parameter, as JSON or text; repeat it",
    )
    rows.add_argument("--plain", action="store_true", help="every line is a prompt as it stands, also {…}")
    batch = parser.add_argument_group("when, and under which name")
    batch.add_argument(
        "--window", default="24h", metavar="TIME", help="1h to 7d: what is not done by then expires (24h)"
    )
    batch.add_argument(
        "--start-after", metavar="WHEN", help="not before: +90m, +2h, +1d, 2026-01-31T22:00 or Unix seconds"
    )
    batch.add_argument("--start-window", metavar="FROM-TO", help="only at these hours: 22:00-06:00,Europe/Berlin")
    batch.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="kept with it; repeat it")
    batch.add_argument("--idempotency-key", default="", metavar="KEY", help="the same input under it is the same batch")


def _add_output(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("what comes out")
    out.add_argument("-o", "--output", "--output-file", metavar="FILE", help="where results go; - for standard output")
    out.add_argument("--format", choices=tuple(FORMATS), default="openai", help="of the results (openai)")
    out.add_argument("--order", choices=("input", "done"), default="input", help="of the results (input)")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def where_of(arguments: argparse.Namespace) -> list[str]:
    """The flags of ClientSettings among the arguments."""
    given = {"--url": arguments.url, "--api-key": arguments.api_key, "--retry-s": arguments.retry_s}
    return [word for flag, value in given.items() if value is not None for word in (flag, value)]


def submission_of(arguments: argparse.Namespace) -> Submission:
    """What is to be submitted. Raises ConfigurationError."""
    named = [name for name in (arguments.input, getattr(arguments, "file", None)) if name]
    if len(named) != 1:
        raise ConfigurationError("name one input: --input prompts.jsonl, or - for standard input.")
    endpoint = NAMES.get(arguments.endpoint, arguments.endpoint)
    if endpoint and endpoint not in NAMES.values():
        known = ", ".join(NAMES)
        raise ConfigurationError(f"--endpoint {arguments.endpoint}: it is one of {known}, or the path of one.")
    if arguments.system and endpoint not in {"", CHAT, RESPONSES}:
        raise ConfigurationError(f"--system has no place in {endpoint}: put it into the prompts.")
    if arguments.max_tokens and endpoint == EMBEDDINGS:
        raise ConfigurationError(f"--max-tokens has no place in {endpoint}.")
    body = dict(_param(text) for text in arguments.param)
    if arguments.temperature is not None:
        body["temperature"] = arguments.temperature
    wishes = Wishes(endpoint, arguments.system, arguments.max_tokens, body, arguments.plain)
    return Submission(named[0], arguments.model, wishes, _batch(arguments), arguments.idempotency_key)


def _batch(arguments: argparse.Namespace) -> dict[str, Any]:
    batch: dict[str, Any] = {"completion_window": arguments.window}
    if arguments.metadata:
        batch["metadata"] = dict(_pair("--metadata", text) for text in arguments.metadata)
    if arguments.start_after:
        batch["start_after"] = _moment(arguments.start_after)
    if arguments.start_window:
        batch["start_window"] = _hours(arguments.start_window)
    return batch


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigurationError(f"{flag} {text}: it is NAME=VALUE.")
    return name, value


def _param(text: str) -> tuple[str, Any]:
    name, value = _pair("--param", text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _moment(text: str) -> int:
    """Unix seconds. Raises ConfigurationError."""
    if match := _AFTER.fullmatch(text):
        return math.ceil(time.time()) + int(match[1]) * _UNIT_S[match[2]]
    if text.isascii() and text.isdecimal():
        return int(text)
    try:
        return int(datetime.fromisoformat(text).timestamp())  # without a zone: this machine's
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"--start-after {text}: it is +2h, 2026-01-31T22:00 or Unix seconds.") from error


def _hours(text: str) -> dict[str, str]:
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"--start-window {text}: it is FROM-TO, as 22:00-06:00 or 22:00-06:00,Europe/Berlin.")
    return {"from": match[1], "to": match[2], **({"timezone": match[3]} if match[3] else {})}

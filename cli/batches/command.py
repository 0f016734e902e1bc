"""`penstock batch`: runs a file of prompts as a batch, and looks after batches."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from rich.table import Table

from cli.batches.board import Board, open_board
from cli.batches.ending import summary, verdict
from cli.batches.flags import COMMANDS, command_parser, run_parser, submission_of, where_of
from cli.batches.results import Results, check_target, clean, complete, opened
from cli.batches.submit import FaultyInputError, submit
from cli.batches.watching import Watch, ended
from cli.client import Client, ClientSettings
from cli.remote import guarded, moment, wide
from shared.errors import ConfigurationError, RequestError
from shared.settings import read_settings

_DETACHED = 130
"""Exit status of Ctrl-C."""
_STOPPED = 143
"""That of SIGTERM."""
_NOBODY_READS = 141
"""As a shell shows a program that SIGPIPE has ended."""
_FAULTY = 2
_PAGE = 100
_MOST_LISTED = 10_000


def main(argv: list[str]) -> int:
    """Runs one command. Returns the exit status."""
    if not argv:
        run_parser().print_help()
        return 2
    named = argv[0] in COMMANDS
    arguments = (command_parser(argv[0]) if named else run_parser()).parse_args(argv[1:] if named else argv)
    program = f"penstock batch {argv[0]}" if named else "penstock batch"

    signal.signal(signal.SIGTERM, _stop)

    def run() -> int:
        settings = read_settings(ClientSettings, where_of(arguments), program)
        session = _Session(arguments, settings)
        try:
            return _RUNS[argv[0] if named else "run"](session)
        except FaultyInputError as error:
            session.board.close()
            return session.faulty(error)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
            return _NOBODY_READS
        except OSError as error:
            msg = f"{error.filename or 'a file'}: {error.strerror or error}"
            raise RequestError(500, "io_error", msg) from error
        except KeyboardInterrupt as interrupt:
            session.board.close()
            sys.stderr.write(session.farewell)
            return _STOPPED if isinstance(interrupt, _StoppedError) else _DETACHED
        finally:
            session.board.close()
            session.client.close()

    return guarded(program, run)


class _StoppedError(KeyboardInterrupt):
    """SIGTERM: the same as Ctrl-C, but for the exit status."""


def _stop(*_: object) -> None:
    raise _StoppedError


class _Session:
    """One run of a command: its client, its board, and what is told when it is interrupted."""

    def __init__(self, arguments: argparse.Namespace, settings: ClientSettings) -> None:
        self.arguments = arguments
        self.board: Board = open_board(as_json=False, quiet=True)
        self.client = Client(settings, self.say)
        self.farewell = "\nInterrupted.\n"

    def say(self, sentence: str) -> None:
        """What the user should know, on the board that is open then."""
        self.board.say(sentence)

    def draw(self) -> None:
        """From here on, progress is shown. A program that reads JSON gets each state while it watches."""
        arguments = self.arguments
        stream = arguments.json and not arguments.output
        self.board = open_board(as_json=stream, quiet=arguments.quiet or (arguments.json and not stream))

    def attach(self, batch: str) -> None:
        """What Ctrl-C says from here on."""
        again = ["penstock", "batch", "watch", batch, *self._repeated("url", "output")]
        again += [word for name in ("format", "order") if self._changed(name) for word in self._repeated(name)]
        again += ["--clean"] if self.arguments.clean else []
        stop = ["penstock", "batch", "cancel", batch, *self._repeated("url")]
        self.farewell = (
            f"\nDetached; the batch goes on. To come back to it:\n  {shlex.join(again)}\n"
            f"To end it:\n  {shlex.join(stop)}\n"
        )

    def _repeated(self, *names: str) -> list[str]:
        given = {name: getattr(self.arguments, name) for name in names}
        return [word for name, value in given.items() if value for word in (f"--{name}", value)]

    def _changed(self, name: str) -> bool:
        return bool(getattr(self.arguments, name) != {"format": "openai", "order": "input"}[name])

    def faulty(self, error: FaultyInputError) -> int:
        """Tells of an input of which nothing was sent."""
        if self.arguments.json:
            _print({"error": str(error), "faults": [{"line": x.line, "message": x.message} for x in error.faults]})
        else:
            sys.stderr.write(f"{error.shown()}\n")
        return _FAULTY


def _run(session: _Session) -> int:
    """Submits, watches, writes."""
    arguments = session.arguments
    if not arguments.output:
        raise ConfigurationError("--output is needed: a file for the results, or - for standard output.")
    _check_output(arguments)
    session.farewell = "\nInterrupted; no batch was made.\n"
    asked = submission_of(arguments)
    session.draw()
    session.farewell = "\nInterrupted. If a batch was made, `penstock batch list` shows it.\n"
    made = submit(session.client, asked, session.board.say)
    session.attach(made["id"])
    session.board.say(f"Submitted as {made['id']}. Ctrl-C detaches; the batch goes on.")
    return _watch_to_the_end(session, made["id"])


def _watch(session: _Session) -> int:
    _check_output(session.arguments)
    session.draw()
    session.attach(session.arguments.id)
    return _watch_to_the_end(session, session.arguments.id)


def _check_output(arguments: argparse.Namespace) -> None:
    """Raises ConfigurationError."""
    if arguments.clean and not arguments.output:
        raise ConfigurationError("--clean deletes the results: say with --output where they are kept.")
    if arguments.json and arguments.output == "-":
        raise ConfigurationError("--json and --output - would both write to standard output.")
    if arguments.output:
        check_target(arguments.output)


def _watch_to_the_end(session: _Session, batch: str) -> int:
    arguments, found = session.arguments, {}
    for found in Watch(session.client, batch):
        session.board.show(found)
    session.board.close()
    results = _results_of(session)
    if arguments.output and (found["output_file_id"] or found["error_file_id"]):
        with opened(arguments.output) as target:
            results.write(found, target)
    return _finish(session, found, results)


def _results_of(session: _Session) -> Results:
    arguments = session.arguments
    return Results(session.client, arguments.format, as_done=arguments.order == "done")


def _finish(session: _Session, found: dict[str, Any], results: Results) -> int:
    """Says how it has ended. Returns the verdict."""
    arguments, say = session.arguments, session.board.say
    if arguments.json and arguments.output:
        _print(found)
    if not arguments.quiet:
        for sentence in [*summary(found), *results.written.failures]:
            say(sentence)
        hidden = results.written.failed - len(results.written.failures)
        if hidden > 0:
            say(f"… and {hidden} more that failed")
        if arguments.output and arguments.output != "-" and results.written.lines:
            say(f"{arguments.output}: {results.written.lines} lines")
    if arguments.clean and complete(found, results.written):
        clean(session.client, found, say)
    elif arguments.clean and results.written.lines:
        say(f"Not all results were written: the files of {found['id']} stay on the server.")
    return verdict(found)


def _submit(session: _Session) -> int:
    session.farewell = "\nInterrupted. If a batch was made, `penstock batch list` shows it.\n"
    made = submit(session.client, submission_of(session.arguments), session.board.say)
    if session.arguments.json:
        _print(made)
    else:
        print(made["id"])
        session.board.say(f"To follow it: penstock batch watch {made['id']}")
    return 0


def _status(session: _Session) -> int:
    found = session.client.json("GET", f"/v1/batches/{session.arguments.id}")
    if session.arguments.json:
        _print(found)
        return 0
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        if name not in {"object", "errors", "usage", "request_counts"} and value is not None:
            shown = moment(value * 1000) if name.endswith("_at") else value
            table.add_row(name, shown if isinstance(shown, str) else msgspec.json.encode(shown).decode())
    wide().print(table)
    for line in summary(found)[1 if not found["request_counts"]["total"] else 0 :]:
        print(line)
    return 0


def _results(session: _Session) -> int:
    arguments = session.arguments
    arguments.output = arguments.output or "-"
    _check_output(arguments)
    found = session.client.json("GET", f"/v1/batches/{arguments.id}")
    results = _results_of(session)
    if not ended(found) and arguments.follow:
        session.attach(arguments.id)
        with opened(arguments.output, whole=False) as target:
            found = results.follow(arguments.id, target)
        return _finish(session, found, results)
    with opened(arguments.output) as target:
        if ended(found):
            results.write(found, target)
        else:
            results.partial(arguments.id, target)
    if ended(found):
        return _finish(session, found, results)
    total = found["request_counts"]["total"]
    session.board.say(f"{arguments.id} is {found['status']}: {results.written.lines} of {total} rows so far.")
    return 0


def _cancel(session: _Session) -> int:
    found = session.client.json("POST", f"/v1/batches/{session.arguments.id}/cancel")
    if session.arguments.json:
        _print(found)
    else:
        print(f"{found['id']}: {found['status']}")
    return 0


def _list(session: _Session) -> int:
    arguments, found = session.arguments, list[dict[str, Any]]()
    after, more = arguments.after, True
    while more and len(found) < min(arguments.limit, _MOST_LISTED):
        query = {"limit": min(_PAGE, arguments.limit - len(found)), **({"after": after} if after else {})}
        page = session.client.json("GET", "/v1/batches", params=query)
        found += page["data"]
        after, more = page["last_id"], page["has_more"]
    if arguments.json:
        _print(found)
        return 0
    if not found:
        print("No batches.")
        return 0
    table = Table("id", "status", "rows", "done", "failed", "model", "created", "metadata", box=None)
    for batch in found:
        counts = batch["request_counts"]
        rows = [str(counts[name]) for name in ("total", "completed", "failed")]
        named = " ".join(f"{name}={value}" for name, value in (batch["metadata"] or {}).items())
        created = moment(batch["created_at"] * 1000)
        table.add_row(batch["id"], batch["status"], *rows, batch["model"] or "-", created, named)
    wide().print(table)
    return 0


def _print(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


_RUNS: dict[str, Callable[[_Session], int]] = {
    "run": _run,
    "submit": _submit,
    "status": _status,
    "watch": _watch,
    "results": _results,
    "cancel": _cancel,
    "list": _list,
}

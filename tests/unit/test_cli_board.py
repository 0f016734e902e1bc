"""What is shown, and how often."""

import io

import pytest
from rich.console import Console

from cli.board import LiveBoard, PlainBoard, State


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=40)


def test_a_plain_board_prints_a_line_for_each_change_and_none_without() -> None:
    console = Console(file=io.StringIO(), width=40)
    board = PlainBoard(console)
    for state, detail in (
        (State.STARTING, "loading the model"),
        (State.STARTING, "loading the model"),
        (State.READY, "takes work"),
        (State.READY, "takes work"),
    ):
        board.put("worker-0", state, detail)
        board.tick()
    assert console.file.getvalue() == "worker-0: loading the model\nworker-0: ready, takes work\n"


def test_a_plain_board_does_not_break_a_line_that_is_to_be_copied() -> None:
    console = Console(file=io.StringIO(), width=20)
    line = "curl -N http://127.0.0.1:8000/v1/chat/completions [x] -d '{}'"
    PlainBoard(console).say([line])
    assert console.file.getvalue() == line + "\n"


def test_a_live_board_draws_on_changes_and_on_ticks_only_while_something_starts(terminal: Console) -> None:
    board = LiveBoard(terminal, "title")
    board.put("a", State.STARTING, "starting")
    drawn = len(terminal.file.getvalue())
    board.put("a", State.STARTING, "starting")
    assert len(terminal.file.getvalue()) == drawn
    board.tick()
    assert len(terminal.file.getvalue()) > drawn
    board.put("a", State.READY, "up")
    drawn = len(terminal.file.getvalue())
    board.tick()
    board.put("a", State.READY, "up")
    board.say([])
    assert len(terminal.file.getvalue()) == drawn
    board.close()


def test_a_live_board_says_how_long_loading_takes(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("cli.board.time.monotonic", lambda: now_s[0])
    board = LiveBoard(terminal, "title")
    board.put("worker-0", State.STARTING, "starting")
    board.put("worker-0", State.STARTING, "loading the model")
    now_s[0] += 12
    board.tick()
    assert "loading the model, 12 s" in terminal.file.getvalue()
    board.put("worker-0", State.READY, "takes work")
    assert "takes work (ready after 12 s)" in terminal.file.getvalue()
    board.close()

"""states: the moves, and the scripts that make them."""

from __future__ import annotations

import re

import pytest

from shared.luascripts import load, script_names
from shared.states import MOVES, TERMINAL, State

_WRITTEN = re.compile(r"'HSET', KEYS\[\d+\], 'state', '(\w+)'|finish\(k, ARGV\[\d+\], '(\w+)'")
_OF_THE_CALLER = "finish(k, ARGV[1], ARGV[3]"


def states_written_by(name: str) -> set[str]:
    """Every state that a script writes, read from its text. `done` writes the one that it is given."""
    text = load(name).text
    written = {first or second for first, second in _WRITTEN.findall(text)}
    return written | (set(TERMINAL) if _OF_THE_CALLER in text else set())


def states_allowed_to(name: str) -> set[State]:
    return {target for moves in MOVES.values() for target in moves.get(name, ())}


@pytest.mark.parametrize("name", script_names())
def test_a_script_writes_exactly_the_states_that_moves_allows(name: str) -> None:
    allowed = {State.QUEUED} if name in {"admit", "redrive"} else states_allowed_to(name)
    assert states_written_by(name) == allowed


def test_every_move_belongs_to_a_script() -> None:
    assert {name for moves in MOVES.values() for name in moves} <= set(script_names())


def test_nothing_leaves_a_terminal_state() -> None:
    assert not TERMINAL & MOVES.keys()


def test_every_state_is_reached_and_every_open_state_can_be_left() -> None:
    reached = {State.QUEUED} | {target for moves in MOVES.values() for targets in moves.values() for target in targets}
    assert reached == set(State)
    assert MOVES.keys() == set(State) - TERMINAL


@pytest.mark.parametrize("name", script_names())
def test_a_script_opens_with_its_contract(name: str) -> None:
    contract = load(name).text.split(f"-- {name}:", 1)
    assert len(contract) == 2, "the first line names the script and its purpose"
    for word in ("-- KEYS", "ARGV", "-- Returns"):
        assert word in contract[1], f"the contract of {name} has no {word}"

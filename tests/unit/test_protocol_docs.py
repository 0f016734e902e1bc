"""docs/protocol.md and docs/glossary.md say what the code does."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import shared.errors
import shared.file_errors
import shared.http_errors
from api import problems
from api.refusals import FALLBACK_S
from shared.errors import RequestError
from shared.keys import GlobalKeys, Keys
from shared.lane_settings import FIELDS
from shared.lanes import QUEUES
from shared.luascripts import CHUNKS, load, script_names
from shared.states import MOVES, TERMINAL, State
from shared.wire import Frame, Meta

DOCS = Path(__file__).parent.parent.parent / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next one of its kind or higher."""
    level = re.search(rf"^(#+) {re.escape(title)}$", PROTOCOL, re.MULTILINE)
    assert level is not None, f"protocol.md has no section {title}"
    rest = PROTOCOL[level.end() :]
    following = re.search(rf"^#{{1,{len(level.group(1))}}} ", rest, re.MULTILINE)
    return rest[: following.start()] if following else rest


def rows(text: str) -> list[list[str]]:
    """The cells of the first table of a text, without its head."""
    lines = text.partition("\n|---")[2].splitlines()[1:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def spelled(keys: Keys | GlobalKeys) -> dict[str, str]:
    """Key names by attribute, with the placeholders of the document."""
    placeholder = {"queue": "<queue>", "ledger": "<queue>", "fair": "<lane>", "idempotency": "<hash>"}
    placeholder |= dict.fromkeys(("batch", "batch_rows", "batch_parts", "batch_secret"), "<id>")
    placeholder |= {"batches_of": "<tenant>", "batch_idempotency": "<hash>"}
    placeholder |= {"tokenizer": "<hash>", "file": "<id>", "tenant_files": "<hash>", "file_idempotency": "<hash>"}
    placeholder |= dict.fromkeys(("record", "body", "log", "channel", "response", "response_object"), "<rid>")
    placeholder |= dict.fromkeys(("lease", "dead", "run", "box", "control"), "<wid>")
    names = {}
    for name, member in inspect.getmembers(type(keys)):
        if isinstance(member, property):
            names[name] = getattr(keys, name)
        elif inspect.isfunction(member) and not name.startswith("_"):
            names[name] = getattr(keys, name)(placeholder[name])
    return names


def test_the_keys_table_is_keys_py() -> None:
    documented = {row[1].strip("`"): row[0].strip("`") for row in rows(section("Keys"))}
    spelling = {name: key.replace("{T.0}", "{T}") for name, key in spelled(Keys("T")).items()}
    everywhere = {f"GlobalKeys.{name}": key for name, key in spelled(GlobalKeys()).items()}
    assert documented == {**everywhere, **spelling}


def test_the_queues_are_named() -> None:
    for queue in QUEUES:
        assert f"`{queue.name}`" in section("Keys")


def test_the_scripts_know_every_field_of_the_record_table() -> None:
    lua = "\n".join(load(name).text for name in script_names())
    for row in rows(section("The record")):
        field = row[0].strip("`")
        assert f"'{field}'" in lua, f"no script knows the field {field}"


def test_the_settings_of_a_lane_are_the_ones_that_the_scripts_read() -> None:
    table = {row[0].strip("`"): row[2].split(", ") for row in rows(section("Lanes in the running system"))}
    assert sorted(table) == sorted(FIELDS)
    for name, readers in table.items():
        reading = {script for script in script_names() if f".{name}'" in load(script).text}
        assert set(readers) <= reading, f"{name} is read by {reading}"


def test_the_state_machine_is_moves() -> None:
    drawn = set(re.findall(r"^ +(\S+) --> (\S+): (\w+)$", section("States"), re.MULTILINE))
    moves = {
        (source.value, target.value, name)
        for source, by_script in MOVES.items()
        for name, targets in by_script.items()
        for target in targets
    }
    assert drawn == moves | {("[*]", "queued", "admit"), ("[*]", "queued", "redrive"), ("[*]", "running", "restore")}
    ends = set(re.findall(r"^ +(\S+) --> \[\*\]$", section("States"), re.MULTILINE))
    assert ends == {state.value for state in TERMINAL}


def test_the_scripts_table_is_the_folder() -> None:
    table = {row[0].strip("`"): row for row in rows(section("Scripts"))}
    assert sorted(table) == script_names()
    for chunk in CHUNKS:
        assert f"`{chunk}`" in section("Scripts")


@pytest.mark.parametrize("name", script_names())
def test_the_documented_answers_of_a_script_are_in_its_text(name: str) -> None:
    answers = next(row[2] for row in rows(section("Scripts")) if row[0] == f"`{name}`")
    text = load(name).text
    own = text[text.index(f"-- {name}:") :]
    returned = set(re.findall(r"(?:return |return \{|error_reply\(|return \{')'?([A-Z]{2,})'", own))
    assert returned == set(re.findall(r"\b([A-Z]{2,})\b", answers))


def test_the_frame_table_is_the_frame() -> None:
    table = rows(section("Bytes"))
    assert [row[1].strip("`") for row in table] == list(Frame.__struct_fields__)
    for field in Meta.__struct_fields__:
        assert f"`{field}`" in table[5][2]


ERRORS = (shared.errors, shared.file_errors, shared.http_errors)


def test_the_errors_table_is_errors_py() -> None:
    source = "".join(inspect.getsource(module) for module in ERRORS)
    built = {(int(status), code) for status, code in re.findall(r'RequestError\((\d{3}), "(\w+)"', source)}
    built.add((400, "invalid_request_error"))
    assert {(int(row[0]), row[1].strip("`")) for row in rows(section("Errors"))} == built


_NONE = "\N{EN DASH}"


def built_errors() -> list[RequestError]:
    """One of every kind that the modules of errors can build."""
    values = {"str": "x", "int": 3, "float": 3.0, "bool": False}
    found = []
    for name, build in (member for module in ERRORS for member in inspect.getmembers(module, inspect.isfunction)):
        parameters = inspect.signature(build).parameters.values()
        if not name.startswith("_"):
            wanted = [one for one in parameters if one.default is inspect.Parameter.empty]
            found.append(build(*(values[str(one.annotation)] for one in wanted)))
    assert all(isinstance(error, RequestError) for error in found)
    return found


def test_the_retry_headers_in_the_errors_table_are_what_is_sent() -> None:
    documented = {row[1].strip("`"): (row[3], row[4]) for row in rows(section("Errors"))}
    for error in built_errors():
        sent = problems.headers(error)
        both = {"Retry-After", "retry-after-ms"} & sent.keys()
        assert len(both) in {0, 2}, error.code
        assert documented[error.code] == ("yes" if both else _NONE, sent.get("x-should-retry", _NONE)), error.code


def test_the_fallbacks_of_retry_after_are_documented() -> None:
    table = {row[0].strip("`"): float(row[1].removesuffix(" s")) for row in rows(section("When to come again"))}
    assert table == FALLBACK_S


def test_every_end_leads_to_a_known_state_and_a_known_error() -> None:
    codes = {row[1].strip("`") for row in rows(section("Errors"))}
    for row in rows(section("How a stream can end")):
        state = re.match(r"`(\w+)`", row[1])
        assert state is None or State(state.group(1)) in TERMINAL
        named = re.match(r"`(\w+)`", row[3])
        assert named is None or named.group(1) in codes


def test_the_timers_that_name_a_constant_have_its_value() -> None:
    units = {"s": 1.0, "h": 3600.0, "": 1.0}
    checked = 0
    for what, value, where in rows(section("Timers")):
        named = re.fullmatch(r"`([\w/]+)\.py` `(\w+)`", where)
        if named is None:
            continue
        module = importlib.import_module(named.group(1).replace("/", "."))
        number = getattr(module, named.group(2)) / (1000 if named.group(2).endswith("_MS") else 1)
        said = re.match(r"([\d.]+)\s*([sh]?)", value)
        assert said is not None, what
        assert float(said.group(1)) * units[said.group(2)] == number, what
        checked += 1
    assert checked >= 9


def test_the_glossary_is_sorted_and_knows_the_words_of_the_house() -> None:
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", glossary, re.MULTILINE)
    assert words == sorted(words)
    house = {"request", "attempt", "lease", "fence", "frame", "log", "cursor", "lane", "pool", "shard", "replica"}
    house |= {"worker", "engine", "admit", "shed", "drain", "hand back", "reap", "dead letter", "terminal"}
    assert house <= set(words)

"""The entry point: which command does what."""

import os
import sys

import pytest

from cli import main as entry
from cli.plan import split_flags


class ReplacedError(Exception):
    """The process would have been replaced."""


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], dict[str, str]]]:
    seen: list[tuple[str, list[str], dict[str, str]]] = []

    def execve(path: str, argv: list[str], env: dict[str, str]) -> None:
        seen.append((path, argv, env))
        raise ReplacedError

    monkeypatch.setattr(os, "execve", execve)
    return seen


@pytest.mark.parametrize(("name", "module"), [("api", "api"), ("worker", "worker"), ("batch-worker", "batch")])
def test_a_process_of_ours_replaces_the_command_with_the_same_arguments(
    execs: list[tuple[str, list[str], dict[str, str]]], name: str, module: str
) -> None:
    with pytest.raises(ReplacedError):
        entry.main([name, "--port", "1", "--", "--help"])
    path, argv, _ = execs[0]
    assert path == sys.executable
    assert argv[-6:] == ["-m", module, "--port", "1", "--", "--help"]


def test_a_folder_of_the_users_cannot_shadow_a_package_of_ours(
    execs: list[tuple[str, list[str], dict[str, str]]],
) -> None:
    with pytest.raises(ReplacedError):
        entry.main(["api"])
    assert "-P" in execs[0][1]


def test_an_unknown_command_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["serve"]) == 2
    assert capsys.readouterr().err == (
        "penstock: there is no command 'serve'. `penstock --help` lists those there are.\n"
    )


def test_help_names_every_command_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("up", "api", "worker", "batch-worker", "batch", "version"):
        assert f"  penstock {name}" in shown


def test_no_command_shows_the_help_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == 2
    assert "penstock up" in capsys.readouterr().out


def test_version_names_penstock_and_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["version"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("penstock ")
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in shown


def test_flags_after_two_dashes_are_the_engines() -> None:
    assert split_flags(["--port", "1", "--", "--seed", "2", "--", "x"]) == (["--port", "1"], ["--seed", "2", "--", "x"])
    assert split_flags(["--port", "1"]) == (["--port", "1"], [])

"""What is looked at before anything starts."""

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import checks
from cli.folder import DataFolder
from cli.settings import DEMO_MODEL, UpSettings
from shared.errors import ConfigurationError


def refusal(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        function(*arguments)
    return str(caught.value)


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        message = refusal(checks.check_ports, "127.0.0.1", [port])
    assert f"127.0.0.1:{port}" in message
    assert "another --port" in message


def test_free_ports_pass() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    checks.check_ports("127.0.0.1", [port])


def test_ports_past_the_last_one_are_refused() -> None:
    assert "65535" in refusal(checks.check_ports, "127.0.0.1", [65536])


def test_an_address_that_is_not_of_this_machine_is_refused() -> None:
    assert "192.0.2.1" in refusal(checks.check_ports, "192.0.2.1", [8000])


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_model_folder_that_is_missing_is_named(model: str) -> None:
    assert model in refusal(checks.check_model, model)


def test_a_missing_demo_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "DEMO_MODEL", tmp_path / "demo")
    assert "make demo-model" in refusal(checks.check_model, str(tmp_path / "demo"))
    assert DEMO_MODEL.parts[-2:] == ("models", "demo")


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    assert "config.json" in refusal(checks.check_model, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    checks.check_model(str(tmp_path))


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "gpt2"])
def test_what_may_be_a_hugging_face_id_is_left_to_the_engine(model: str) -> None:
    checks.check_model(model)


def test_too_little_memory_says_how_much_there_is() -> None:
    assert "1.0 GB" in refusal(checks.check_memory, 1024**3)
    checks.check_memory(3 * 1024**3)
    checks.check_memory(None)


def test_the_memory_of_a_container_counts_and_its_page_cache_does_not(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    assert checks.available_memory_bytes(tmp_path / "meminfo", tmp_path) == 1_500_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.available_memory_bytes(tmp_path / "meminfo", tmp_path) == 8 * 1024**3
    assert checks.available_memory_bytes(tmp_path / "nothing", tmp_path) is None


def test_an_engine_that_is_not_installed_says_make_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "make setup" in refusal(checks.check_engine)


def test_more_gpus_for_one_model_than_there_are_is_refused() -> None:
    settings = UpSettings(tensor_parallel_size=4)
    assert "4 GPUs" in refusal(checks.check_gpus, settings, ["0", "1"])
    checks.check_gpus(settings, ["0", "1", "2", "3"])
    checks.check_gpus(settings, [])


def test_a_redis_that_does_not_answer_is_named_without_its_password() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        message = refusal(checks.check_redis, f"redis://:secret@127.0.0.1:{port}/0")
    assert f"127.0.0.1:{port}" in message
    assert "secret" not in message
    assert "unset REDIS_URL" in message


def test_an_address_that_is_none_is_refused() -> None:
    assert "http://x" in refusal(checks.check_redis, "http://x")


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ({"redis_version": "6.2.0"}, "Redis 6.2.0"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, "Valkey 9.1.2"),
        ({"redis_version": "10.0.1"}, "Redis 10.0.1"),
    ],
)
def test_a_server_that_is_new_enough_is_described(info: dict[str, str], name: str) -> None:
    assert checks.describe_redis(info) == name


def test_a_server_that_is_too_old_is_refused() -> None:
    assert "6.2 or newer" in refusal(checks.describe_redis, {"redis_version": "6.0.16"})


def test_a_second_holder_of_a_data_folder_is_told_who_has_it(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "d").taken():
        message = refusal(DataFolder(tmp_path / "d").taken().__enter__)
        assert f"process {os.getpid()}" in message
        assert "--data" in message
    with DataFolder(tmp_path / "d").taken():
        pass


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--data" in refusal(DataFolder(tmp_path / "file" / "d").taken().__enter__)


def test_the_log_of_an_earlier_run_is_kept_aside(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with folder.taken():
        folder.log("api-0").write_text("earlier")
        assert not folder.log("api-0").exists()
        assert (folder.logs / "api-0.log.old").read_text() == "earlier"

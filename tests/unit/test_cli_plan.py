"""What `penstock up` would start."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from cli import plan
from cli.folder import DataFolder
from cli.gpus import share, visible
from cli.invitation import invitation
from cli.offspring import Program
from cli.settings import DEMO_MODEL, UpSettings
from shared.errors import ConfigurationError
from shared.settings import read_settings

URL = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "PENSTOCK_REDIS_URL", "MODEL_NAME", "MODEL_PATH", "PENSTOCK_MODEL", "TP_SIZE"):
        monkeypatch.delenv(name, raising=False)


def settings(*argv: str) -> UpSettings:
    return read_settings(UpSettings, list(argv), "penstock up")


def worker(tmp_path: Path, *argv: str, index: int = 0, gpus: Iterable[str] = (), flags: Iterable[str] = ()) -> Program:
    return plan.worker(settings(*argv), index, URL, DataFolder(tmp_path), list(gpus), list(flags))


def test_the_demo_model_on_vllm_is_the_default(tmp_path: Path) -> None:
    argv = worker(tmp_path).argv
    assert argv[argv.index("--model") + 1] == str(DEMO_MODEL)
    assert argv[argv.index("--engine") + 1] == "vllm"
    assert "--" not in argv


def test_workers_may_write_bytecode_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in worker(tmp_path).env


def test_the_model_of_other_stacks_environment_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", "/models/llama")
    argv = worker(tmp_path).argv
    assert argv[argv.index("--model") + 1] == "/models/llama"
    assert "--" not in argv


def test_the_simulated_engine_is_given_no_model_unless_one_is_named(tmp_path: Path) -> None:
    assert "--model" not in worker(tmp_path, "--engine", "sim").argv
    assert "x" in worker(tmp_path, "--engine", "sim", "--model", "x").argv


def test_engine_flags_reach_every_worker_behind_two_dashes(tmp_path: Path) -> None:
    for index in (0, 1):
        argv = worker(tmp_path, "--engine", "sim", "--workers", "2", index=index, flags=["--itl-ms", "1"]).argv
        assert argv[-3:] == ["--", "--itl-ms", "1"]


def test_replica_i_listens_on_port_plus_i(tmp_path: Path) -> None:
    for index in (0, 1, 2):
        argv = plan.replica(settings("--api", "3", "--port", "9000"), index, URL, DataFolder(tmp_path)).argv
        assert argv[argv.index("--port") + 1] == str(9000 + index)


def test_the_address_of_redis_is_in_the_environment_and_in_no_command_line(tmp_path: Path) -> None:
    for program in (worker(tmp_path), plan.replica(settings(), 0, URL, DataFolder(tmp_path))):
        assert program.env["PENSTOCK_REDIS_URL"] == URL
        assert not any("secret" in part for part in program.argv)


def test_each_worker_gets_its_own_gpu_and_the_next_one_starts_again(tmp_path: Path) -> None:
    found = [worker(tmp_path, index=index, gpus="01").env.get("CUDA_VISIBLE_DEVICES") for index in range(3)]
    assert found == ["0", "1", "0"]


def test_a_single_gpu_is_left_to_every_worker() -> None:
    assert share(["0"], 1, 1) is None
    assert share([], 0, 1) is None


def test_a_tensor_parallel_group_gets_neighbouring_gpus() -> None:
    assert [share(list("0123"), worker_index, 2) for worker_index in range(3)] == ["0,1", "2,3", "0,1"]


def test_gpus_that_the_user_hides_are_not_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []


def test_a_wrong_setting_is_named_with_its_flag_and_its_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"--workers \(PENSTOCK_WORKERS\)"):
        settings("--workers", "0")


def test_the_invitation_is_a_command_that_a_shell_takes(tmp_path: Path) -> None:
    lines = invitation(settings("--host", "0.0.0.0"), "it's", tmp_path)
    start = next(index for index, line in enumerate(lines) if line.startswith("curl"))
    assert lines[start].endswith("http://127.0.0.1:8000/v1/chat/completions \\")
    assert "it'\\''s" in lines[start + 2]


def test_the_invitation_sends_a_key_where_keys_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEYS", "k")
    assert any("Authorization: Bearer $API_KEY" in line for line in invitation(settings(), "m", tmp_path))


def test_files_are_kept_below_the_data_folder_unless_somebody_says_where(tmp_path: Path) -> None:
    def told(*argv: str) -> str:
        return plan.replica(settings(*argv), 0, URL, DataFolder(tmp_path)).env["PENSTOCK_STORAGE_URL"]

    assert told() == str(tmp_path / "files")
    assert told("--storage-url", "s3://bucket/x") == "s3://bucket/x"

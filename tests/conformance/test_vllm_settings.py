"""What the vLLM engine says about settings that cannot work, most of it before vLLM is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from worker.__main__ import load_engine
from worker.engines.vllm_log import ErrorLog
from worker.settings import WorkerSettings

MEDIA = ("VLLM_MEDIA_URL_ALLOW_REDIRECTS",)
pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "penstock_name": "nice-name"}')
    return folder


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine gives the environment defaults; they must not outlive a test."""
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", *MEDIA):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def refusal(model: str, *flags: str) -> str:
    """The message with which these settings are refused."""
    with pytest.raises(ConfigurationError) as caught:
        load_engine(WorkerSettings(engine="vllm", model=model), list(flags))
    return str(caught.value)


def test_no_model_is_refused_and_says_how_to_name_one() -> None:
    assert "--model" in refusal("")


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "tests/no-such-folder"])
def test_a_folder_that_is_not_there_is_refused(path: str) -> None:
    assert path in refusal(path)
    assert path in refusal("", "--model", path)
    assert path in refusal("", f"--model={path}")


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--api-key", "PENSTOCK_API_KEYS"),
        ("--api_key", "PENSTOCK_API_KEYS"),
        ("--port", "penstock api"),
        ("--host", "penstock api"),
        ("--uvicorn-log-level", "penstock api"),
        ("--ssl-keyfile", "penstock api"),
    ],
)
def test_flags_of_the_http_server_are_refused_and_the_message_says_where_they_go(
    model: Path, flag: str, instead: str
) -> None:
    assert instead in refusal(str(model), flag, "x")
    assert instead in refusal(str(model), f"{flag}=x")


def test_nothing_of_that_imports_vllm() -> None:
    code = (
        "import sys; from worker.__main__ import main; "
        "status = main(['--model', '/no/such/folder', '--ops-port', '0']); "
        "print(status, 'vllm' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert "/no/such/folder" in done.stderr


def test_the_last_error_in_the_log_is_what_the_operator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH", raising=False)
    log = ErrorLog([])
    try:
        log._errors.write_text(
            "EngineCore failed to start.\nTraceback (most recent call last):\n"
            '  File "x.py", line 1, in f\n'
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
        )
        sentence = log.sentence("some/model", RuntimeError("Engine core initialization failed."))
    finally:
        log.close()
    assert "some/model" in sentence
    assert "Tried to allocate 2.00 GiB. Free memory, lower --gpu-memory-utilization" in sentence


def test_an_operators_own_logging_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH", raising=False)
    ErrorLog(["--log-level", "DEBUG"]).close()
    assert "VLLM_LOGGING_CONFIG_PATH" not in os.environ
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/theirs.json")
    ErrorLog([]).close()
    assert os.environ["VLLM_LOGGING_CONFIG_PATH"] == "/theirs.json"


def test_without_a_logged_error_the_raised_one_is_told() -> None:
    log = ErrorLog([])
    log.close()
    log.close()
    assert "ValueError: architectures ['X'] are not supported" in log.sentence(
        "m", ValueError("architectures ['X'] are not supported")
    )


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
class TestWithVllmsOwnParser:
    def test_an_unknown_flag_is_refused_with_vllms_message(self, model: Path) -> None:
        assert "--no-such-flag" in refusal(str(model), "--no-such-flag")

    def test_a_refused_flag_is_found_when_it_is_abbreviated(self, model: Path) -> None:
        assert "penstock api" in refusal(str(model), "--uvicorn-log", "error")

    def test_a_wrong_combination_is_refused(self, model: Path) -> None:
        assert "--tool-call-parser" in refusal(str(model), "--enable-auto-tool-choice")

    def test_help_prints_vllms_help_and_ends(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            load_engine(WorkerSettings(engine="vllm"), ["--help=max-num-seqs"])
        assert end.value.code == 0
        assert "--max-num-seqs" in capsys.readouterr().out

    def test_a_folder_is_served_under_its_nice_name_and_with_priorities(self, model: Path) -> None:
        args = load_engine(WorkerSettings(engine="vllm", model=str(model)), [])._args  # type: ignore[attr-defined]
        assert args.served_model_name == ["nice-name"]
        assert args.scheduling_policy == "priority"

    def test_a_folder_without_a_nice_name_is_served_under_its_own(self, model: Path) -> None:
        (model / "config.json").write_text("{}")
        args = load_engine(WorkerSettings(engine="vllm", model=str(model)), [])._args  # type: ignore[attr-defined]
        assert args.served_model_name == ["some-model"]

    def test_an_id_keeps_its_name_and_flags_win_over_settings(self) -> None:
        settings = WorkerSettings(engine="vllm", model="Qwen/Qwen3-0.6B", max_num_seqs=4)
        flags = ["--max-num-seqs", "7", "--scheduling-policy", "fcfs", "--served-model-name", "a", "b"]
        args = load_engine(settings, flags)._args  # type: ignore[attr-defined]
        assert (args.model, args.served_model_name) == ("Qwen/Qwen3-0.6B", ["a", "b"])
        assert (args.max_num_seqs, args.scheduling_policy) == (7, "fcfs")
        plain = load_engine(settings, [])._args  # type: ignore[attr-defined]
        assert (plain.served_model_name, plain.max_num_seqs) == (None, 4)

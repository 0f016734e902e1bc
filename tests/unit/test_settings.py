"""settings: which source wins, and what an error says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from api.settings import ApiSettings
from shared.errors import ConfigurationError
from shared.lanes import Lane
from shared.settings import Settings, read_settings
from worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, and an environment that says nothing about Penstock."""
    legacy = {name for cls in (ApiSettings, WorkerSettings) for names in cls.LEGACY_ENV.values() for name in names}
    for name in list(os.environ):
        if name.startswith("PENSTOCK_") or name in legacy:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*argv: str) -> ApiSettings:
    return read_settings(ApiSettings, list(argv), "penstock api")


def test_sources_win_in_the_documented_order(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    assert read().queue_max == 5_000
    monkeypatch.setenv("QUEUE_MAX", "1")
    assert read().queue_max == 1
    (bare / "secret").write_text("2\n")
    monkeypatch.setenv("PENSTOCK_QUEUE_MAX_FILE", str(bare / "secret"))
    assert read().queue_max == 2
    (bare / ".env").write_text("PENSTOCK_QUEUE_MAX=3\n")
    assert read().queue_max == 3
    monkeypatch.setenv("PENSTOCK_QUEUE_MAX", "4")
    assert read().queue_max == 4
    assert read("--queue-max", "5").queue_max == 5


@pytest.mark.parametrize("cls", [Settings, ApiSettings, WorkerSettings])
def test_every_legacy_name_reaches_its_setting(cls: type[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"gpu_memory_utilization": "0.5", "warmup": "false", "queue_mode": "reject"}
    for field, names in cls.LEGACY_ENV.items():
        assert field in cls.model_fields
        for name in names:
            with monkeypatch.context() as one:
                one.setenv(name, odd.get(field, "17"))
                settings = read_settings(cls, [], "penstock")
                assert getattr(settings, field) != cls.model_fields[field].default, name


def test_the_first_legacy_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_CAPACITY", "2")
    monkeypatch.setenv("QUEUE_MAX", "1")
    assert read().queue_max == 1


def test_an_empty_variable_hides_no_other_name(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    monkeypatch.setenv("PENSTOCK_OTLP_ENDPOINT", "")
    (bare / ".env").write_text("PENSTOCK_LOG_LEVEL=\n")
    assert (read().otlp_endpoint, read().log_level) == ("", "INFO")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert read().otlp_endpoint == "http://collector:4318"
    assert read("--otlp-endpoint", "").otlp_endpoint == "", "a flag says what it says"


def test_a_secret_comes_from_its_file_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    (bare / "keys").write_text("sk-one, sk-two\n")
    monkeypatch.setenv("PENSTOCK_API_KEYS_FILE", str(bare / "keys"))
    settings = read()
    assert settings.keys == ("sk-one", "sk-two")
    assert "sk-one" not in repr(settings)


def test_a_file_that_cannot_be_read_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEYS_FILE", str(bare / "missing"))
    with pytest.raises(ConfigurationError, match=r"PENSTOCK_API_KEYS_FILE: cannot read .*missing: No such file"):
        read()


def test_an_error_is_one_line_per_fault_and_names_flag_and_variable() -> None:
    with pytest.raises(ConfigurationError) as refused:
        read("--queue-max", "0", "--port", "high")
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("--port (PENSTOCK_PORT): ")
    assert lines[1].startswith("--queue-max (PENSTOCK_QUEUE_MAX): ")
    assert all(re.search(r"\): [A-Z].* ", line) for line in lines)


@pytest.mark.parametrize("prefix", ["", "a b", "x{y}", "a:b", "p" * 33])
def test_a_prefix_that_would_break_the_hash_tag_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--prefix \(PENSTOCK_PREFIX\)"):
        read(f"--prefix={prefix}")


def test_a_setting_by_lane_has_a_value_for_all_and_others_for_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read().queue_timeouts_s == dict.fromkeys(Lane, 600.0)
    assert read("--queue-timeout-s", "5").queue_timeouts_s == dict.fromkeys(Lane, 5.0)
    named = read("--queue-timeout-s", " batch=86400 , Interactive = 2.5", "--queue-mode", "queue,interactive=reject")
    assert named.queue_timeouts_s == {Lane.INTERACTIVE: 2.5, Lane.STANDARD: 600, Lane.BATCH: 86_400}
    assert named.queue_modes == {Lane.INTERACTIVE: "reject", Lane.STANDARD: "queue", Lane.BATCH: "queue"}
    monkeypatch.setenv("QUEUE_MODE", "reject")
    monkeypatch.setenv("REQUEST_TIMEOUT_S", "60,batch=90000")
    assert read().queue_modes == dict.fromkeys(Lane, "reject")
    assert read().request_timeouts_s == {Lane.INTERACTIVE: 60, Lane.STANDARD: 60, Lane.BATCH: 90_000}


@pytest.mark.parametrize(
    ("flag", "text", "says"),
    [
        ("--queue-timeout-s", "0", "seconds above 0, not '0'"),
        ("--queue-timeout-s", "soon", "seconds above 0, not 'soon'"),
        ("--queue-timeout-s", "nan", "seconds above 0, not 'nan'"),
        ("--queue-timeout-s", "5,slow=3", "'slow' is no lane; there are interactive, standard, batch"),
        ("--request-timeout-s", "batch=-1", "seconds above 0, not '-1'"),
        ("--queue-mode", "batch=drop", "queue or reject, not 'drop'"),
        ("--queue-timeout-s", "5,batch=3,Batch=4", "two values for batch"),
        ("--queue-timeout-s", "5,6", "two values for all lanes"),
        ("--max-lane", "retry", "interactive"),
        ("--scale-max", "0", "greater than or equal to 1"),
    ],
)
def test_a_lane_or_a_value_that_does_not_exist_is_refused_at_start(flag: str, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        read(flag, text)


def test_settings_do_not_change_after_start() -> None:
    settings = read()
    with pytest.raises(ValidationError):
        settings.queue_max = 1  # type: ignore[misc]


def test_a_variable_of_another_process_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_MAX_ACTIVE", "3")
    assert read().queue_max == 5_000


def test_the_most_workers_are_not_fewer_than_the_least() -> None:
    with pytest.raises(ConfigurationError, match="at least scale_min, which is 5"):
        read("--scale-min", "5", "--scale-max", "4")
    assert read("--scale-min", "4", "--scale-max", "4").scale_targets.most == 4

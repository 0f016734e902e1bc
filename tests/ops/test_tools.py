"""`make smoke`, `make loadtest`, `make status` and the images' health check on a Penstock that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, free_port, running_stack

ROOT = Path(__file__).resolve().parents[2]
KEY = "pk-of-this-test"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as made:
        made.api(ready=False, env={"PENSTOCK_API_KEYS": KEY})
        made.worker()
        yield made


def tool(*arguments: str, key: str = KEY, **env: str) -> subprocess.CompletedProcess[str]:
    """One of the tools, as Make calls it."""
    environment = {**os.environ, "PENSTOCK_API_KEY": key, **env}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=90)


def test_smoke_passes_on_a_server_that_serves(stack: Stack) -> None:
    done = tool("-m", "scripts.smoke", "--url", stack.apis[0].url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ok ") == 8
    assert "refuses     401" in done.stdout


def test_smoke_fails_with_the_wrong_key_and_says_where(stack: Stack) -> None:
    done = tool("-m", "scripts.smoke", "--url", stack.apis[0].url, key="wrong")
    assert done.returncode == 1
    assert "FAILED  models" in done.stdout
    assert "invalid_api_key" in done.stdout


def test_smoke_fails_where_nothing_runs() -> None:
    done = tool("-m", "scripts.smoke", "--url", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "  ok " not in done.stdout.replace("skipped", "")


def test_the_load_test_reports_what_it_measured(stack: Stack, tmp_path: Path) -> None:
    flags = ["--concurrency", "4", "--duration-s", "2", "--tokens", "20", "--out", str(tmp_path)]
    done = tool("-m", "scripts.loadtest", "--url", stack.apis[0].url, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    (machine,) = tmp_path.glob("loadtest-*.json")
    every = json.loads(machine.read_text())["kinds"]["all"]
    assert every["requests"] >= 4
    assert every["errors"] == {}
    assert 0.005 < every["itl_s"]["p50"] < 0.1, "the simulated engine says a token every 10 ms"
    assert every["ttft_s"]["p50"] < every["latency_s"]["p50"]


def test_the_load_test_counts_what_is_refused(stack: Stack, tmp_path: Path) -> None:
    flags = ["--rate", "20", "--duration-s", "1", "--model", "nobodys", "--out", str(tmp_path)]
    done = tool("-m", "scripts.loadtest", "--url", stack.apis[0].url, *flags)
    assert done.returncode == 1
    (machine,) = tmp_path.glob("loadtest-*.json")
    assert "404 model_not_found" in json.loads(machine.read_text())["kinds"]["all"]["errors"]


def test_the_images_health_check_follows_the_status(stack: Stack) -> None:
    check = str(ROOT / "docker" / "healthcheck.py")
    url = stack.apis[0].url
    assert tool("-I", check, PENSTOCK_HEALTH_URL=f"{url}/livez").returncode == 0
    missing = tool("-I", check, PENSTOCK_HEALTH_URL=f"{url}/nothing-here")
    assert missing.returncode == 1
    assert "404" in missing.stderr
    assert tool("-I", check, PENSTOCK_HEALTH_URL=f"http://127.0.0.1:{free_port()}/livez").returncode == 1


def test_status_says_what_runs_without_docker_as_well() -> None:
    done = tool("-m", "scripts.stack", "status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("make up:")

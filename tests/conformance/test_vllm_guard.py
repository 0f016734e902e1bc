"""A worker's engine processes die with it. Needs no vLLM: the guard does not know what it guards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.engines import vllm_guard

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="the guard looks into /proc")

_WORKER = """
import os, subprocess, sys
from worker.engines.vllm_guard import Guard
guard = Guard()
with guard.marking():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
after = subprocess.Popen(["sleep", "61"], start_new_session=True)
print(child.pid, after.pid, flush=True)
if sys.argv[1] == "close":
    guard.close()
    guard.close()
    print("closed", flush=True)
sys.stdin.read()
"""


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


def _wait_until_dead(pid: int, deadline_s: float = 5) -> None:
    end_s = time.monotonic() + deadline_s
    while _alive(pid):
        assert time.monotonic() < end_s, f"process {pid} still runs"
        time.sleep(0.01)


def _start(how: str) -> tuple[subprocess.Popen[str], int, int]:
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    child, after = map(int, worker.stdout.readline().split())
    return worker, child, after


def test_what_a_killed_worker_had_started_for_its_engine_dies_at_once_and_nothing_else() -> None:
    worker, child, after = _start("run")
    try:
        assert _alive(child)
        worker.kill()
        _wait_until_dead(child)
        assert _alive(after), "only the engine's processes are the guard's"
    finally:
        os.kill(after, signal.SIGKILL)
        worker.communicate(timeout=5)


def test_closing_the_guard_kills_what_is_left_and_may_be_done_twice() -> None:
    worker, child, after = _start("close")
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "closed\n"
        _wait_until_dead(child)
    finally:
        os.kill(after, signal.SIGKILL)
        worker.communicate(timeout=5)


def test_the_mark_is_gone_from_the_environment_and_interrupts_come_through_again() -> None:
    guard = vllm_guard.Guard()
    try:
        with guard.marking():
            assert vllm_guard.MARK in os.environ
            assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
        assert vllm_guard.MARK not in os.environ
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        guard.close()

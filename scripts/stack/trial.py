"""`make compose-test`: the stack on a real Docker engine, and faults made in it.

It works on a copy of this folder, with containers, secrets and volumes of its own (project penstock-trial), and removes
them at the end. Images that can neither be found nor pulled are made by base_images.sh.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.stack.engine import has_image, need_docker
from scripts.stack.places import ROOT, StackError
from scripts.stack.trial_faults import Faults
from scripts.stack.trial_scene import Scene

PROJECT = "penstock-trial"
_BASES = {"debian": "debian:bookworm-slim", "nginx": "nginx:1.30-alpine", "redis": "redis:7.2-alpine"}
_PULL_S = 300


def trial(options: argparse.Namespace) -> None:
    """Everything, and the figures on standard output. Raises StackError at the first thing that is wrong."""
    need_docker()
    profiles = options.profiles or "cpu"
    folder = Path(tempfile.mkdtemp(prefix="penstock-trial-")) / "penstock"
    figures: dict[str, object] = {}

    def step(name: str, act: Callable[[], object]) -> None:
        print(f"trial: {name} …", flush=True)
        began_s = time.monotonic()
        saw = act()
        figures[name] = {"took_s": round(time.monotonic() - began_s, 1), **({"saw": saw} if saw is not None else {})}
        print(f"trial: {name}: {saw if saw is not None else 'done'} ({time.monotonic() - began_s:.0f} s)", flush=True)

    scene = Scene(folder, PROJECT, profiles)
    faults = Faults(scene)
    try:
        step("a copy of this folder", lambda: _copy(folder))
        step("base images", _bases)
        step("images", scene.build)
        step("without secrets it does not start", scene.refuses_to_start)
        step("stack-up", lambda: scene.up(_free_port(), replicas=3, workers=2))
        step("secrets are the owner's alone", scene.secrets_are_private)
        step("not root, root read-only", scene.is_locked)
        step("make smoke", scene.smoke)
        step("nginx balances three replicas", lambda: asyncio.run(faults.balance()))
        step("a replica's container dies mid-stream", lambda: asyncio.run(faults.replica_dies()))
        step("a worker's container dies mid-stream", lambda: asyncio.run(faults.worker_dies()))
        step("memory in use", scene.memory)
        step("stack-down", scene.down)
    finally:
        if not options.keep:
            scene.clear()
            shutil.rmtree(folder.parent, ignore_errors=True)
    print(json.dumps(figures, indent=2))


def _copy(folder: Path) -> str:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return f"{len(names)} files"


def _bases() -> str:
    missing = [name for name, tag in _BASES.items() if not has_image(tag) and not _pull(tag)]
    if missing:
        done = subprocess.run([str(ROOT / "scripts/stack/base_images.sh"), *missing], check=False)
        if done.returncode:
            msg = f"{', '.join(missing)} can neither be pulled nor made here; see above"
            raise StackError(msg)
    return "made here: " + ", ".join(missing) if missing else "were there, or pulled"


def _pull(tag: str) -> bool:
    try:
        done = subprocess.run(["docker", "pull", "--quiet", tag], capture_output=True, check=False, timeout=_PULL_S)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

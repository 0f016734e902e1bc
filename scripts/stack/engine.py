"""Docker and compose on this machine: `docker compose` (v2) where it is, else `docker-compose` 1.29."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from typing import Any

from scripts.stack.places import COMPOSE, StackError


@functools.cache
def compose_command() -> tuple[str, ...]:
    """How compose is called here. Raises StackError."""
    if shutil.which("docker") and _works("docker", "compose", "version"):
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    msg = "Docker Compose is not installed: neither `docker compose` nor `docker-compose` works here."
    raise StackError(msg)


def need_docker() -> None:
    """Raises StackError unless a Docker engine answers."""
    if not shutil.which("docker"):
        msg = "Docker is not installed. `make up` needs none."
        raise StackError(msg)
    if not _works("docker", "info"):
        msg = "No Docker engine answers. Is it running, and may you use it (group docker)?"
        raise StackError(msg)


def compose(*arguments: str, may_fail: bool = False) -> int:
    """Runs compose in compose/, to the terminal. Returns its status. Raises StackError unless it may fail."""
    command = [*compose_command(), *arguments]
    status = subprocess.run(command, cwd=COMPOSE, check=False).returncode
    if status and not may_fail:
        msg = f"`{' '.join(command)}` in compose/ ended with {status}; what it said is above."
        raise StackError(msg)
    return status


def asked(*command: str) -> str:
    """What a command says; an empty text when it fails."""
    done = subprocess.run(command, cwd=COMPOSE, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def containers(project: str) -> list[dict[str, Any]]:
    """The project's containers: Names, State, Status, as `docker ps` says."""
    wanted = f"label=com.docker.compose.project={project}"
    lines = asked("docker", "ps", "--all", "--filter", wanted, "--format", "{{json .}}").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda one: str(one["Names"]))


def has_image(tag: str) -> bool:
    """Whether an image with this tag is here."""
    return _works("docker", "image", "inspect", tag)


def _works(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0

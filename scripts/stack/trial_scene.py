"""The stack under trial: its copy of the folder, its containers, and what is looked at inside them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts.loadtest.target import Target
from scripts.stack import dotenv
from scripts.stack.engine import asked, compose_command, containers
from scripts.stack.places import StackError

_METRICS = "import sys,urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1]).read().decode())"
_KILL = """
import os, signal
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in (1, os.getpid()):
        os.kill(int(name), signal.SIGKILL)
"""
_READY_S = 600.0
_ROOT = "0"


class Scene:
    """One stack in a folder of its own."""

    def __init__(self, folder: Path, project: str, profiles: str) -> None:
        """`profiles`: as `make stack-up` takes them; the first is the one of the workers, cpu or sim."""
        self.folder = folder
        self.project = project
        self.profiles = profiles
        self.profile = profiles.split(",", maxsplit=1)[0]
        self._dotenv = folder / "compose" / ".env"

    @property
    def worker(self) -> str:
        """The service of the workers."""
        return f"worker-{self.profile}"

    @property
    def target(self) -> Target:
        """nginx, with a key."""
        known = dotenv.read(self._dotenv)
        return Target("127.0.0.1", int(known["HTTP_PORT"]), None, known["PENSTOCK_API_KEYS"].split(",")[0])

    def build(self) -> dict[str, str]:
        """Builds the images. Returns their sizes."""
        self._make("build", "--profiles", self.profiles)
        tags = ["penstock-api:local", *(["penstock-worker:cpu"] if self.profile == "cpu" else [])]
        sizes = {tag: int(asked("docker", "image", "inspect", "--format", "{{.Size}}", tag)) for tag in tags}
        return {tag: f"{size / 1e6:.0f} MB" for tag, size in sizes.items()}

    def refuses_to_start(self) -> str:
        """Compose without compose/.env says which secret is missing."""
        (self.folder / "compose" / "settings.env").touch()
        done = subprocess.run(
            [*compose_command(), "config"], cwd=self.folder / "compose", capture_output=True, text=True, check=False
        )
        _check(done.returncode != 0 and "make stack-up" in done.stderr, f"it would start: {done.stdout[-300:]}")
        return "refused"

    def up(self, port: int, *, replicas: int, workers: int) -> str:
        """`make stack-up`. Returns what it serves on."""
        chosen = {"COMPOSE_PROJECT_NAME": self.project, "HTTP_PORT": str(port)}
        dotenv.put(self._dotenv, chosen)
        self._make(
            "up", "--profiles", self.profiles, "--replicas", str(replicas), "--workers", str(workers), "--wait-s", "600"
        )
        self.until(lambda: len(self._healthy(self.worker)) == workers, "all workers")
        return f"{len(self.names('api'))} replicas, {workers} workers"

    def secrets_are_private(self) -> str:
        """compose/.env is 0600, has every secret, and a second start keeps them."""
        mode = self._dotenv.stat().st_mode & 0o777
        known = dotenv.read(self._dotenv)
        _check(mode == 0o600, f"compose/.env is {mode:o}")
        _check(all(len(known[name]) >= 64 for name in dotenv.SECRETS), "a secret is missing or short")
        _check(not dotenv.prepare(self._dotenv), "a second start makes new secrets")
        return "0600"

    def is_locked(self) -> dict[str, str]:
        """In each container: who it runs as; that its root cannot be written."""
        found = {}
        for name in self.names(""):
            user = asked("docker", "exec", name, "id", "-u").strip()
            told = subprocess.run(
                ["docker", "exec", name, "sh", "-c", "touch /etc/x || touch /opt/x"],
                capture_output=True,
                text=True,
                check=False,
            )
            _check(user not in {"", _ROOT}, f"{name} runs as root")
            _check(told.returncode != 0 and "Read-only" in told.stderr, f"{name} can write to its root: {told.stderr}")
            found[name] = user
        return found

    def smoke(self) -> str:
        """`make smoke` from outside, as its user calls it."""
        done = subprocess.run(
            [sys.executable, "-m", "scripts.smoke"], cwd=self.folder, capture_output=True, text=True, check=False
        )
        sys.stdout.write(done.stdout)
        _check(done.returncode == 0, done.stdout + done.stderr)
        return f"{done.stdout.count('  ok ')} checks"

    def memory(self) -> dict[str, str]:
        """What each container uses."""
        lines = asked(
            "docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *self.names("")
        ).splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def down(self) -> str:
        """`make stack-down ARGS=--volumes`. Nothing is left."""
        self._make("down", "--volumes")
        left = asked("docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        _check(not left, f"left: {left}")
        return "nothing left"

    def clear(self) -> None:
        """Removes whatever is left, however the trial ended."""
        if self._dotenv.exists():
            command = [*compose_command(), "down", "--volumes", "--remove-orphans", "--timeout", "5"]
            subprocess.run(command, cwd=self.folder / "compose", capture_output=True, check=False)

    def names(self, service: str) -> list[str]:
        """The containers of a service; of all for an empty name."""
        names = [str(one["Names"]) for one in containers(self.project) if one["State"] == "running"]
        return [name for name in names if re.search(rf"[_-]{service}[_-]\d+$", name) or not service]

    def metric(self, container: str, port: int, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, asked inside the container."""
        said = asked("docker", "exec", container, "python", "-c", _METRICS, f"http://127.0.0.1:{port}/metrics")
        lines = [line for line in said.splitlines() if re.match(rf"{name}(\{{| )", line)]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))

    def crash(self, container: str) -> None:
        """Kills the container's processes but its first, which ends then: as the kernel does when memory is out."""
        subprocess.run(["docker", "exec", container, "python", "-c", _KILL], capture_output=True, check=False)

    def until(self, check: Callable[[], bool], what: str, within_s: float = _READY_S) -> None:
        """Returns once it is so. Raises StackError."""
        end_s = time.monotonic() + within_s
        while not check():
            _check(time.monotonic() < end_s, f"{what} did not come within {within_s:.0f} s")
            time.sleep(0.5)

    def restarts(self, container: str) -> int:
        """How often Docker has started it again."""
        return int(asked("docker", "inspect", "--format", "{{.RestartCount}}", container) or 0)

    def _healthy(self, service: str) -> list[str]:
        state = ("docker", "inspect", "--format", "{{.State.Health.Status}}")
        return [name for name in self.names(service) if asked(*state, name).strip() == "healthy"]

    def _make(self, *arguments: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, "-m", "scripts.stack", *arguments], cwd=self.folder, check=False, env=env
        )
        _check(done.returncode == 0, f"`scripts.stack {' '.join(arguments)}` failed; what it said is above")


def _check(fine: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as assert
    if not fine:
        raise StackError(otherwise)

"""Services whose profile is not chosen any more. Compose leaves their containers running, `--remove-orphans` too."""

from __future__ import annotations

import re
import subprocess

from scripts.stack.engine import asked
from scripts.stack.places import COMPOSE, StackError

_SERVICE = re.compile(r"^  ([a-z][a-z0-9-]*):\n((?:^ {3,}.*\n|^\n|^  #.*\n)*)", re.MULTILINE)
_PROFILES = re.compile(r"^    profiles: \[([^]]+)\]$", re.MULTILINE)
_STOP_S = 150
"""As long as a worker may drain: its stop_grace_period in compose. Everything else ends sooner."""


def profiles() -> dict[str, set[str]]:
    """Service → its profiles, for those services of docker-compose.yml that have any."""
    text = (COMPOSE / "docker-compose.yml").read_text(encoding="utf-8")
    services = text.partition("\nservices:\n")[2].partition("\nvolumes:\n")[0]
    found = {}
    for name, body in _SERVICE.findall(services):
        if said := _PROFILES.search(body):
            found[name] = {one.strip() for one in said[1].split(",")}
    return found


def left_out(chosen: str) -> set[str]:
    """The services that these profiles, comma-separated, do not start."""
    wanted = set(chosen.split(","))
    return {name for name, its in profiles().items() if not its & wanted}


def every_profile() -> list[str]:
    """The flags of compose that name all profiles."""
    return [flag for name in sorted(set().union(*profiles().values())) for flag in ("--profile", name)]


def remove(project: str, chosen: str) -> None:
    """Stops and removes the project's containers of services that are left out. Raises StackError."""
    old = left_out(chosen)
    label = '{{.ID}} {{.Label "com.docker.compose.service"}}'
    wanted = f"label=com.docker.compose.project={project}"
    rows = [row.split() for row in asked("docker", "ps", "--all", "--filter", wanted, "--format", label).splitlines()]
    ids = {one: service for one, service, *_ in (row for row in rows if len(row) > 1) if service in old}
    if not ids:
        return
    print(f"stack: stopping what is no longer chosen: {', '.join(sorted(set(ids.values())))}")
    for command in (["docker", "stop", "-t", str(_STOP_S)], ["docker", "rm"]):
        if subprocess.run([*command, *ids], check=False, stdout=subprocess.DEVNULL).returncode:
            msg = f"`{' '.join(command)}` of {', '.join(sorted(set(ids.values())))} failed; what it said is above."
            raise StackError(msg)

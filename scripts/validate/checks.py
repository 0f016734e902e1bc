"""The checks: which files, which tool, which arguments."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.stack.dotenv import SECRETS
from scripts.validate.nginx_config import place
from scripts.validate.tools import ROOT, actionlint, compose, tool

_PORT = 18_080


class FoundError(Exception):
    """A validator found something. The message is what it said."""


@dataclass(frozen=True)
class Check:
    """One validator over some files. `run` raises FoundError or MissingToolError, and returns what it looked at."""

    name: str
    run: Callable[[], str]
    by_pip: bool = False
    """Whether `make setup` for development installs the tool, so that `make lint` runs it, too."""


def call(command: list[str], *, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
    """Runs a validator. Raises FoundError with what it said when it is not content."""
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    if done.returncode:
        raise FoundError((done.stdout + done.stderr).strip())


def files(*patterns: str) -> list[str]:
    """Tracked and new files of the repository that match, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    return sorted({name for name in listed if (ROOT / name).is_file()})


def shell() -> str:
    """shellcheck, every finding."""
    scripts = [*files("*.sh"), ".ci/run"]
    call([tool("shellcheck"), *scripts])
    return f"{len(scripts)} scripts"


def dockerfiles() -> str:
    """Hadolint."""
    found = files("*Dockerfile")
    call([tool("hadolint"), "--config", "docker/hadolint.yaml", *found])
    return f"{len(found)} Dockerfiles"


def yaml() -> str:
    """Yamllint."""
    found = files("*.yml", "*.yaml")
    call([tool("yamllint"), "--strict", "--config-file", ".yamllint.yaml", *found])
    return f"{len(found)} files"


def nginx() -> str:
    """`nginx -t` on both doors, and gixy, which looks for what is legal and unwise."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _certificate(folder / "tls")
        for server in ("server.conf", "tls.conf"):
            main = place(folder, [_PORT + 1, _PORT + 2], _PORT, server)
            call([tool("nginx"), "-t", "-p", made, "-c", str(main)])
            call([tool("gixy"), str(main)])
    return "plain and TLS"


def _certificate(folder: Path) -> None:
    folder.mkdir()
    command = [tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    call([*command, "-subj", "/CN=localhost", "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")])


def stack() -> str:
    """Compose's own reading of the stack, its schema, and that it does not start without secrets."""
    secrets = dict.fromkeys(SECRETS, "x")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "compose"
        folder.mkdir()
        (folder / "docker-compose.yml").write_bytes((ROOT / "compose" / "docker-compose.yml").read_bytes())
        (folder / "settings.env").touch()
        call([*compose(), "config", "--quiet"], env=secrets, cwd=folder)
        for name in ("REDIS_PASSWORD", "PENSTOCK_API_KEYS", "GRAFANA_ADMIN_PASSWORD"):
            try:
                call([*compose(), "config", "--quiet"], env={**secrets, name: ""}, cwd=folder)
            except FoundError:
                continue
            msg = f"compose would start without {name}"
            raise FoundError(msg)
    call([tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "compose/docker-compose.yml"])
    return "configuration, schema, no start without secrets"


def workflows() -> str:
    """actionlint, and the schema of workflows."""
    found = files(".github/workflows/*.yml")
    call([tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *found])
    call(actionlint(found))
    return f"{len(found)} workflows"


def prometheus() -> str:
    """promtool: configuration, rules, and the rules' own tests."""
    folder = ROOT / "monitoring" / "prometheus"
    if not folder.is_dir():
        return "nothing there"
    call([tool("promtool"), "check", "config", "--syntax-only", str(folder / "prometheus.yml")])
    rules, tests = files("monitoring/prometheus/rules/*.yml"), files("monitoring/prometheus/tests/*.yml")
    if rules:
        call([tool("promtool"), "check", "rules", *rules])
    for name in tests:
        call([tool("promtool"), "test", "rules", Path(name).name], cwd=(ROOT / name).parent)
    return f"{len(rules)} files of rules, {len(tests)} of tests"


def alertmanager() -> str:
    """Amtool on the example."""
    call([tool("amtool"), "check-config", "monitoring/alertmanager/alertmanager.yml"])
    return "1 example"


def dashboards() -> str:
    """Whether the dashboards are what their generator makes, and of Grafana's own types."""
    call([sys.executable, "-m", "scripts.dashboards", "--check"])
    call([sys.executable, "-m", "scripts.dashboards.typecheck"])
    return f"{len(files('monitoring/grafana/dashboards/*.json'))} dashboards"


CHECKS = (
    Check("shellcheck", shell, by_pip=True),
    Check("hadolint", dockerfiles, by_pip=True),
    Check("yamllint", yaml, by_pip=True),
    Check("nginx", nginx),
    Check("compose", stack),
    Check("workflows", workflows),
    Check("prometheus", prometheus),
    Check("alertmanager", alertmanager),
    Check("dashboards", dashboards),
)

"""A real Prometheus for tests: it scrapes each second, and its rules may run faster than in life."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.metric_names import RULES
from tests.support.stack import free_port

Sample = tuple[dict[str, str], float]
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_READY_S = 30.0
_LEAST_S = 3
"""A window must hold two scrapes, or nothing has a rate."""


class Prometheus:
    """A Prometheus that runs. Targets may come and go while it does."""

    def __init__(self, folder: Path, rules: Mapping[str, str]) -> None:
        """`rules`: file name → text. Raises nothing; skips the test where there is no Prometheus."""
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip("this machine has no prometheus (Debian: apt install prometheus)")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self._targets: dict[str, list[str]] = {}
        self._write_targets()
        for name, text in rules.items():
            (folder / name).write_text(text, encoding="utf-8")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"},
            "rule_files": [str(folder / name) for name in rules],
            "scrape_configs": [
                {
                    "job_name": "tests",
                    "file_sd_configs": [{"files": [str(folder / "targets.json")], "refresh_interval": "1s"}],
                    "relabel_configs": [
                        {"source_labels": ["role"], "target_label": "job"},
                        {"regex": "role", "action": "labeldrop"},
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=warn"]
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        give_up_at_s = time.monotonic() + _READY_S
        while time.monotonic() < give_up_at_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:  # noqa: S310 - loopback
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(self._log.read_text())

    def watch(self, job: str, *addresses: str) -> None:
        """From now on these addresses (`host:port`) are scraped as targets of that job."""
        self._targets.setdefault(job, []).extend(addresses)
        self._write_targets()

    def forget(self, address: str) -> None:
        """This address is scraped no more."""
        self._targets = {job: [each for each in known if each != address] for job, known in self._targets.items()}
        self._write_targets()

    def _write_targets(self) -> None:
        groups = [{"targets": known, "labels": {"role": job}} for job, known in self._targets.items()]
        new = self._folder / "targets.new"
        new.write_text(json.dumps(groups), encoding="utf-8")
        new.rename(self._folder / "targets.json")

    def query(self, expr: str) -> list[Sample]:
        """The answer now. Raises AssertionError when Prometheus refuses the query."""
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - loopback
                said: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {error.read().decode()}") from error
        if said["data"]["resultType"] == "scalar":
            return [({}, float(said["data"]["result"][1]))]
        return [(row["metric"], float(row["value"][1])) for row in said["data"]["result"]]

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """Alerts that fire now, by name, each with its labels and annotations."""
        with urllib.request.urlopen(f"{self.url}/api/v1/alerts", timeout=10) as answer:  # noqa: S310 - loopback
            alerts = json.load(answer)["data"]["alerts"]
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in alerts:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(20)


@contextmanager
def running_prometheus(folder: Path, rules: Mapping[str, str]) -> Iterator[Prometheus]:
    """A Prometheus while the block runs."""
    prometheus = Prometheus(folder, rules)
    try:
        yield prometheus
    finally:
        prometheus.stop()


def rule_files() -> dict[str, str]:
    """The rules as they are."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(RULES.glob("*.yml"))}


def faster(rules: Mapping[str, str], times: int, numbers: Mapping[str, str] | None = None) -> dict[str, str]:
    """The same rules with all their times divided: how long an alert waits (`for`), windows, offsets.

    What an expression compares with is left as it is, but for `numbers`: pieces of rules and what stands for them.
    Raises AssertionError for a piece that is not there.
    """
    found = {}
    unused = set(numbers or {})
    for name, text in rules.items():
        for old, new in (numbers or {}).items():
            if old in text:
                unused.discard(old)
                text = text.replace(old, new)  # noqa: PLW2901 - step by step
        text = re.sub(r"(?<=\[)(\d+)([smhd])(?=\])", lambda match: _shorter(match, times), text)  # noqa: PLW2901
        text = re.sub(r"(?<=offset )(\d+)([smhd])\b", lambda match: _shorter(match, times), text)  # noqa: PLW2901
        found[name] = re.sub(r"(?<=for: )(\d+)([smhd])\b", lambda match: _shorter(match, times, least_s=0), text)
    assert not unused, f"not in any rule: {unused}"
    return found


def _shorter(match: re.Match[str], times: int, least_s: int = _LEAST_S) -> str:
    return f"{max(least_s, round(int(match[1]) * _UNITS_S[match[2]] / times))}s"

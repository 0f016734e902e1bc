"""What `penstock up` starts: the command line and the environment of each process. Starts nothing itself."""

from __future__ import annotations

from cli.folder import DataFolder
from cli.gpus import share
from cli.launch import command, environment
from cli.offspring import Program
from cli.settings import UpSettings
from shared.telemetry import chosen


def split_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our own flags, and those after `--`, which are the engine's."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def replica(settings: UpSettings, index: int, redis_url: str, folder: DataFolder) -> Program:
    """Replica number `index`. The address of Redis may hold a password and therefore goes through the environment."""
    flags = ["--host", settings.host, "--port", str(settings.ports[index])]
    return Program(command("api", flags), _environment(settings, redis_url, folder), folder.log(f"api-{index}"))


def batch(settings: UpSettings, index: int, redis_url: str, folder: DataFolder, ops_port: int) -> Program:
    """Batch process number `index`."""
    flags = ["--ops-port", str(ops_port)]
    return Program(command("batch", flags), _environment(settings, redis_url, folder), folder.log(f"batch-{index}"))


def worker(
    settings: UpSettings, index: int, redis_url: str, folder: DataFolder, gpus: list[str], engine_flags: list[str]
) -> Program:
    """Worker number `index`, on its share of the GPUs."""
    flags = ["--engine", settings.engine, "--drain-s", f"{settings.drain_s:g}"]
    if settings.model_argument:
        flags += ["--model", settings.model_argument]
    if settings.tensor_parallel_size:
        flags += ["--tensor-parallel-size", str(settings.tensor_parallel_size)]
    env = _environment(settings, redis_url, folder)
    # Without bytecode on disk each of an engine's processes compiles vLLM anew at every start: ten seconds apiece.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    devices = share(gpus, index, settings.tensor_parallel_size or 1)
    if devices is not None:
        env["CUDA_VISIBLE_DEVICES"] = devices
    argv = [*flags, "--", *engine_flags] if engine_flags else flags
    return Program(command("worker", argv), env, folder.log(f"worker-{index}"))


def _environment(settings: UpSettings, redis_url: str, folder: DataFolder) -> dict[str, str]:
    """What `up` was told and every process must agree about."""
    return environment(
        {
            "PENSTOCK_REDIS_URL": redis_url,
            "PENSTOCK_PREFIX": settings.prefix,
            "PENSTOCK_LOG_LEVEL": settings.log_level,
            "PENSTOCK_RESULT_TTL_S": str(settings.result_ttl_s),
            "PENSTOCK_STORAGE_URL": settings.storage_url or str(folder.files),
            "PENSTOCK_LOG_FORMAT": chosen(settings.log_format),
            **({"PENSTOCK_OTLP_ENDPOINT": settings.otlp_endpoint} if settings.otlp_endpoint else {}),
            **({"PENSTOCK_TRACE_FILE": str(settings.trace_file.absolute())} if settings.trace_file else {}),
        }
    )

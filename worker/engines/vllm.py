"""The vLLM engine, as far as it can be judged before vLLM is imported.

Importing vLLM takes long and reads the environment. So this module finds the mistakes that it can see in the settings,
gives the environment its defaults, and only then imports the rest: `vllm_flags` (the command line), `vllm_engine` (the
handle), `vllm_proxy` (what happens on each generation), `vllm_guard` (no engine process outlives its worker) and
`vllm_log` (why a start failed). Nothing else imports vLLM or torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigurationError
from shared.tracing import collector, protocol
from worker.engines.vllm_log import ErrorLog
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.engines.vllm_engine import VllmEngine

if importlib.util.find_spec("vllm") is None:
    raise ImportError("vLLM is missing")

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",  # at INFO a start alone is a hundred lines
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # as `vllm serve` does; vllm_guard finds only processes that were spawned
    "VLLM_NO_USAGE_STATS": "1",  # nothing leaves this machine unasked
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # for operators who let vLLM fetch media with --allowed-media-domains
}
_FRONT = "addresses, ports, TLS and logs of HTTP belong to the replicas: leave it out and set it on `penstock api`"
_REFUSED = {
    "--api-key": "keys are checked by the replicas: set PENSTOCK_API_KEYS on `penstock api`",
    "--headless": "a worker serves requests itself: leave it out",
    "--api-server-count": "a worker has no API server: start more replicas with `penstock api`",
    "--grpc": "requests come through the queue: leave it out",
    "--grpc-port": "requests come through the queue: leave it out",
    **dict.fromkeys(
        (
            *("--host", "--port", "--uds", "--root-path", "--disable-uvicorn-access-log", "--uvicorn-log-level"),
            *("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-ciphers"),
            *("--enable-ssl-refresh", "--h11-max-header-count", "--h11-max-incomplete-event-size"),
        ),
        _FRONT,
    ),
}
_MANIFESTS = ("config.json", "params.json")


def create(settings: WorkerSettings, flags: list[str]) -> VllmEngine:
    """The engine for these settings and the `vllm serve` flags after `--`. Raises ConfigurationError.

    `--help` among the flags prints vLLM's own help and exits.
    """
    if not any(flag == "-h" or flag.startswith("--help") for flag in flags):
        _refuse(flags)
        _require_model(_named_model(settings, flags))
    _prepare_environment(_named_model(settings, flags))
    log = ErrorLog(flags, settings.log_format)
    try:
        from worker.engines.vllm_engine import VllmEngine  # noqa: PLC0415 - reads the environment when imported
        from worker.engines.vllm_flags import changed_flags, parse  # noqa: PLC0415 - as above

        args = parse([*settings.engine_flags(), *flags])
        _refuse(changed_flags(args, _REFUSED))  # now those that came abbreviated or from a file
        args.model = _require_model(args.model)
        _trace(args, collector(settings))
    except BaseException:
        log.close()
        raise
    if args.served_model_name is None:
        args.served_model_name = _folder_names(args.model)
    return VllmEngine(args, log)


def _refuse(flags: list[str]) -> None:
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if name in _REFUSED:
            raise ConfigurationError(f"vllm engine: {name} has no place here; {_REFUSED[name]}.")


def _trace(args: argparse.Namespace, endpoint: str) -> None:
    """VLLM tells of its part of a trace where the worker does, unless the operator has named another place.

    Without its statistics it cannot: it would fail with the first request.
    """
    if not endpoint or args.otlp_traces_endpoint or args.disable_log_stats:
        return
    args.otlp_traces_endpoint = endpoint
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol())
    os.environ.setdefault("OTEL_SERVICE_NAME", "vllm")


def _named_model(settings: WorkerSettings, flags: list[str]) -> str | None:
    """The model that the settings or the flags name; None when only vLLM's own parser can tell."""
    model = settings.model or None
    for position, flag in enumerate(flags):
        name, given, value = flag.partition("=")
        if name == "--model":
            model = value if given else "".join(flags[position + 1 : position + 2])
    if model is None and (not flags or all(flag.startswith("--model") for flag in flags)):
        return ""
    return model


def _require_model(model: str | None) -> str:
    """The model, where a leading ~ is the home folder. Raises ConfigurationError when a folder is not a model."""
    if model is None:
        return ""
    if not model:
        raise ConfigurationError(
            "vllm engine: no model. Name one with --model (or PENSTOCK_MODEL): a folder, or a Hugging Face id such as "
            "Qwen/Qwen3-0.6B."
        )
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / name).exists() for name in _MANIFESTS):
            raise ConfigurationError(
                f"vllm engine: the folder {model} holds no config.json, so it is not a model. Name the folder with "
                "config.json, the weights and the tokenizer."
            )
        return str(path)
    if not path.exists() and _looks_like_path(model):
        raise ConfigurationError(
            f"vllm engine: there is no folder {model}. Check the path (this process runs in {Path.cwd()}), or name a "
            "Hugging Face id such as Qwen/Qwen3-0.6B."
        )
    return str(path) if path.exists() else model


def _looks_like_path(model: str) -> bool:
    """Whether a name is a path even though nothing is there. `a/b` may be an id: then an existing folder a decides."""
    if "://" in model:
        return False
    first, *rest = Path(model).parts or (model,)
    return model.startswith(("/", ".", "~")) or len(rest) > 1 or (bool(rest) and Path(first).is_dir())


def _folder_names(model: str) -> list[str] | None:
    """What clients call the model of a folder: the name in its config.json (`penstock_name`), or the folder's own."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    name = config.get("penstock_name") if isinstance(config, dict) else None
    return [str(name or folder.resolve().name)]


def _prepare_environment(model: str | None) -> None:
    """Defaults for what vLLM and its libraries read from the environment. What the operator has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if model and Path(model).expanduser().is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

"""Why a start failed. vLLM's engine process writes the reason to its log and tells its parent nothing but its status.

So the errors of all processes of vLLM also go to a file, and the last one is what the operator is told.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from pathlib import Path

from shared.telemetry import LogFormat, chosen

_CONFIG_PATH = "VLLM_LOGGING_CONFIG_PATH"
_LONGEST_CHARS = 500
_FLAGS = ("--log-level", "--log-config-file", "--logging-config")
_ERROR = re.compile(r"(?:^|\s)((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt): .*)$")
_HINTS = {
    r"larger than the (maximum number of tokens|available KV cache)|No available memory for the cache": (
        "Lower --max-model-len, or raise --gpu-memory-utilization."
    ),
    r"out of memory|[Ff]ree memory on device|Available memory on node|Cannot allocate memory": (
        "Free memory, lower --gpu-memory-utilization or --max-model-len, quantise the model, or spread it over more "
        "GPUs with --tensor-parallel-size."
    ),
    r"gated|401 Client Error|403 Client Error": "Ask for access on the model's page and set HF_TOKEN.",
    r"not a valid model identifier|Repository ?Not ?Found|couldn't connect|LocalEntryNotFound|offline mode": (
        "Check the model's name and the network; a gated model needs HF_TOKEN."
    ),
    r"not supported|[Uu]nsupported|does not recognize this architecture|Cannot find model module": (
        "This vLLM cannot run this model with these flags."
    ),
    r"safetensors|[Ww]eights|state_dict|model\.layers": (
        "The weights do not fit config.json; download the model again."
    ),
}


class ErrorLog:
    """The errors that vLLM's processes log, unless the operator has configured vLLM's logging."""

    def __init__(self, flags: list[str], form: LogFormat = "auto") -> None:
        """`flags` are those of vLLM, `form` is that of the log's lines. To be made before vLLM is imported."""
        self._form = chosen(form)
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-vllm-")
        self._errors = Path(self._folder.name) / "errors.log"
        self._config = Path(self._folder.name) / "logging.json"
        configured = any(flag.replace("_", "-").startswith(_FLAGS) for flag in flags)
        configured = configured or _CONFIG_PATH in os.environ or os.environ.get("VLLM_CONFIGURE_LOGGING", "1") != "1"
        if not configured:
            self._config.write_text(json.dumps(self._logging()), encoding="utf-8")
            os.environ[_CONFIG_PATH] = str(self._config)

    def _logging(self) -> dict[str, object]:
        level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
        return {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": "shared.telemetry.formatter", "form": self._form, "service": "vllm"}},
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"},
                "errors": {
                    "class": "logging.FileHandler",
                    "filename": str(self._errors),
                    "delay": True,
                    "level": "ERROR",
                },
            },
            "loggers": {"vllm": {"handlers": ["stderr", "errors"], "level": level, "propagate": False}},
        }

    def sentence(self, model: str, error: BaseException) -> str:
        """What to tell the operator about a start that ended with `error`."""
        cause = " ".join((self._last_error() or f"{type(error).__name__}: {error}").split())
        cause = cause if len(cause) <= _LONGEST_CHARS else f"{cause[:_LONGEST_CHARS]} ..."
        hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, cause)), "The log above says more.")
        return f"vLLM could not start with {model}: {cause.rstrip('.')}. {hint}"

    def _last_error(self) -> str | None:
        """The last exception in the file: a traceback ends with the exception's own line."""
        try:
            lines = self._errors.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return None
        found = [match.group(1) for line in lines if (match := _ERROR.search(line))]
        return found[-1] if found else None

    def close(self) -> None:
        """Removes the files. Safe to call twice."""
        if os.environ.get(_CONFIG_PATH) == str(self._config):
            del os.environ[_CONFIG_PATH]
        logger = logging.getLogger("vllm")
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and handler.baseFilename == str(self._errors):
                logger.removeHandler(handler)
                handler.close()
        self._folder.cleanup()

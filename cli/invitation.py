"""What to do next, once Penstock answers: a request to copy, and where things are."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cli.probes import base_url
from cli.settings import UpSettings

_KEY_NAMES = ("PENSTOCK_API_KEYS", "PENSTOCK_API_KEYS_FILE", "GATEWAY_API_KEYS", "VLLM_API_KEY")


def invitation(settings: UpSettings, model: str, logs: Path) -> list[str]:
    """The lines. The request is split so that no terminal breaks it where a shell would mind."""
    url = base_url(settings.host, settings.port)
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "What is Penstock?"}]})
    key = any(os.environ.get(name) for name in _KEY_NAMES)
    return [
        " Ready. Try it:",
        "",
        f"curl -N {url}/v1/chat/completions \\",
        "  -H 'Content-Type: application/json' \\",
        *(['  -H "Authorization: Bearer $API_KEY" \\'] if key else []),
        f"  -d '{_shell_quoted(body)}'",
        "",
        f" API for OpenAI clients: {url}/v1   documentation: {url}/docs   metrics: {url}/metrics",
        f" Logs: {_short(logs)}   Ctrl-C stops, after running requests have ended.",
        "",
    ]


def _shell_quoted(text: str) -> str:
    return text.replace("'", "'\\''")


def _short(path: Path) -> str:
    """Relative to the working folder where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

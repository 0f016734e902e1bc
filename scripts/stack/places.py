"""Where things lie, and the error that says what to do."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
DOTENV = COMPOSE / ".env"
SETTINGS = COMPOSE / "settings.env"
TLS = COMPOSE / "tls"
MODELS = ROOT / "models"


class StackError(Exception):
    """What was asked for cannot be done. The message says what to do."""

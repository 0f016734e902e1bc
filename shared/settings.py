"""The base of every process's settings.

One frozen class per process, read once at start. Sources, the first that names a value wins: command-line flags,
environment variables (`PENSTOCK_<NAME>`), `.env`, files named by `PENSTOCK_<NAME>_FILE` (for secrets), the names that
users of other stacks know (`LEGACY_ENV` of each class), defaults. An empty variable of a setting that has such a name
as well names no value.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from shared.errors import ConfigurationError
from shared.keys import DEFAULT_PREFIX
from shared.sentinel import is_sentinel, parse
from shared.telemetry import LogFormat

ENV_PREFIX = "PENSTOCK_"
S = TypeVar("S", bound="Settings")


class _FileSource(PydanticBaseSettingsSource):
    """Secrets from files: `PENSTOCK_API_KEYS_FILE=/run/secrets/keys`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        path = os.environ.get(f"{ENV_PREFIX}{field_name.upper()}_FILE")
        if path is None:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except OSError as error:
            msg = f"{ENV_PREFIX}{field_name.upper()}_FILE: cannot read {path}: {error.strerror}"
            raise ConfigurationError(msg) from error

    def __call__(self) -> dict[str, Any]:
        return _present(self)


class _Filled(PydanticBaseSettingsSource):
    """A source without the empty values of settings that have another name: compose passes on what nobody has set."""

    def __init__(self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._source = source

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        legacy: dict[str, tuple[str, ...]] = self.settings_cls.LEGACY_ENV  # type: ignore[attr-defined]
        return {name: value for name, value in self._source().items() if value != "" or name not in legacy}


class _LegacySource(PydanticBaseSettingsSource):
    """Environment names that users of other stacks know."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        legacy: dict[str, tuple[str, ...]] = self.settings_cls.LEGACY_ENV  # type: ignore[attr-defined]
        for name in legacy.get(field_name, ()):
            if value := os.environ.get(name):
                return value, field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return _present(self)


def _present(source: PydanticBaseSettingsSource) -> dict[str, Any]:
    found = {}
    for name, field in source.settings_cls.model_fields.items():
        value, key, _ = source.get_field_value(field, name)
        if value is not None:
            found[key] = value
    return found


class Settings(BaseSettings):
    """What every process is told."""

    LEGACY_ENV: ClassVar[dict[str, tuple[str, ...]]] = {
        "redis_url": ("REDIS_URL",),
        "log_level": ("LOG_LEVEL",),
        "otlp_endpoint": ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    }

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        extra="ignore",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_show_env_vars=True,
        cli_hide_none_type=True,
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis or Valkey: redis://, rediss://, unix:// or redis+sentinel://…/<master name>/<db>",
    )
    prefix: str = Field(DEFAULT_PREFIX, description="first part of every Redis key", pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: LogFormat = Field("auto", description="text, json, or auto: text on a terminal, else json")
    otlp_endpoint: str = Field(
        "", description="where spans go: an OTLP collector, as http://collector:4318; empty: nowhere"
    )
    trace_file: Path | None = Field(None, description="file to which spans are appended, as lines of JSON")
    result_ttl_s: int = Field(600, ge=10, description="seconds for which the answer of a finished request stays")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not stand in a log."""
        password = urlsplit(self.redis_url).password
        return (password, unquote(password)) if password else ()

    @field_validator("redis_url")
    @classmethod
    def _known_address(cls, url: str) -> str:
        if is_sentinel(url):
            try:
                parse(url)
            except ConfigurationError as error:
                raise ValueError(str(error)) from error
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See the module's docstring for the order."""
        del file_secret_settings
        ours = (_Filled(settings_cls, env_settings), _Filled(settings_cls, dotenv_settings))
        return (init_settings, *ours, _FileSource(settings_cls), _LegacySource(settings_cls))


def read_settings(cls: type[S], argv: list[str], program: str) -> S:
    """The settings of a process from its command line and environment.

    `program` is the name that `--help` shows. Raises ConfigurationError with one line per fault; `--help` prints and
    exits.
    """
    named = type(cls.__name__, (cls,), {"__doc__": cls.__doc__, "__module__": cls.__module__})
    named.model_config = {**cls.model_config, "cli_prog_name": program}  # type: ignore[attr-defined]
    try:
        return named(_cli_parse_args=argv)  # type: ignore[no-any-return]
    except ValidationError as error:
        lines = [f"{_source(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise ConfigurationError("\n".join(lines)) from error
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error


def _source(loc: tuple[int | str, ...]) -> str:
    name = str(loc[0]) if loc else "settings"
    return f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})"

"""vLLM's command line: any flag of `vllm serve`, and the defaults that a worker needs."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterable
from typing import Any

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from shared.errors import ConfigurationError

CPU_KV_CACHE_BYTES = 1 << 30
NO_DOMAINS = ["data-urls-only.invalid"]
_PROGRAM = "penstock worker --engine vllm --"


def parse(flags: list[str]) -> argparse.Namespace:
    """The arguments as `vllm serve` would have them, `model` empty when nothing names one. Raises ConfigurationError.

    `--help` prints and exits.
    """
    parser = _parser()
    args = _parse(parser, flags)
    if args.model_tag is not None:
        args.model = args.model_tag
    elif args.model == parser.get_default("model") and not _given(flags, "--model", "--config"):
        args.model = ""  # vLLM would serve a model of its own choice
    _give_defaults(args, flags)
    try:
        validate_parsed_serve_args(args)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"vllm engine: {error}") from error
    return args


def changed_flags(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of these flags whose value is not vLLM's default."""
    parser = _parser()
    dests = {name: name[2:].replace("-", "_") for name in names}
    return [name for name, dest in dests.items() if getattr(args, dest, None) != parser.get_default(dest)]


def _parser() -> FlexibleArgumentParser:
    untyped: Any = FlexibleArgumentParser
    return make_arg_parser(untyped(prog=_PROGRAM))


def _parse(parser: FlexibleArgumentParser, flags: list[str]) -> argparse.Namespace:
    """What argparse does, but instead of writing to standard error and exiting, the message is raised."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args: argparse.Namespace = parser.parse_args(flags)
    except SystemExit as end:
        if not end.code:
            raise  # --help
        message = said.getvalue().strip().rpartition("error: ")[2] or "wrong flags"
        raise ConfigurationError(f"vllm engine: {message}. See `{_PROGRAM} --help`.") from end
    except (ValueError, OSError) as error:  # a --config file
        raise ConfigurationError(f"vllm engine: {error}") from error
    return args


def _given(flags: list[str], *names: str) -> bool:
    return any(flag.partition("=")[0].replace("_", "-") in names for flag in flags)


def _give_defaults(args: argparse.Namespace, flags: list[str]) -> None:
    if not _given(flags, "--scheduling-policy"):
        args.scheduling_policy = "priority"  # so that lanes keep their meaning inside the engine
    if not args.allowed_media_domains:  # then any: replicas let no URL pass, and if one did, vLLM must not follow it
        args.allowed_media_domains = NO_DOMAINS
    if current_platform.is_cpu() and args.kv_cache_memory_bytes is None:
        asked = os.environ.get("VLLM_CPU_KVCACHE_SPACE") or _given(flags, "--gpu-memory-utilization")
        if not asked:  # else vLLM takes nearly all of the machine's memory
            args.kv_cache_memory_bytes = CPU_KV_CACHE_BYTES

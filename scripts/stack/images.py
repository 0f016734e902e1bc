"""Builds the images that the profiles need."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.stack.engine import asked, has_image
from scripts.stack.places import ROOT, StackError

_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_DOCKER = ROOT / "docker"


@dataclass(frozen=True)
class Image:
    """One image of ours. `variable` in compose/.env names another tag, which is then pulled and not built."""

    variable: str
    tag: str
    dockerfile: str
    engine: str = ""


_API = Image("PENSTOCK_API_IMAGE", "penstock-api:local", "api.Dockerfile")
_CPU = Image("PENSTOCK_WORKER_CPU_IMAGE", "penstock-worker:cpu", "worker.Dockerfile", "cpu")
_CUDA = Image("PENSTOCK_WORKER_CUDA_IMAGE", "penstock-worker:cuda", "worker.Dockerfile", "cuda")


def needed(profiles: str) -> list[Image]:
    """The images of these profiles, comma-separated."""
    wanted = {name.strip() for name in profiles.split(",")}
    images = [_API]
    if "cpu" in wanted:
        images.append(_CPU)
    if any(name.startswith("gpu") for name in wanted):
        images.append(_CUDA)
    return images


def missing(images: list[Image], settings: dict[str, str]) -> list[Image]:
    """Those that are ours to build and are not here."""
    return [image for image in images if not settings.get(image.variable) and not has_image(image.tag)]


def build(images: list[Image], *, base: str = "") -> None:
    """Builds them. `base`: another base image, perhaps with its digest. Raises StackError."""
    with _lent(_DOCKER / "wheels", _wheels()), _lent(_DOCKER / "ca", _authorities()):
        for image in images:
            began_s = time.monotonic()
            print(f"stack: building {image.tag}", flush=True)
            _build(image, base)
            size = int(asked("docker", "image", "inspect", "--format", "{{.Size}}", image.tag) or 0)
            print(f"stack: {image.tag} is {size / 1e6:.0f} MB, {time.monotonic() - began_s:.0f} s", flush=True)


def _build(image: Image, base: str) -> None:
    arguments = {"VERSION": _version(), "REVISION": asked("git", "rev-parse", "HEAD").strip() or "unknown"}
    arguments |= {"ENGINE": image.engine} if image.engine else {}
    arguments |= {"BASE": base} if base else {}
    command = ["docker", "build", "--file", f"docker/{image.dockerfile}", "--tag", image.tag]
    command += [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    if subprocess.run([*command, "."], cwd=ROOT, check=False).returncode:
        msg = (
            f"building {image.tag} failed; the step that did is above. No registry for the base image? "
            "scripts/stack/base_images.sh makes it from Debian's packages. No torch? docker/wheels/README.md."
        )
        raise StackError(msg)


@contextlib.contextmanager
def _lent(folder: Path, files: list[Path]) -> Iterator[None]:
    """Copies of the files in the folder, for as long as the block runs. What was there before stays."""
    copies = []
    try:
        for file in files:
            copy = folder / file.name
            if not copy.exists():
                copies.append(copy)
                shutil.copy(file, copy)
        yield
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)


def _wheels() -> list[Path]:
    """Torch's wheels in the folders that pip or uv are told of."""
    named = f"{os.environ.get('PIP_FIND_LINKS', '')} {os.environ.get('UV_FIND_LINKS', '')}"
    folders = dict.fromkeys(Path(name) for name in re.split(r"[\s,]+", named) if name and "://" not in name)
    return [wheel for folder in folders for wheel in sorted(folder.glob("torch-*.whl"))]


def _authorities() -> list[Path]:
    return sorted(_AUTHORITIES.glob("*.crt"))


def _version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"

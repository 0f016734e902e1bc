"""The stack's files and the helpers around them: secrets, choices, what the images and compose say of each other."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import setup
from scripts.stack import __main__ as stack
from scripts.stack import dotenv, embedded, hardware, images, leaving, lifting, places, trial
from scripts.stack.engine import compose_command
from scripts.validate import tools
from tests.support.boards import queries
from worker import app as worker
from worker.settings import WorkerSettings

COMPOSE = (places.COMPOSE / "docker-compose.yml").read_text(encoding="utf-8")


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert dotenv.prepare(path) == sorted(dotenv.SECRETS)
    first = dotenv.read(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert dotenv.prepare(path) == []
    assert dotenv.read(path) == first
    assert all(len(first[name]) >= 64 for name in dotenv.SECRETS)
    assert len({first[name] for name in dotenv.SECRETS}) == len(dotenv.SECRETS)


def test_the_web_uis_key_is_one_that_replicas_take(tmp_path: Path) -> None:
    dotenv.prepare(tmp_path / ".env")
    made = dotenv.read(tmp_path / ".env")
    assert made["WEBUI_API_KEY"] in made["PENSTOCK_API_KEYS"].split(",")
    assert made["PENSTOCK_API_KEYS"].split(",")[0] != made["WEBUI_API_KEY"]


def test_what_an_operator_wrote_into_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nREDIS_PASSWORD=chosen\nPENSTOCK_API_KEYS=a,b\nHTTP_PORT=9000\n")
    path.chmod(0o644)
    dotenv.prepare(path)
    made = dotenv.read(path)
    assert (made["REDIS_PASSWORD"], made["HTTP_PORT"]) == ("chosen", "9000")
    assert made["PENSTOCK_API_KEYS"].startswith("a,b,pk-")
    assert path.read_text().startswith("# mine\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_secret_is_none(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("REDIS_PASSWORD=\n")
    dotenv.prepare(path)
    assert dotenv.read(path)["REDIS_PASSWORD"]
    assert path.read_text().count("REDIS_PASSWORD=") == 1


def test_compose_has_no_default_for_any_secret() -> None:
    for name in dotenv.SECRETS:
        uses = re.findall(rf"\$\{{{name}[^}}]*\}}", COMPOSE)
        assert uses, f"{name} is used nowhere"
        assert all(use.startswith(f"${{{name}:?") for use in uses), uses


def test_every_container_of_ours_is_locked_down() -> None:
    services = re.split(r"^  (?=[a-z][a-z0-9-]*:\n)", COMPOSE.partition("\nservices:\n")[2], flags=re.MULTILINE)[1:]
    named = {text.partition(":")[0]: text for text in services}
    assert {"nginx", "api", "redis", "worker-cpu", "worker-gpu-0", "prometheus"} <= set(named)
    unlocked = {name for name, text in named.items() if not re.search(r"<<: \*(ours|worker|worker-gpu|nginx)\n", text)}
    assert unlocked == {"webui"}, "webui says in a comment why it cannot be"
    assert COMPOSE.count("  <<: *ours\n") >= 3


def test_only_the_doors_are_published_beyond_this_machine() -> None:
    ports = re.findall(r'ports: \["([^"]+)"\]', COMPOSE)
    assert len(ports) >= 5
    assert [port for port in ports if not port.startswith(("127.0.0.1:", "${HTTP_BIND:-127.0.0.1}"))] == [
        "${HTTPS_BIND:-0.0.0.0}:${HTTPS_PORT:-8443}:8443"
    ]


def test_no_file_of_the_stack_names_a_registrys_host() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in places.ROOT.glob("docker/*Dockerfile")}
    texts |= {places.COMPOSE: COMPOSE}
    texts |= {path: path.read_text(encoding="utf-8") for path in places.ROOT.glob(".github/workflows/*.yml")}
    for path, text in texts.items():
        assert not re.search(r"\b[a-z0-9-]+\.(io|com|dev|org)/[a-z]", text), path


def test_the_job_that_pushes_and_signs_runs_no_action_whose_code_can_change_under_its_name() -> None:
    workflow = (places.ROOT / ".github" / "workflows" / "images.yml").read_text(encoding="utf-8")
    named = re.findall(r"uses: (\S+)( # v?\d+\.\d+\.\d+)?$", workflow, re.MULTILINE)
    assert len(named) > 8
    unpinned = {action for action, tag in named if not (tag and re.search(r"@[0-9a-f]{40}$", action))}
    assert unpinned == {"./.github/workflows/ci.yml"}


def test_ci_installs_every_tool_of_its_checks_that_debian_has() -> None:
    job = (places.ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8").partition("\n  validate:\n")[2]
    for how in (tools._GET[name] for name in ("nginx", "promtool", "amtool")):
        assert re.search(rf"\b{how.rpartition(' ')[2]}(\s|$)", job), how


def test_the_images_torch_is_that_of_the_set_up() -> None:
    dockerfile = (places.ROOT / "docker" / "worker.Dockerfile").read_text(encoding="utf-8")
    assert f"ARG TORCH={setup.TORCH}\n" in dockerfile


def test_the_trial_looks_for_the_images_that_are_used() -> None:
    for name in ("nginx", "redis"):
        assert f"${{PENSTOCK_{name.upper()}_IMAGE:-{trial._BASES[name]}}}" in COMPOSE
    for dockerfile in places.ROOT.glob("docker/*Dockerfile"):
        assert f"ARG BASE={trial._BASES['debian']}\n" in dockerfile.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(0, "cpu"), (1, "gpu"), (3, "gpu,gpu1,gpu2"), (16, "gpu," + ",".join(f"gpu{n}" for n in range(1, 8)))],
)
def test_a_machine_gets_a_worker_for_each_of_its_gpus(count: int, wanted: str) -> None:
    assert hardware.profiles(count) == wanted
    for name in wanted.split(","):
        assert f"profiles: [{name}]" in COMPOSE


def test_every_profile_is_told_where_profiles_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stack.main(["--help"])
    page = (places.ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    for said in (capsys.readouterr().out, COMPOSE.partition("\nx-ours")[0], page):
        for name in {name for its in leaving.profiles().values() for name in its} - {f"gpu{n}" for n in range(2, 8)}:
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", said), name


def test_a_worker_has_the_time_to_leave_that_it_takes() -> None:
    (grace_s,) = map(int, re.findall(r"^x-worker:.*?stop_grace_period: (\d+)s", COMPOSE, re.MULTILINE | re.DOTALL))
    engine_s = 5
    assert WorkerSettings().drain_s + worker._HAND_BACK_S + worker._FAREWELL_S + engine_s < grace_s
    assert grace_s == leaving._STOP_S


def test_prometheus_keeps_as_much_as_the_boards_ask_for() -> None:
    (kept_d,) = map(int, re.findall(r"PROMETHEUS_RETENTION:-(\d+)d", COMPOSE))
    asked_d = {int(days) for query in queries().values() for days in re.findall(r"\[(\d+)d\]", query)}
    assert max(asked_d) == 30 < kept_d


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `docker` that has containers of some services, and writes down what it is told, in the file that this gives."""
    told, program = tmp_path / "told", tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{told}\n'
        '[ "$1" = ps ] && printf "c1 api\\nc2 worker-cpu\\nc3 worker-gpu-0\\nc4 nginx-tls\\nc5 mine\\n"\nexit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    compose_command.cache_clear()
    yield told
    compose_command.cache_clear()


def test_containers_of_a_profile_that_was_left_are_stopped(docker: Path) -> None:
    leaving.remove("p", "cpu,monitoring")
    first, *rest = docker.read_text().splitlines()
    assert "label=com.docker.compose.project=p" in first
    assert rest == ["stop -t 150 c3 c4", "rm c3 c4"], "what the file does not know is another's"
    docker.unlink()
    leaving.remove("p", "cpu,gpu,tls")
    assert len(docker.read_text().splitlines()) == 1


def test_down_is_for_every_profile(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("COMPOSE_PROFILES=cpu\n")
    monkeypatch.setattr(stack, "DOTENV", tmp_path / ".env")
    assert stack.main(["down"]) == 0
    last = docker.read_text().splitlines()[-1]
    assert last.startswith("compose --profile ")
    assert last.endswith(" down --remove-orphans")
    assert {name for its in leaving.profiles().values() for name in its} == set(re.findall(r"--profile (\S+)", last))


@pytest.mark.parametrize(
    ("profiles", "tags"),
    [
        ("sim", ["penstock-api:local"]),
        ("cpu,monitoring", ["penstock-api:local", "penstock-worker:cpu"]),
        ("gpu,gpu1", ["penstock-api:local", "penstock-worker:cuda"]),
    ],
)
def test_only_the_images_that_are_needed_are_built(profiles: str, tags: list[str]) -> None:
    assert [image.tag for image in images.needed(profiles)] == tags
    assert all(f":-{tag}}}" in COMPOSE for tag in tags)


def test_a_models_folder_is_mounted_wherever_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-8B"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "same.json").symlink_to("config.json")
    inside = "/models/local/Qwen3-8B"
    assert lifting.model_settings(str(folder)) == {"MODEL": inside, "MODELS_DIR": str(folder), "MODELS_AT": inside}
    assert "- ${MODELS_DIR:-../models}:${MODELS_AT:-/models/local}:ro" in COMPOSE
    assert lifting.model_settings(str(places.MODELS / "demo"))["MODEL"] == "/models/local/demo"
    assert lifting.model_settings("Qwen/Qwen3-8B") == {"MODEL": "Qwen/Qwen3-8B"}
    with pytest.raises(places.StackError, match="is no folder"):
        lifting.model_settings("/nowhere/at-all")


def test_a_model_whose_files_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "weights").write_text("many")
    (snapshot / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "weights")
    with pytest.raises(places.StackError, match="cp -rL"):
        lifting.model_settings(str(snapshot))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="this machine has no openssl")
def test_a_private_key_is_in_a_folder_that_only_its_owner_can_enter(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    lifting.certificate(folder)
    made = (folder / "mounted" / "tls.key").read_bytes()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes == {"tls": 0o700, "mounted": 0o755, "tls.key": 0o644, "tls.crt": 0o644}, "inside, nginx reads it"
    assert "- ./tls/mounted:/etc/penstock/tls:ro" in COMPOSE
    lifting.certificate(folder)
    assert (folder / "mounted" / "tls.key").read_bytes() == made


def test_a_certificate_that_was_there_is_kept_and_closed_in(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    folder.mkdir(0o755)
    for name in ("tls.crt", "tls.key"):
        (folder / name).write_text(f"my {name}")
        (folder / name).chmod(0o600)
    lifting.certificate(folder)
    assert [(folder / "mounted" / name).read_text() for name in ("tls.crt", "tls.key")] == ["my tls.crt", "my tls.key"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_embedded_start_is_found_by_its_lock(tmp_path: Path) -> None:
    assert embedded.process(tmp_path) is None
    (tmp_path / "lock").write_text("4711")
    assert embedded.process(tmp_path) is None, "the file is there, and nobody holds it"

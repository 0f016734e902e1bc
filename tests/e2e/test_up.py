"""`penstock up` as a newcomer runs it: real processes, the simulated engine, a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.batching import CHAT, chat_row, jsonl
from tests.support.client import stream_chat
from tests.support.engines import lives
from tests.support.stack import free_port, metric

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 40.0
LEASE_S = 5.0


class Up:
    """A running `penstock up`."""

    def __init__(self, folder: Path, *flags: str, api: int = 1, env: dict[str, str] | None = None) -> None:
        self.port = free_ports(api)
        self.output = folder / "output"
        inherited = {key: value for key, value in os.environ.items() if not key.endswith("REDIS_URL")}
        command = [sys.executable, "-m", "cli.main", "up", "--engine", "sim", "--port", str(self.port)]
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                [*command, "--api", str(api), *flags],
                cwd=folder,
                env={**inherited, "PYTHONPATH": str(ROOT), **(env or {})},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def shown(self) -> str:
        """Everything that was printed so far."""
        return self.output.read_text()

    def url(self, replica: int = 0) -> str:
        return f"http://127.0.0.1:{self.port + replica}"

    def children(self, word: str = "") -> list[int]:
        """Process ids of the living children whose command line has `word` in it."""
        return [pid for pid in children_of(self.popen.pid) if word in command_of(pid)]

    async def ready(self, workers: int = 1) -> None:
        """Returns when it has said that it is ready, and every process is."""
        await until(lambda: "Ready. Try it" in self.shown and self.shown.count("takes work") >= workers, self.story)

    def story(self) -> str:
        """For a test that fails: what was shown, and all logs."""
        logs = sorted(self.output.parent.glob("**/logs/*.log"))
        return "\n".join([self.shown, *(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)])

    async def ended(self, within_s: float = DEADLINE_S) -> int:
        """The exit status, once it has ended."""
        await until(lambda: self.popen.poll() is not None, self.story, within_s)
        assert self.popen.returncode is not None
        return self.popen.returncode

    def remove(self) -> None:
        """Whatever the test left, ends."""
        for pid in [*children_of(self.popen.pid), self.popen.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait(10)


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that are free."""
    for _ in range(50):
        first = free_port()
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probe = held.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return first
    pytest.fail("no free ports")


def children_of(parent: int) -> list[int]:
    """Living children; one that has ended and was not collected yet is none."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


async def until(holds: Callable[[], bool], story: Callable[[], str], within_s: float = DEADLINE_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, story()
        await asyncio.sleep(0.05)


async def until_in_thread(holds: Callable[[], bool], story: Callable[[], str]) -> None:
    """As `until`, for a question that blocks: this loop has streams to read meanwhile."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline_s, story()
        await asyncio.sleep(0.05)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A working folder whose path is short enough for the server's socket."""
    with tempfile.TemporaryDirectory(prefix="ps-") as path:
        yield Path(path)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Up]]:
    """Starts `penstock up` in the folder; what is left at the end is killed."""
    started: list[Up] = []

    def begin(*flags: str, api: int = 1, env: dict[str, str] | None = None) -> Up:
        started.append(Up(folder, *flags, api=api, env=env))
        return started[-1]

    yield begin
    for up in started:
        up.remove()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60) as client:
        yield client


async def first_tokens(up: Up, count: int) -> None:
    """Returns once `count` streams have their first token: there is something to lose."""
    name = "penstock_time_to_first_token_seconds_count"

    def begun() -> bool:
        return metric(f"{up.url()}/metrics", name) >= count

    await until_in_thread(begun, up.story)


async def test_both_replicas_answer_and_the_request_to_copy_works(
    start: Callable[..., Up], http: httpx.AsyncClient
) -> None:
    up = start("--workers", "2", api=2)
    await up.ready(workers=2)
    for replica in (0, 1):
        seen = await stream_chat(http, up.url(replica), 5)
        assert seen.whole, seen
        seen.check(5)
    lines = up.shown.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("curl "))
    request = "\n".join(lines[at : at + 3])
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-c", f"{request} -sS"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.rstrip().endswith("data: [DONE]"), (request, done)
    assert ".penstock/logs" in up.shown


async def test_batches_run_without_another_command(start: Callable[..., Up]) -> None:
    up = start()
    await up.ready()
    await until(lambda: "runs batches" in up.shown, up.story)
    client = openai.AsyncOpenAI(base_url=f"{up.url()}/v1", api_key="none")
    row = chat_row("a", tokens=4)
    file = await client.files.create(file=("rows.jsonl", jsonl([row])), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="1h")  # type: ignore[arg-type]
    deadline_s = time.monotonic() + DEADLINE_S
    while (batch := await client.batches.retrieve(batch.id)).status != "completed":
        assert time.monotonic() < deadline_s, (batch, up.story())
        await asyncio.sleep(0.1)
    assert batch.output_file_id is not None
    assert '"custom_id":"a"' in (await client.files.content(batch.output_file_id)).text
    await client.close()


async def test_without_a_batch_process_none_is_started(start: Callable[..., Up]) -> None:
    up = start("--batch", "0")
    await up.ready()
    assert not up.children("-m batch")


async def test_a_worker_that_is_killed_is_replaced_and_its_request_goes_on_before_its_lease_ends(
    start: Callable[..., Up], http: httpx.AsyncClient
) -> None:
    up = start("--workers", "2", "--", "--itl-ms", "20")
    await up.ready(workers=2)
    before = up.children("-m worker")
    assert len(before) == 2
    streams = [asyncio.create_task(stream_chat(http, up.url(), 100)) for _ in range(8)]
    body = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 100}
    wholes = [asyncio.create_task(http.post(f"{up.url()}/v1/chat/completions", json=body)) for _ in range(8)]
    await first_tokens(up, 8)
    os.kill(before[0], signal.SIGKILL)
    killed_s = time.monotonic()
    for stream in streams:
        seen = await stream
        seen.check(100)
        assert seen.longest_pause_s < LEASE_S - 1, "it waited for the lease"
    for whole in wholes:
        response = await whole
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["completion_tokens"] == 100
    assert time.monotonic() - killed_s < 100 * 0.02 + LEASE_S - 1, "they waited for the lease"
    await until(lambda: len(up.children("-m worker")) == 2 and before[0] not in up.children("-m worker"), up.story)
    await until(lambda: up.shown.count("takes work") >= 3, up.story)
    assert "worker-0: ended (SIGKILL); starting again" in up.shown


async def test_sigterm_lets_running_requests_end_and_leaves_no_process(
    start: Callable[..., Up], http: httpx.AsyncClient
) -> None:
    up = start("--workers", "2", "--", "--itl-ms", "20", api=2)
    await up.ready(workers=2)
    processes = up.children()
    assert len(processes) == 6
    streams = [asyncio.create_task(stream_chat(http, up.url(index % 2), 100)) for index in range(4)]
    await first_tokens(up, 2)
    up.popen.terminate()
    for stream in streams:
        seen = await stream
        assert seen.whole, (seen, up.story())
        seen.check(100)
    assert await up.ended() == 0
    assert not any(map(lives, processes))
    assert "Stopping: running requests are finished first" in up.shown


async def test_a_second_signal_stops_at_once(start: Callable[..., Up], http: httpx.AsyncClient) -> None:
    up = start("--", "--itl-ms", "20")
    await up.ready()
    processes = up.children()
    stream = asyncio.create_task(stream_chat(http, up.url(), 5000))
    await first_tokens(up, 1)
    up.popen.send_signal(signal.SIGINT)
    await until(lambda: "Stopping" in up.shown, up.story)
    assert up.popen.poll() is None
    up.popen.send_signal(signal.SIGINT)
    assert await up.ended() == 0
    assert not any(map(lives, processes))
    assert not (await stream).whole


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
async def test_kill_9_leaves_no_process_and_the_folder_can_be_used_again(start: Callable[..., Up]) -> None:
    up = start(api=2)
    await up.ready()
    processes = up.children()
    assert len(processes) == 5
    up.popen.kill()
    await until(lambda: not any(map(lives, processes)), up.story)
    again = start()
    await again.ready()


async def test_a_port_in_use_is_one_sentence_and_starts_nothing(start: Callable[..., Up], folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        up = start("--port", str(taken.getsockname()[1]))
        assert await up.ended() == 2
    assert up.shown.startswith("penstock up: Cannot listen on 127.0.0.1:")
    assert len(up.shown.splitlines()) == 1
    assert not list(folder.glob(".penstock/logs/*"))


async def test_a_second_one_in_the_same_folder_is_told_so(start: Callable[..., Up]) -> None:
    first = start()
    await first.ready()
    second = start()
    assert await second.ended() == 2
    assert f"running in {first.output.parent}/.penstock already (process {first.popen.pid})" in second.shown
    assert first.popen.poll() is None


async def test_wrong_engine_flags_end_it_with_the_workers_own_words(start: Callable[..., Up]) -> None:
    up = start("--", "--no-such-flag")
    assert await up.ended() == 1
    assert "worker-0 was given a wrong setting" in up.shown
    assert "unknown flags: --no-such-flag" in up.shown
    assert "starting again" not in up.shown
    assert not up.children()


async def test_a_redis_that_is_named_and_away_is_one_sentence(start: Callable[..., Up]) -> None:
    up = start(env={"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"})
    assert await up.ended() == 2
    assert "unset REDIS_URL" in up.shown
    assert "Traceback" not in up.shown

"""`penstock batch` as users type it, against real replicas, workers and a batch process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from shared.keys import GlobalKeys
from tests.support.badproxy import Behaviour, bad_proxy
from tests.support.batching import ENDED, chat_row
from tests.support.commands import Terminal, command, environment, penstock
from tests.support.stack import Api, Stack, get, running_stack

KEYS = {"PENSTOCK_API_KEYS": "first,second"}
SLOW = ("--max-tokens", "300")
"""A third of a second for each row."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--", "--ttft-ms", "2", "--itl-ms", "1", "--slots", "32")
        started.api()
        started.api(env=KEYS)
        started.batch("--batch-cancel-grace-s", "1")
        yield started


@pytest.fixture
def env(stack: Stack) -> dict[str, str]:
    return environment(stack.apis[0].url)


def prompts(folder: Path, number: int) -> str:
    """A file of plain prompts."""
    (folder / "prompts.jsonl").write_text("".join(f"Tell me about {row}.\n" for row in range(1, number + 1)))
    return "prompts.jsonl"


def batch_of(stack: Stack, batch: str, api: int = 0) -> dict[str, Any]:
    return dict(json.loads(get(f"{stack.apis[api].url}/v1/batches/{batch}")[1]))


def until_done(stack: Stack, batch: str, rows: int = 1) -> None:
    """Returns once so many rows are done, and before all of them are."""
    give_up_at_s = time.monotonic() + 60
    while (found := batch_of(stack, batch))["request_counts"]["completed"] < rows:
        assert time.monotonic() < give_up_at_s, found
        assert found["status"] not in ENDED, found
        time.sleep(0.05)
    assert found["status"] == "in_progress"


def until_followed(replica: Api) -> None:
    """Returns once somebody has had a batch's stream of events opened there."""
    give_up_at_s = time.monotonic() + 60
    while replica.metric("penstock_http_requests_total", route="/v1/batches/{batch}/events") < 1:
        assert time.monotonic() < give_up_at_s
        time.sleep(0.05)


def submitted(folder: Path, env: dict[str, str], *words: str) -> str:
    ran = penstock(folder, env, "batch", "submit", *words)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"batch_[0-9a-z]{26}\n", ran.stdout)
    return ran.stdout.strip()


@pytest.mark.timeout(300)
def test_five_thousand_plain_prompts_come_back_in_their_order_each_with_its_answer(
    env: dict[str, str], tmp_path: Path
) -> None:
    name = prompts(tmp_path, 5_000)
    words = ("--input", name, "--output", "results.jsonl", "--max-tokens", "2", "--format", "pairs")
    ran = penstock(tmp_path, env, "batch", *words, within_s=250)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    pairs = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [pair["custom_id"] for pair in pairs] == [f"row-{row}" for row in range(1, 5_001)]
    assert [pair["prompt"] for pair in pairs] == [f"Tell me about {row}." for row in range(1, 5_001)]
    assert all(pair["response"] and pair["usage"]["completion_tokens"] == 2 for pair in pairs)
    assert "in_progress, " in ran.stderr
    assert "rows/s" in ran.stderr
    assert "tokens/s" in ran.stderr
    assert "completed" in ran.stderr
    assert "5 000 of 5 000 rows, 0 failed" in ran.stderr
    assert "\x1b" not in ran.stderr, "no terminal, no drawing"
    assert [path.name for path in tmp_path.iterdir() if path.name not in {name, "results.jsonl"}] == []


def test_a_file_of_rows_as_run_batch_takes_it_gives_lines_as_run_batch_writes_them(
    env: dict[str, str], tmp_path: Path
) -> None:
    rows = [chat_row(f"request-{number}") for number in (3, 1, 2)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ran = penstock(tmp_path, env, "batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", "sim", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"] == "completed"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["request-3", "request-1", "request-2"]
    assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in lines)


def test_prompts_come_by_a_pipe_and_answers_go_into_one(env: dict[str, str], tmp_path: Path) -> None:
    words = ("--input", "-", "--output", "-", "--format", "text", "--max-tokens", "3", "--system", "Be kind.", "-q")
    ran = penstock(tmp_path, env, "batch", *words, stdin="one\ntwo\n")
    assert ran.returncode == 0, ran.stderr
    assert [len(line.split()) for line in ran.stdout.splitlines()] == [3, 3]


def test_lines_that_are_no_rows_are_shown_with_their_numbers_and_nothing_is_sent(
    env: dict[str, str], tmp_path: Path, stack: Stack
) -> None:
    (tmp_path / "bad.jsonl").write_text('fine\n{"prompt": 1}\n\n{bad\n')
    before = get(f"{stack.apis[0].url}/v1/files")[1]
    ran = penstock(tmp_path, env, "batch", "--input", "bad.jsonl", "--output", "out.jsonl")
    assert ran.returncode == 2
    shown = ran.stderr.splitlines()
    assert [line.split(": ")[0] for line in shown] == [
        "bad.jsonl:2",
        "bad.jsonl:4",
        "bad.jsonl cannot be a batch; nothing was sent.",
    ]
    assert get(f"{stack.apis[0].url}/v1/files")[1] == before
    ran = penstock(tmp_path, env, "batch", "submit", "bad.jsonl", "--json")
    assert [fault["line"] for fault in json.loads(ran.stdout)["faults"]] == [2, 4]


def test_rows_that_the_server_refuses_are_shown_with_their_lines(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('fine\n\n{"prompt": "x", "stream": true}\n{"prompt": "x", "model": "other"}\n')
    ran = penstock(tmp_path, env, "batch", "--input", "bad.jsonl", "--output", "out.jsonl")
    assert ran.returncode == 1
    assert "line 3: streaming_unsupported" in ran.stderr
    assert "line 4: model_not_found" in ran.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_that_fails_makes_the_exit_status_1_is_named_and_stands_in_the_output(
    env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "in").write_text('fine\n{"prompt": "x", "n": 2, "custom_id": "greedy"}\nfine, too\n')
    ran = penstock(tmp_path, env, "batch", "--input", "in", "--output", "out", "--max-tokens", "2")
    assert ran.returncode == 1
    assert "2 of 3 rows, 1 failed" in ran.stderr
    assert "greedy: 400" in ran.stderr
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [(line["custom_id"], line["error"] is None) for line in lines] == [
        ("row-1", True),
        ("greedy", False),
        ("row-3", True),
    ]


def test_ctrl_c_detaches_and_says_how_to_come_back_and_that_works(
    stack: Stack, env: dict[str, str], tmp_path: Path
) -> None:
    name = prompts(tmp_path, 800)
    terminal = Terminal(tmp_path, env, "batch", "--input", name, "--output", "my results.jsonl", "--max-tokens", "900")
    try:
        batch = terminal.until(r"Submitted as (batch_[0-9a-z]+)")[1]
        terminal.until(r"[1-9][0-9]*/800 rows · 0 failed · \S+ rows/s · [0-9 ]+ tokens/s · .* left")
        assert "━" in terminal.shown
        terminal.press(b"\x03")
        assert terminal.ended() == 130, terminal.shown[-3000:]
    finally:
        terminal.close()
    assert "Traceback" not in terminal.shown
    assert "\x1b[?25h" in terminal.raw.rsplit("\x1b[?25l", 1)[1], "the cursor is back"
    assert not (tmp_path / "my results.jsonl").exists()
    assert batch_of(stack, batch)["status"] == "in_progress"
    again = re.search(r"^  (penstock batch watch .*)$", terminal.shown.replace("\r", ""), re.MULTILINE)
    assert again is not None, terminal.shown
    words = shlex.split(again[1])
    assert words[3] == batch
    ran = penstock(tmp_path, env, *words[1:])
    assert ran.returncode == 0, ran.stderr
    assert len((tmp_path / "my results.jsonl").read_text().splitlines()) == 800


def test_a_terminal_without_colours_gets_none(env: dict[str, str], tmp_path: Path) -> None:
    words = ("batch", "--input", prompts(tmp_path, 40), "--output", "out", "--max-tokens", "50")
    terminal = Terminal(tmp_path, {**env, "NO_COLOR": "1"}, *words)
    try:
        assert terminal.ended() == 0
    finally:
        terminal.close()
    assert "40 of 40 rows" in terminal.shown
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-9])[0-9;]*m", terminal.raw)


def test_results_come_row_by_row_while_the_batch_runs_and_each_of_them_once(
    stack: Stack, env: dict[str, str], tmp_path: Path
) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 600), *SLOW)
    follow = subprocess.Popen(
        command("batch", "results", batch, "--follow"), cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    assert follow.stdout is not None
    with follow, follow.stdout:
        first = follow.stdout.readline()
        assert batch_of(stack, batch)["status"] == "in_progress"
        lines = [json.loads(line) for line in [first, *follow.stdout]]
        assert follow.wait(60) == 0
    assert sorted(line["custom_id"] for line in lines) == sorted(f"row-{row}" for row in range(1, 601))


def test_results_of_a_running_batch_are_those_that_there_are(stack: Stack, env: dict[str, str], tmp_path: Path) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 3_000), *SLOW)
    until_done(stack, batch)
    ran = penstock(tmp_path, env, "batch", "results", batch)
    assert ran.returncode == 0
    assert 0 < len(ran.stdout.splitlines()) < 3_000
    assert "of 3000 rows so far" in ran.stderr
    assert penstock(tmp_path, env, "batch", "cancel", batch).stdout == f"{batch}: cancelling\n"
    ran = penstock(tmp_path, env, "batch", "watch", batch, "--output", "some.jsonl")
    assert ran.returncode == 1
    assert "cancelled" in ran.stderr
    counts = batch_of(stack, batch)["request_counts"]
    assert len((tmp_path / "some.jsonl").read_text().splitlines()) == counts["completed"] + counts["failed"]


def test_whoever_watches_goes_on_at_another_replica_when_the_one_is_killed(stack: Stack, tmp_path: Path) -> None:
    doomed = stack.api()
    both = environment(f"{doomed.url},{stack.apis[0].url}")
    batch = submitted(tmp_path, both, prompts(tmp_path, 600), *SLOW)
    watch = subprocess.Popen(
        command("batch", "watch", batch, "--output", "out.jsonl"),
        cwd=tmp_path,
        env=both,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stderr is not None
    with watch, watch.stderr:
        shown = ""
        while "in_progress" not in shown:
            shown += watch.stderr.readline()
        until_done(stack, batch)
        until_followed(doomed)
        doomed.kill()
        shown += watch.stderr.read()
        assert watch.wait(60) == 0, shown
    assert "The connection broke" in shown
    assert "600 of 600 rows, 0 failed" in shown
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 600


def test_whoever_watches_waits_for_the_only_replica_to_come_back(stack: Stack, tmp_path: Path) -> None:
    doomed = stack.api()
    env = environment(doomed.url)
    batch = submitted(tmp_path, env, prompts(tmp_path, 600), *SLOW)
    watch = subprocess.Popen(
        command("batch", "watch", batch, "--json"), cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    assert watch.stdout is not None
    with watch, watch.stdout:
        shown = [json.loads(watch.stdout.readline())]
        until_done(stack, batch)
        until_followed(doomed)
        doomed.kill()
        stack.again(doomed)
        shown += [json.loads(line) for line in watch.stdout]
        assert watch.wait(60) == 0
    assert shown[-1]["status"] == "completed"
    assert shown[-1]["request_counts"] == {"total": 600, "completed": 600, "failed": 0}


def test_behind_a_proxy_that_lets_no_stream_through_it_asks_instead(
    stack: Stack, env: dict[str, str], tmp_path: Path
) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 900), *SLOW)
    behaviour = Behaviour(refuse="/events")
    with bad_proxy(stack.apis[0].url, behaviour) as url:
        ran = penstock(tmp_path, environment(url), "batch", "watch", batch)
    assert ran.returncode == 0, ran.stderr
    assert behaviour.refused > 0
    assert "900 of 900 rows" in ran.stderr


def test_a_batch_that_is_away_until_it_is_restored_is_waited_for(
    stack: Stack, env: dict[str, str], tmp_path: Path
) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 900), *SLOW)
    behaviour = Behaviour(refuse="/events", unknown=range(1, 3))
    with bad_proxy(stack.apis[0].url, behaviour) as url:
        ran = penstock(tmp_path, environment(url), "batch", "watch", batch)
    assert ran.returncode == 0, ran.stderr
    assert behaviour.looks > 3
    assert "not there at the moment" in ran.stderr


def test_a_download_that_breaks_goes_on_where_it_was(stack: Stack, env: dict[str, str], tmp_path: Path) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 50), "--max-tokens", "2")
    assert penstock(tmp_path, env, "batch", "watch", batch, "--output", "whole").returncode == 0
    behaviour = Behaviour(cut_bytes=1_000)
    with bad_proxy(stack.apis[0].url, behaviour) as url:
        ran = penstock(tmp_path, environment(url), "batch", "results", batch, "--output", "broken")
    assert ran.returncode == 0, ran.stderr
    assert behaviour.ranges[0] == "bytes=1000-"
    assert (tmp_path / "broken").read_text() == (tmp_path / "whole").read_text()


def test_sigterm_detaches_as_ctrl_c_does(stack: Stack, env: dict[str, str], tmp_path: Path) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 3_000), *SLOW)
    words = command("batch", "watch", batch)
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stderr is not None
        assert batch in watch.stderr.readline()
        watch.terminate()
        assert f"penstock batch watch {batch}" in watch.stderr.read()
        assert watch.wait(30) == 128 + signal.SIGTERM
    assert batch_of(stack, batch)["status"] in {"validating", "in_progress"}
    assert penstock(tmp_path, env, "batch", "cancel", batch).returncode == 0


def peak_bytes(folder: Path, env: dict[str, str], name: str) -> int:
    """The most memory that submitting a file took. The batch is not run."""
    words = command("batch", "submit", name, "--start-after", "+1h", "--max-tokens", "1")
    with subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as submitting:
        assert submitting.stdout is not None
        batch = submitting.stdout.read().strip()
        _, status, used = os.wait4(submitting.pid, 0)
        submitting.returncode = os.waitstatus_to_exitcode(status)
    assert submitting.returncode == 0
    assert penstock(folder, env, "batch", "cancel", batch).returncode == 0
    return used.ru_maxrss * 1024


def test_a_large_input_is_never_in_memory(env: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "large.jsonl").open("w") as rows:
        for row in range(2_000):
            rows.write(f"{row} {'word ' * 6_000}\n")
    size_bytes = (tmp_path / "large.jsonl").stat().st_size
    assert size_bytes > 60_000_000
    grown_bytes = peak_bytes(tmp_path, env, "large.jsonl") - peak_bytes(tmp_path, env, prompts(tmp_path, 2))
    assert grown_bytes < size_bytes / 4


def test_clean_takes_the_files_from_the_server_once_results_are_written(
    stack: Stack, env: dict[str, str], tmp_path: Path
) -> None:
    words = ("--input", prompts(tmp_path, 3), "--output", "out", "--max-tokens", "2", "--clean", "--json")
    ran = penstock(tmp_path, env, "batch", *words)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    for name in ("input_file_id", "output_file_id"):
        assert get(f"{stack.apis[0].url}/v1/files/{found[name]}")[0] == 404
    assert len((tmp_path / "out").read_text().splitlines()) == 3


def test_clean_leaves_the_files_when_fewer_rows_came_than_the_batch_counts(
    stack: Stack, env: dict[str, str], tmp_path: Path
) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 2), "--max-tokens", "1")
    assert penstock(tmp_path, env, "batch", "watch", batch).returncode == 0
    with redis.Redis(port=stack.redis_port) as server:
        server.hincrby(GlobalKeys().batch(batch), "completed", 1)
    ran = penstock(tmp_path, env, "batch", "watch", batch, "--output", "out", "--clean")
    assert "stay on the server" in ran.stderr
    found = batch_of(stack, batch)
    for name in ("input_file_id", "output_file_id"):
        assert get(f"{stack.apis[0].url}/v1/files/{found[name]}")[0] == 200


def test_batches_are_listed_looked_at_and_known_by_their_metadata(env: dict[str, str], tmp_path: Path) -> None:
    name = prompts(tmp_path, 2)
    mine = [submitted(tmp_path, env, name, "--metadata", f"for={number}", "--max-tokens", "1") for number in range(3)]
    ran = penstock(tmp_path, env, "batch", "list", "--limit", "3", "--json")
    assert [batch["id"] for batch in json.loads(ran.stdout)] == mine[::-1]
    ran = penstock(tmp_path, env, "batch", "list", "--limit", "1", "--after", mine[1])
    assert mine[0] in ran.stdout
    assert mine[1] not in ran.stdout
    assert "for=0" in ran.stdout
    assert mine[2] in penstock(tmp_path, env, "batch", "status", mine[2]).stdout
    ran = penstock(tmp_path, env, "batch", "status", mine[2], "--json")
    assert json.loads(ran.stdout)["metadata"] == {"for": "2"}


def test_the_same_input_under_one_key_is_one_batch(env: dict[str, str], tmp_path: Path) -> None:
    words = (prompts(tmp_path, 2), "--max-tokens", "1", "--idempotency-key", "nightly-1")
    assert submitted(tmp_path, env, *words) == submitted(tmp_path, env, *words)


def test_windows_and_starts_reach_the_batch(env: dict[str, str], tmp_path: Path, stack: Stack) -> None:
    words = ("--window", "3h", "--start-after", "+1h", "--start-window", "22:00-06:00,Europe/Berlin")
    batch = submitted(tmp_path, env, prompts(tmp_path, 1), *words)
    found = batch_of(stack, batch)
    assert found["expires_at"] - found["created_at"] == 10_800
    assert found["start_window"] == {"from": "22:00", "to": "06:00", "timezone": "Europe/Berlin"}
    assert abs(found["start_after"] - found["created_at"] - 3_600) < 30
    assert penstock(tmp_path, env, "batch", "cancel", batch).returncode == 0
    ran = penstock(tmp_path, env, "batch", "submit", "prompts.jsonl", "--window", "9d")
    assert ran.returncode == 2
    assert "completion_window" in ran.stderr


def test_the_names_of_openais_sdk_say_where_and_who(stack: Stack, tmp_path: Path) -> None:
    where = {"OPENAI_BASE_URL": f"{stack.apis[1].url}/v1"}
    ran = penstock(tmp_path, environment(**where, OPENAI_API_KEY="second"), "batch", "list")
    assert (ran.returncode, ran.stdout) == (0, "No batches.\n")
    ran = penstock(tmp_path, environment(**where, OPENAI_API_KEY="third"), "batch", "list")
    assert ran.returncode == 1
    assert "not valid" in ran.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--input", "prompts.jsonl"), "--output"),
        (("--input", "prompts.jsonl", "--output", "/nowhere/out"), "/nowhere"),
        (("--input", "prompts.jsonl", "--output", "."), "folder"),
        (("--input", "missing", "--output", "out"), "missing cannot be read"),
        (("--output", "out"), "--input"),
        (("watch", "batch_x", "--clean"), "--clean"),
        (("list", "--limit", "0"), "above 0"),
        (("results",), "id"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_done(
    env: dict[str, str], tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    prompts(tmp_path, 1)
    ran = penstock(tmp_path, env, "batch", *words)
    assert ran.returncode == 2
    assert said in ran.stderr


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    ran = penstock(tmp_path, environment("http://127.0.0.1:9"), "batch", "list", within_s=20)
    assert ran.returncode == 1
    assert "penstock up" in ran.stderr


def test_whoever_reads_only_the_first_lines_sees_no_complaint(env: dict[str, str], tmp_path: Path) -> None:
    batch = submitted(tmp_path, env, prompts(tmp_path, 400), "--max-tokens", "30")
    assert penstock(tmp_path, env, "batch", "watch", batch).returncode == 0
    reader = subprocess.Popen(
        command("batch", "results", batch),
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stderr is not None
    with reader:
        reader.stdout.readline()
        reader.stdout.close()
        assert reader.stderr.read() == ""
        assert reader.wait(30) == 128 + signal.SIGPIPE

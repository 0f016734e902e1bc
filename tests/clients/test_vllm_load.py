"""The demo model, as a new user meets it: by each library's first lines, by `vllm bench serve`, guidellm and lm-eval.

No request fails, and texts and figures are those of plain requests. Runs in `make clients` only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import ENV, START_S, client_env
from tests.support.model_parts import ROOT
from tests.support.stack import Stack, running_stack

pytestmark = [pytest.mark.vllm, pytest.mark.load, pytest.mark.timeout(900)]

DEMO = ROOT / "models" / "demo"
NAME = "penstock-demo"
FLAGS = ("--served-model-name", NAME, "--enforce-eager", "--max-num-seqs", "8")
REQUESTS, OUTPUT_TOKENS = 40, 24
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What `vllm bench serve` does; vLLM's command does not start where its build for CPUs is installed."""
TASK = """
task: penstock_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
QUESTIONS = [
    {"question": "What is a queue?", "answer": " A line."},
    {"question": "What is a lane?", "answer": " A class of priority."},
    {"question": "What happens when a worker dies?", "answer": " Another one goes on."},
]


@pytest.fixture(scope="module")
def demo() -> Iterator[Stack]:
    with running_stack() as started:
        started.worker("--model", str(DEMO), "--", *FLAGS, engine="vllm", ready_s=START_S, env=ENV)
        started.api("--header-hold-s", "0.5", "--heartbeat-s", "0.5")  # so that streams that wait are commented
        yield started


def ran(command: list[str], folder: Path) -> str:
    """Runs a tool; its output. Fails with that when the tool has."""
    env = client_env() | {"HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_the_libraries_stream_what_it_says(demo: Stack, clients: Path, tmp_path: Path) -> None:
    program = Path(__file__).parent / "programs" / "with_demo_model.py"
    streamed = json.loads(ran([str(clients / "python"), str(program), f"{demo.apis[0].url}/v1"], tmp_path))
    asked = {"model": NAME, "messages": [{"role": "user", "content": "What is Penstock?"}], "temperature": 0}
    told = httpx.post(f"{demo.apis[0].url}/v1/chat/completions", json=asked, timeout=60).json()
    text = told["choices"][0]["message"]["content"]
    assert {library: "".join(pieces) for library, pieces in streamed.items()} == dict.fromkeys(streamed, text)
    assert len(streamed) == 5
    assert all(len(pieces) > 5 for pieces in streamed.values())


@pytest.mark.parametrize(
    ("backend", "path"),
    [
        ("vllm", "/v1/completions"),
        ("openai-chat", "/v1/chat/completions"),
        ("openai-responses", "/v1/responses"),
    ],
)
def test_vllm_bench_serve(demo: Stack, tmp_path: Path, backend: str, path: str) -> None:
    """More at once than the engine has slots for, so most requests wait in the queue, and are told so."""
    command = [sys.executable, "-c", BENCH, "--backend", backend, "--endpoint", path]
    command += ["--base-url", demo.apis[0].url, "--model", NAME, "--tokenizer", str(DEMO), "--dataset-name", "random"]
    command += ["--random-input-len", "40", "--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos"]
    command += ["--num-prompts", str(REQUESTS), "--save-result", "--save-detailed", "--result-filename", "result.json"]
    ran(command, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (REQUESTS, 0), result["errors"]
    assert result["total_output_tokens"] == REQUESTS * OUTPUT_TOKENS


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_guidellm(demo: Stack, clients: Path, tmp_path: Path, path: str) -> None:
    command = [str(clients / "guidellm"), "run", "--profile", "kind=concurrent,streams=12", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={demo.apis[0].url},model={NAME},request_format={path}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens=40,output_tokens={OUTPUT_TOKENS}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={DEMO}", "--output", "kind=json,path=result.json"]
    command += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
    ran(command, tmp_path)
    requests = json.loads((tmp_path / "result.json").read_text())["benchmarks"][0]["requests"]
    ended: dict[str, list[Any]] = {kind: requests[kind] for kind in ("successful", "incomplete", "errored")}
    assert {kind: len(ones) for kind, ones in ended.items()} == {"successful": REQUESTS, "incomplete": 0, "errored": 0}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lm_eval(demo: Stack, clients: Path, tmp_path: Path, batch_size: int) -> None:
    """Its likelihoods are those of plain requests, and so are the texts it has generated."""
    _tasks(tmp_path)
    url = f"{demo.apis[0].url}/v1/completions"
    command = [
        str(clients / "lm-eval"),
        "run",
        "--model",
        "local-completions",
        "--tasks",
        "penstock_says,penstock_likes",
    ]
    command += ["--model_args", f"model={NAME},base_url={url},num_concurrent=4,max_retries=1,tokenizer={DEMO}"]
    command += ["--include_path", str(tmp_path), "--output_path", "out", "--log_samples"]
    command += ["--batch_size", str(batch_size)]
    ran(command, tmp_path)
    for question, sample in zip(QUESTIONS, _samples(tmp_path, "says"), strict=True):
        asked = {"model": NAME, "prompt": question["question"], "max_tokens": 24, "temperature": 0, "stop": ["\n"]}
        text = httpx.post(url, json=asked, timeout=60).json()["choices"][0]["text"]
        assert sample["resps"][0][0] == text
    for question, sample in zip(QUESTIONS, _samples(tmp_path, "likes"), strict=True):
        likelihood = float(sample["resps"][0][0][0])
        assert likelihood == pytest.approx(_likelihood(url, **question), abs=0.5), "the engine rounds by batch"


def _tasks(folder: Path) -> None:
    """Two tasks that need nothing from a hub."""
    data = folder / "questions.jsonl"
    data.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
    says = 'generation_kwargs: {until: ["\\n"], max_gen_toks: 24}\nmetric_list: [{metric: exact_match}]'
    likes = "metric_list: [{metric: acc}]"
    for name, kind, more in (("says", "generate_until", says), ("likes", "loglikelihood", likes)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind, more=more))


def _samples(folder: Path, task: str) -> list[Any]:
    (file,) = (folder / "out").rglob(f"samples_penstock_{task}_*.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def _likelihood(url: str, question: str, answer: str) -> float:
    """The log probability of the answer's tokens behind the question."""
    asked = {"model": NAME, "prompt": question + answer, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    logprobs = httpx.post(url, json=asked, timeout=60).json()["choices"][0]["logprobs"]
    behind = [at >= len(question) for at in logprobs["text_offset"]]
    return sum(value for value, counts in zip(logprobs["token_logprobs"][:-1], behind, strict=False) if counts)

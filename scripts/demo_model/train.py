"""Trains the demo model from the corpus, checks it and writes its folder.

    python -m scripts.demo_model.train --out models/demo

Seeded; runs on a CPU within 20 minutes on two cores with fast bfloat16. Owns the training loop;
what is asked belongs to `dialogues.py`, what is measured to `evaluation.py`.
"""

import argparse
import math
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

if __package__ in (None, ""):  # started as a file: the repository root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from scripts.demo_model import augment, evaluation, network, offtopic
from scripts.demo_model.corpus import Entry, load_corpus, load_heldout
from scripts.demo_model.dialogues import IGNORED, DialogueSource, Encoder
from scripts.demo_model.tokenizer import CONTEXT_TOKENS, render, save_tokenizer, train_tokenizer

VOCAB_SIZE = 4096

# A pool of conversations is sorted by length and cut into batches, so that little of a batch is padding.
POOL_BATCHES = 32
# Few different widths let the kernels reuse what they prepared.
WIDTH_MULTIPLE = 32
WARMUP_STEPS = 150
CLIP_NORM = 1.0
LOG_EVERY = 100


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line sets."""

    out: Path
    steps: int
    minutes: float
    batch: int
    learning_rate: float
    threads: int
    seed: int
    precision: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded ids, shape (rows, tokens), and labels already shifted to the position that predicts them."""

    ids: torch.Tensor
    labels: torch.Tensor


def parse_options(arguments: Sequence[str]) -> Options:
    """Read the command line; exits with usage on an unknown flag."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo_model.train", description="Train the demo model.")
    parser.add_argument("--out", type=Path, default=Path("models/demo"), help="folder to write")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the schedule earlier than --steps would")
    parser.add_argument("--batch", type=int, default=24, help="conversations per step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    return Options(**vars(parser.parse_args(arguments)))


def choose_precision(wanted: str) -> str:
    """Return `bf16` or `fp32`; `auto` times a matrix product, since not every CPU has fast bfloat16."""
    if wanted != "auto":
        return wanted
    seconds: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.ones((1024, 1024), dtype=dtype)
        left @ left
        begin = time.perf_counter()
        for _ in range(5):
            left @ left
        seconds[name] = time.perf_counter() - begin
    return min(seconds, key=seconds.__getitem__)


def tokenizer_texts(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield the corpus as chats, in both cases, and the words of the off-topic questions."""
    for entry in entries:
        for question in entry.questions:
            yield render((("system", "You are a helpful assistant."), ("user", question), ("assistant", entry.answer)))
            yield question.lower()
    yield from offtopic.vocabulary()
    yield from augment.phrases()


def batches(source: DialogueSource, encoder: Encoder, rows: int, pad_id: int, seed: int) -> Iterator[Batch]:
    """Yield batches without end; each holds conversations of about the same length."""
    order = torch.Generator().manual_seed(seed)
    while True:
        pool = encoder.encode([source.conversation() for _ in range(rows * POOL_BATCHES)])
        pool.sort(key=lambda pair: len(pair[0]))
        for number in torch.randperm(POOL_BATCHES, generator=order).tolist():
            part = pool[number * rows : (number + 1) * rows]
            width = -(-max(len(ids) for ids, _ in part) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
            ids = torch.full((rows, width), pad_id)
            labels = torch.full((rows, width), IGNORED)
            for row, (row_ids, row_labels) in enumerate(part):
                ids[row, : len(row_ids)] = torch.tensor(row_ids)
                labels[row, : len(row_labels) - 1] = torch.tensor(row_labels[1:])
            yield Batch(ids, labels)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the mean loss of the answer tokens; logits are computed for those positions only."""
    # Padding stands at the right of causal attention, so no position that counts can see it and no mask is needed.
    hidden = network.hidden_states(model, batch.ids)
    counts = batch.labels != IGNORED
    logits = model.lm_head(hidden[counts])
    return functional.cross_entropy(logits.float(), batch.labels[counts])


def progress_at(step: int, elapsed_s: float, options: Options) -> float:
    """Return how much of the training is done, 0 to 1: by steps, or by time where `--minutes` limits it."""
    return max(step / options.steps, elapsed_s / (60 * options.minutes))


def learning_rate_at(step: int, progress: float, options: Options) -> float:
    """Return the learning rate: linear warm-up in steps, then a cosine in progress down to a fiftieth."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return options.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(model: LlamaForCausalLM, stream: Iterator[Batch], options: Options, precision: str) -> tuple[int, float]:
    """Train in place for `options.steps` steps or `options.minutes`, printing the loss now and then.

    Return the steps taken and the seconds of the fastest LOG_EVERY steps (infinity when there were fewer): what an idle
    machine would need.

    The model computes in `precision`; the optimizer works on float32 copies, because small steps vanish in bfloat16.
    """
    network.prepare_for_training(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    weights = list(model.parameters())
    masters = [weight.detach().clone().float().requires_grad_() for weight in weights]
    groups = [
        {"params": [master for master in masters if master.dim() > 1], "weight_decay": 0.05},
        {"params": [master for master in masters if master.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)
    begin = mark = time.perf_counter()
    fastest_s, total = math.inf, 0.0
    step = 0
    while (progress := progress_at(step, time.perf_counter() - begin, options)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, progress, options)
        loss = loss_of(model, next(stream))
        torch.autograd.backward(loss)
        for master, weight in zip(masters, weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, CLIP_NORM)
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights, strict=True):
                weight.copy_(master)
        model.zero_grad(set_to_none=True)
        total += loss.item()
        step += 1
        if step % LOG_EVERY == 0:
            now = time.perf_counter()
            print(f"step {step}/{options.steps}  loss {total / LOG_EVERY:.4f}  {now - begin:.0f} s", flush=True)
            fastest_s, mark, total = min(fastest_s, now - mark), now, 0.0
    return step, fastest_s


def cpu_name() -> str:
    """Return the CPU's family as Linux names it, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_card(folder: Path, facts: dict[str, object]) -> str:
    """Fill the card's template, write it as README.md and return it; raises KeyError when a fact is missing."""
    template = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    target = folder / "README.md"
    # The card states the size of the folder that it is part of; its own few bytes do not change the rounded figure.
    size_mb = f"{evaluation.folder_bytes(folder) / 1e6:.1f}"
    card = template.substitute(facts, size_mb=size_mb)
    target.write_text(card, encoding="utf-8")
    return card


def measure(folder: Path, entries: Sequence[Entry]) -> dict[str, object]:
    """Load the saved model and return its scores for the card; wrong answers are printed."""
    model, tokenizer = network.load(folder)
    heldout = load_heldout()
    scores = {
        "trained": evaluation.score(model, tokenizer, evaluation.trained_cases(entries)),
        "heldout": evaluation.score(model, tokenizer, evaluation.heldout_cases(entries, heldout)),
        "heldout_system": evaluation.score(
            model, tokenizer, evaluation.heldout_cases(entries, heldout, "You are a helpful assistant.")
        ),
    }
    for name, result in scores.items():
        for question, answer in result.wrong:
            print(f"wrong ({name}): {question!r} -> {answer!r}")
    return {name: str(result) for name, result in scores.items()}


def main(arguments: Sequence[str]) -> None:
    """Train, save, measure and describe the model."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    precision = choose_precision(options.precision)
    entries = load_corpus()
    tokenizer = train_tokenizer(tokenizer_texts(entries), VOCAB_SIZE)
    heldout = [item.question for item in load_heldout()]
    source, encoder = DialogueSource(entries, heldout, options.seed), Encoder(tokenizer)
    longest = max(len(ids) for ids, _ in encoder.encode([source.conversation() for _ in range(1000)]))
    model = network.build(tokenizer)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(tokenizer)} tokens, {len(entries)} entries, {precision}", flush=True
    )

    begin = time.perf_counter()
    stream = batches(source, encoder, options.batch, tokenizer.pad_token_id, options.seed)
    steps, fastest_s = train(model, stream, options, precision)
    minutes = (time.perf_counter() - begin) / 60

    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    network.save(model, options.out)
    save_tokenizer(tokenizer, options.out)
    facts: dict[str, object] = {
        "layers": network.LAYERS,
        "hidden": network.HIDDEN,
        "heads": network.HEADS,
        "head_dim": network.HEAD_DIM,
        "vocab": len(tokenizer),
        "parameters": f"{parameters / 1e6:.2f}",
        "context": CONTEXT_TOKENS,
        "longest": longest,
        "entries": len(entries),
        "phrasings": sum(len(entry.questions) for entry in entries),
        "minutes": f"{minutes:.0f}",
        "window": LOG_EVERY,
        "fastest_s": f"{fastest_s:.0f}",
        "precision": precision,
        "cpu": cpu_name(),
        "steps": steps,
        "limit": "" if math.isinf(options.minutes) else f" --minutes {options.minutes:g}",
        **{name: getattr(options, name) for name in ("threads", "seed")},
        **measure(options.out, entries),
    }
    print(write_card(options.out, facts))


if __name__ == "__main__":
    main(sys.argv[1:])

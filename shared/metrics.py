"""Every metric of Penstock. None is declared anywhere else, and no label is ever an id.

Names: `penstock_<noun>_<unit>[_total]`, in base units. The engine's own metrics (`vllm:…`) appear in the same
exposition of a worker.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram

M = TypeVar("M", Counter, Gauge, Histogram)


@cache
def child(metric: M, *values: str) -> M:
    """The metric with these label values, in the order of its labels. Looking it up costs more than counting does.

    Kept for ever, as prometheus_client itself keeps it: values must come from a small set.
    """
    return metric.labels(*values)


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

HTTP_REQUESTS = Counter("penstock_http_requests_total", "HTTP requests answered.", ["route", "method", "code"])
ADMITTED = Counter("penstock_requests_admitted_total", "Requests put on the queue.", ["lane", "model"])
PROMPT_TOKENS = Counter(
    "penstock_prompt_tokens_counted_total",
    "Prompt tokens as this replica counted them at admission: with the model's tokenizer, or by an estimate.",
    ["how"],
)
JOINED = Counter("penstock_requests_joined_total", "Requests that joined one that was sent before.", ["status"])
REJECTED = Counter("penstock_requests_rejected_total", "Requests refused, by error code.", ["code"])
FINISHED = Counter(
    "penstock_requests_finished_total", "Requests relayed to their end by this replica.", ["lane", "model", "outcome"]
)
TTFT = Histogram(
    "penstock_time_to_first_token_seconds",
    "From acceptance at the replica to the first byte of the answer.",
    ["lane", "model"],
    buckets=_SECONDS,
)
DURATION = Histogram(
    "penstock_request_duration_seconds", "From acceptance to the end.", ["lane", "model"], buckets=_SECONDS
)
STREAMS_OPEN = Gauge("penstock_streams_open", "Requests that this replica is relaying now.")
GAP_REPAIRS = Counter("penstock_gap_repairs_total", "Times a reader went to the log.", ["cause"])
RESUBSCRIBES = Counter("penstock_resubscribes_total", "Times the subscriber connection was made anew.")

REAPER_CONDEMNED = Counter("penstock_workers_condemned_total", "Workers that this process declared dead.")
REAPER_REQUEUED = Counter(
    "penstock_requests_requeued_total", "Requests taken from dead workers by this process.", ["outcome"]
)
REAPER_EXPIRED = Counter("penstock_deadlines_swept_total", "Deadlines found passed by this process.", ["outcome"])

RELEASED = Counter("penstock_suspects_released_total", "Requests that this process let out of quarantine.")

CLAIMS = Counter("penstock_claims_total", "Claims of this worker.", ["outcome"])
ATTEMPTS = Counter("penstock_attempts_total", "Attempts that ended on this worker.", ["lane", "outcome"])
RESUMES = Counter(
    "penstock_resumes_total", "Attempts at requests of which something was published before, by policy.", ["policy"]
)
PREEMPTIONS = Counter(
    "penstock_preemptions_total", "Batch attempts that had to give their slot, by how they ended.", ["outcome"]
)
ATTEMPTS_RUNNING = Gauge("penstock_attempts_running", "Attempts that run on this worker now.")
QUEUE_WAIT = Histogram("penstock_queue_wait_seconds", "From admission to the first claim.", ["lane"], buckets=_SECONDS)
SLOTS = Gauge("penstock_worker_slots", "Sequences that this worker runs at once.")
TOKENS = Counter("penstock_tokens_total", "Tokens counted by the engine.", ["kind"])
FLUSHES = Counter("penstock_flushes_total", "Flushes to Redis.")
FLUSHED_FRAMES = Counter("penstock_flushed_frames_total", "Frames written by flushes.")
FLUSH_SECONDS = Histogram(
    "penstock_flush_duration_seconds",
    "Round trip of one flush.",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
FENCED = Counter(
    "penstock_fenced_appends_total", "Frames that the server refused because another attempt owns the request."
)
RENEWALS = Counter(
    "penstock_worker_renewals_total", "Times this worker found itself condemned and went on under a new id."
)
RECONCILED = Counter("penstock_reconciled_total", "Requests that were this worker's and unknown to it, handed back.")
RESTORED = Counter(
    "penstock_restores_total", "Requests that this worker wanted back after Redis lost history.", ["outcome"]
)
STALLS = Counter("penstock_worker_stalls_total", "Times this worker gave itself up because nothing moved any more.")
ORPHANED = Counter("penstock_orphans_stopped_total", "Requests stopped because nobody followed them any more.")
ENGINE_UP = Gauge("penstock_engine_up", "1 while the engine serves.")
MODEL_LOAD = Gauge("penstock_model_load_seconds", "How long the engine took to start.")

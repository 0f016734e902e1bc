"""Every metric of Penstock but those of GPUs (`gpu_metrics.py`).

None is declared anywhere else, and no label is ever an id of a request or a process.

Names: `penstock_<noun>_<unit>[_total]`, in base units. The engine's own metrics (`vllm:…`) appear in the same
exposition of a worker.

Processes count what they do themselves, here with Counter, Gauge and Histogram. What a pool's queues look like is read
from Redis by every replica when it is scraped (`api/queues.py`), so those metrics are declared as `Reading`: every
replica says the same, and there is no value at all while Redis is away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from prometheus_client import Counter, Gauge, Histogram

M = TypeVar("M", Counter, Gauge, Histogram)


@cache
def child(metric: M, *values: str) -> M:
    """The metric with these label values, in the order of its labels. Looking it up costs more than counting does.

    Kept for ever, as prometheus_client itself keeps it: values must come from a small set.
    """
    return metric.labels(*values)


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric whose values are read from Redis."""

    name: str
    help: str
    labels: tuple[str, ...]
    kind: Literal["gauge", "counter"] = "gauge"

    @property
    def documentation(self) -> str:
        """The help text, with what a query has to know."""
        return f"{self.help} Read from Redis, the same from every replica: take the max over them, never the sum."


Value = tuple[Reading, tuple[str, ...], float]
"""A reading, the values of its labels, its own."""


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_FIRST_BYTE_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120, 300, 600)
"""With the bounds that docs/slo.md promises among them: a share below a bound is counted, not interpolated."""

BUILD = Gauge("penstock_build_info", "1; the version that runs, and as what.", ["role", "version"])

HTTP_REQUESTS = Counter("penstock_http_requests_total", "HTTP requests answered.", ["route", "method", "code"])
HTTP_DURATION = Histogram(
    "penstock_http_request_duration_seconds",
    "From the head of a request to the end of its response, streams included.",
    ["route"],
    buckets=_SECONDS,
)
AUTH_FAILURES = Counter(
    "penstock_auth_failures_total", "Requests without a usable key: missing, invalid, not_admin.", ["kind"]
)
ADMITTED = Counter("penstock_requests_admitted_total", "Requests put on the queue.", ["lane", "model"])
PROMPT_TOKENS = Counter(
    "penstock_prompt_tokens_counted_total",
    "Prompt tokens as this replica counted them at admission: with the model's tokenizer, or by an estimate.",
    ["how"],
)
IMAGES = Counter(
    "penstock_images_fetched_total",
    "Images that requests named by URL: fetched, refused, unreachable, failed, too_large, wrong_type, timeout.",
    ["outcome"],
)
FILE_UPLOADS = Counter(
    "penstock_file_uploads_total", "Uploads of files: stored, replayed, refused, broken_off, failed.", ["outcome"]
)
FILE_BYTES = Counter("penstock_file_bytes_total", "Bytes of files that came in and went out.", ["direction"])
FILE_TRANSFERS = Gauge("penstock_file_transfers_open", "Uploads and downloads that run on this replica.", ["direction"])
JOINED = Counter("penstock_requests_joined_total", "Requests that joined one that was sent before.", ["status"])
IDEMPOTENCY = Counter(
    "penstock_idempotency_total",
    "Requests with a key, and retries, by what became of them: created, attached, replayed, coalesced, or refused with "
    "the code of an error.",
    ["outcome"],
)
STREAMS_RESUMED = Counter(
    "penstock_streams_resumed_total", "Streams that clients went on with where they had broken off, by route.", ["via"]
)
DISCONNECTS = Counter(
    "penstock_client_disconnects_total",
    "Clients that hung up: while they waited, or with a part of the answer.",
    ["phase"],
)
REJECTED = Counter("penstock_requests_rejected_total", "Errors told to clients, by code.", ["code"])
TURNED_AWAY = Counter(
    "penstock_requests_turned_away_total",
    "Requests that got no place on the queue, by reason: admit's answer, or an error code.",
    ["lane", "model", "reason"],
)
FINISHED = Counter(
    "penstock_requests_finished_total", "Requests relayed to their end by this replica.", ["lane", "model", "outcome"]
)
TTFT = Histogram(
    "penstock_time_to_first_token_seconds",
    "From acceptance at the replica to the first byte of a streamed answer; not of one that is gone on with.",
    ["lane", "model"],
    buckets=_FIRST_BYTE_S,
)
DURATION = Histogram(
    "penstock_request_duration_seconds", "From acceptance to the end.", ["lane", "model"], buckets=_SECONDS
)
STREAMS_OPEN = Gauge("penstock_streams_open", "Requests that this replica is relaying now.")
BROKER_UP = Gauge("penstock_broker_up", "1 when the last scrape of this replica could read the queues from Redis.")
REDIS_PING = Gauge("penstock_redis_ping_seconds", "Round trip of this replica's last PING, made when it was scraped.")
USAGE_UNREAD = Counter(
    "penstock_tenant_usage_unread_total",
    "Ended requests that are in no tenant's metric here, since too many ended between two scrapes.",
)
GAP_REPAIRS = Counter("penstock_gap_repairs_total", "Times a reader went to the log.", ["cause"])
RESUBSCRIBES = Counter("penstock_resubscribes_total", "Times the subscriber connection was made anew.")

REAPER_CONDEMNED = Counter("penstock_workers_condemned_total", "Workers that this process declared dead.")
REAPER_REQUEUED = Counter(
    "penstock_requests_requeued_total", "Requests taken from dead workers by this process.", ["outcome"]
)
child(
    REAPER_REQUEUED, "OK"
)  # at 0 from the start: the first ones would be no increase otherwise, and there an alert looks
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
QUEUE_WAIT = Histogram(
    "penstock_queue_wait_seconds", "From admission to the first claim.", ["lane", "model"], buckets=_SECONDS
)
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

BATCHES_ACTIVE = Gauge(
    "penstock_batches_active", "Batches that have not ended; every process says the same.", ["status"]
)
BATCH_ROWS_OPEN = Gauge(
    "penstock_batch_rows", "Rows of these batches: completed, failed, left; every process says the same.", ["state"]
)
BATCH_OLDEST_AGE = Gauge(
    "penstock_batch_oldest_age_seconds", "Since the oldest batch that has not ended was made; 0 without one."
)
BATCH_LEFT_SECONDS = Gauge(
    "penstock_batch_left_seconds", "Until the slowest batch will be done, as fast as it is now; 0 when not known."
)
BATCHES_LATE = Gauge(
    "penstock_batches_late",
    "Batches that will not be done before they expire, as fast as they are now; every process says the same.",
)
WEBHOOKS_PENDING = Gauge(
    "penstock_webhooks_pending", "Ends of batches that are to be told, now or later; every process says the same."
)
WEBHOOKS = Counter(
    "penstock_webhook_attempts_total",
    "Webhooks that this process has tried: delivered, again (it will be tried again), given_up, gone, refused.",
    ["outcome"],
)
BATCH_ROWS = Counter("penstock_batch_rows_committed_total", "Rows committed by this process.", ["outcome"])
BATCH_COMMITS = Counter("penstock_batch_commits_total", "Parts of outputs that this process has written.", ["outcome"])
BATCH_TAKEOVERS = Counter(
    "penstock_batch_takeovers_total", "Batches that this process has taken from another driver, or again."
)
BATCH_DRIVERS = Gauge("penstock_batch_drivers", "Batches that this process drives now.")
BATCH_IN_FLIGHT = Gauge("penstock_batch_rows_in_flight", "Rows of its batches that wait or run now.")

_LANE, _MODEL = ("lane", "model"), ("model",)
QUEUE_DEPTH = Reading("penstock_queue_depth", "Requests that wait.", _LANE)
QUEUE_AGE = Reading(
    "penstock_queue_oldest_age_seconds", "How long the oldest request has been on its queue; 0 when empty.", _LANE
)
QUEUE_TOKENS = Reading("penstock_queue_work_tokens", "Tokens that what waits will cost.", _LANE)
QUEUE_BYTES = Reading("penstock_queue_body_bytes", "Bytes of the bodies of what waits.", _LANE)
QUEUE_TENANTS = Reading("penstock_queue_tenants", "Tenants of which something waits.", _LANE)
QUEUE_DRAIN = Reading(
    "penstock_queue_drain_per_second",
    "Requests/s by which it drained when it last had a backlog; absent before.",
    _LANE,
)
QUEUE_RETRYING = Reading(
    "penstock_queue_retrying",
    "Requests that wait and had started before: their worker was lost or gave them back.",
    _LANE,
)
LANE_FAIRNESS = Reading(
    "penstock_lane_fairness_ratio",
    "Jain's index over what the waiting tenants were served of their due; 1 is fair; absent below two.",
    _LANE,
)
LANE_AGED = Reading(
    "penstock_lane_aged_picks_total", "Requests picked out of turn because of their age.", _LANE, "counter"
)
LANE_PAUSED = Reading("penstock_lane_paused", "1 while nothing new is taken from it.", _LANE)
LANE_DRAINING = Reading("penstock_lane_draining", "1 while nothing new is let into it.", _LANE)
POOL_RUNNING = Reading("penstock_pool_running", "Requests that workers own.", _MODEL)
POOL_RUNNING_TOKENS = Reading(
    "penstock_pool_running_work_tokens", "Tokens that what runs costs in all, from the mean of late.", _MODEL
)
POOL_ARRIVING = Reading("penstock_pool_arriving_tokens_per_second", "Cost of what was admitted of late.", _MODEL)
POOL_PACE = Reading(
    "penstock_pool_worker_tokens_per_second", "Cost that one worker takes under a backlog; absent before one.", _MODEL
)
POOL_WORKERS = Reading("penstock_pool_workers", "Workers by state: ready, draining, lost.", ("model", "state"))
POOL_DEAD_LETTERS = Reading("penstock_pool_dead_letters", "Requests that were given up and are kept.", _MODEL)
WANTED_WORKERS = Reading("penstock_wanted_workers", "Workers that the work asks for, within the set bounds.", _MODEL)

REDIS_MEMORY_USED = Reading("penstock_redis_memory_used_bytes", "Memory that Redis uses.", ())
REDIS_MEMORY_MAX = Reading("penstock_redis_memory_max_bytes", "Memory that Redis may use; absent without a limit.", ())
REDIS_EVICTED = Reading(
    "penstock_redis_evicted_keys_total", "Keys that Redis threw away for want of memory.", (), "counter"
)
REDIS_EXPIRED = Reading("penstock_redis_expired_keys_total", "Keys whose time was up.", (), "counter")
REDIS_POLICY = Reading(
    "penstock_redis_maxmemory_policy_info", "1; what Redis does without memory: must be noeviction.", ("policy",)
)
REDIS_CLIENTS = Reading("penstock_redis_clients_connected", "Connections of clients.", ())
REDIS_COMMANDS = Reading("penstock_redis_commands_total", "Commands that Redis has run.", (), "counter")
REDIS_CPU = Reading("penstock_redis_cpu_seconds_total", "Processor time of Redis.", (), "counter")
REDIS_AOF = Reading("penstock_redis_aof_enabled", "1 when Redis keeps an append-only file.", ())
REDIS_AOF_OK = Reading(
    "penstock_redis_aof_ok", "1 when its last write and its last rewrite went well; absent without the file.", ()
)
REDIS_AOF_BYTES = Reading("penstock_redis_aof_size_bytes", "Size of the append-only file; absent without it.", ())
REDIS_SAVED = Reading(
    "penstock_redis_last_save_timestamp_seconds", "Unix time of the last snapshot that went well.", ()
)
REDIS_SAVE_OK = Reading("penstock_redis_save_ok", "1 when the last snapshot went well.", ())
REDIS_REPLICAS = Reading("penstock_redis_replicas_connected", "Servers that follow this one.", ())
REDIS_STARTED = Reading("penstock_redis_start_timestamp_seconds", "Unix time at which Redis started.", ())

TENANT_TOKENS = Reading(
    "penstock_tenant_recent_tokens",
    "Tokens of the requests that ended in the last five minutes, of the tenants with the most; the others as `other`.",
    ("tenant", "kind"),
)
TENANT_REQUESTS = Reading("penstock_tenant_recent_requests", "Those requests, of the same tenants.", ("tenant",))

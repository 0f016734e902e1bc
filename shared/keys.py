"""Every Redis key and channel that Penstock uses. Nothing else spells one.

All keys of a pool's shard carry the hash tag `{<pool>.<shard>}`, so that every script finds its keys in one slot of a
Redis Cluster. `docs/protocol.md` has the table of what each key holds; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DEFAULT_PREFIX = "ps"


@dataclass(frozen=True, slots=True)
class GlobalKeys:
    """Keys that belong to no pool."""

    prefix: str = DEFAULT_PREFIX

    @property
    def pools(self) -> str:
        """Hash: served model name → pool."""
        return f"{self.prefix}:pools"

    @property
    def known_pools(self) -> str:
        """Set: every pool that was ever registered and of which something is left."""
        return f"{self.prefix}:known"

    @property
    def cards(self) -> str:
        """Hash: served model name → its card of `/v1/models`, JSON, as it was said last."""
        return f"{self.prefix}:cards"

    def tokenizer(self, name: str) -> str:
        """String with a TTL: a tokenizer, packed (`shared/tokenizer.py`). Its name is the hash of its text."""
        return f"{self.prefix}:tok:{name}"

    def batch(self, batch: str) -> str:
        """Hash: a batch's facts and its owner (`shared/batches.py`). All keys of batches are in one slot."""
        return f"{self.prefix}:{{batches}}:b:{batch}"

    def batch_rows(self, batch: str) -> str:
        """Bitmap: rows of a batch that are committed."""
        return f"{self.prefix}:{{batches}}:rows:{batch}"

    def batch_parts(self, batch: str) -> str:
        """List: committed parts of a batch's output, in order, as `name rows bytes bytes`."""
        return f"{self.prefix}:{{batches}}:parts:{batch}"

    def batches_of(self, tenant: str) -> str:
        """Sorted set: a tenant's batches by id, which is by creation."""
        return f"{self.prefix}:{{batches}}:of:{tenant}"

    def batch_idempotency(self, scope_hash: str) -> str:
        """String: `id|fingerprint` of an idempotency key with which a batch was made."""
        return f"{self.prefix}:{{batches}}:idem:{scope_hash}"

    def batch_secret(self, batch: str) -> str:
        """String: the secret that signs a batch's webhook, where the batch has one of its own."""
        return f"{self.prefix}:{{batches}}:sec:{batch}"

    @property
    def batch_hooks(self) -> str:
        """Sorted set: batches whose end is to be told by webhook, by when, Unix ms."""
        return f"{self.prefix}:{{batches}}:hooks"

    @property
    def batch_hooks_read(self) -> str:
        """String: the last entry of `batches_ended` that webhooks know of."""
        return f"{self.prefix}:{{batches}}:hooked"

    @property
    def batches_active(self) -> str:
        """Sorted set: batches that have not ended, by creation (Unix ms)."""
        return f"{self.prefix}:{{batches}}:active"

    @property
    def batches_ended(self) -> str:
        """Stream: outbox of batches that have ended."""
        return f"{self.prefix}:{{batches}}:ended"

    @property
    def batch_jobs(self) -> str:
        """Sorted set: arq's queue of the batch processes. Its jobs are `arq:job:<prefix>:…`."""
        return f"{self.prefix}:{{batches}}:jobs"

    def file(self, file_id: str) -> str:
        """Hash: the facts of a stored file (`shared/file_index.py`)."""
        return f"{self.prefix}:{{files}}:f:{file_id}"

    def tenant_files(self, tenant_hash: str) -> str:
        """Sorted set, all scores 0: a tenant's files by id, which is by creation."""
        return f"{self.prefix}:{{files}}:t:{tenant_hash}"

    @property
    def file_bytes(self) -> str:
        """Hash: tenant's hash → bytes that it stores."""
        return f"{self.prefix}:{{files}}:used"

    @property
    def file_expiries(self) -> str:
        """Sorted set: files that expire, by when, Unix s."""
        return f"{self.prefix}:{{files}}:exp"

    def file_idempotency(self, scope_hash: str) -> str:
        """String with a TTL: `file id|fingerprint` of an upload's idempotency key."""
        return f"{self.prefix}:{{files}}:idem:{scope_hash}"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one shard of one pool."""

    pool: str
    shard: int = 0
    prefix: str = DEFAULT_PREFIX
    base: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # made once: keys are spelled on the path of every token
        object.__setattr__(self, "base", f"{self.prefix}:{{{self.pool}.{self.shard}}}:")

    def queue(self, name: str) -> str:
        """Stream with group `g`: undelivered requests. Entries are deleted at claim, so XLEN is the depth."""
        return f"{self.base}q:{name}"

    def fair(self, name: str) -> str:
        """Sorted set: a lane's undelivered entries by start tag, in tokens; the smallest is served first."""
        return f"{self.base}fair:{name}"

    def ledger(self, name: str) -> str:
        """Hash: a queue's sums and its tenants' shares and tags. Gone while the queue is empty. See `enqueue.lua`."""
        return f"{self.base}led:{name}"

    def record(self, rid: str) -> str:
        """Hash: the request's state and its facts."""
        return f"{self.base}r:{rid}"

    def body(self, rid: str) -> str:
        """String: the request as wire.Request; deleted when the request ends."""
        return f"{self.base}b:{rid}"

    def log(self, rid: str) -> str:
        """String: frames, appended in order. A byte offset into it is a cursor."""
        return f"{self.base}o:{rid}"

    def channel(self, rid: str) -> str:
        """Channel: live frames of one request."""
        return f"{self.base}ch:{rid}"

    def control(self, wid: str) -> str:
        """Channel: control messages to a worker, sooner than its box."""
        return f"{self.base}ctl:{wid}"

    def idempotency(self, scope_hash: str) -> str:
        """String: `rid|fingerprint` of an idempotency key."""
        return f"{self.base}idem:{scope_hash}"

    def response(self, rid: str) -> str:
        """String: what was asked of a stored response, packed (`api/responses/store.py`)."""
        return f"{self.base}rs:{rid}"

    def response_object(self, rid: str) -> str:
        """String: a stored response as it ended, packed."""
        return f"{self.base}ro:{rid}"

    def lease(self, wid: str) -> str:
        """String with a TTL: the worker lives."""
        return f"{self.base}w:{wid}"

    def dead(self, wid: str) -> str:
        """String with a TTL: the worker is condemned, for good."""
        return f"{self.base}dead:{wid}"

    def run(self, wid: str) -> str:
        """Hash: rid → attempt id of what the worker owns."""
        return f"{self.base}run:{wid}"

    def box(self, wid: str) -> str:
        """List: control messages to the worker."""
        return f"{self.base}box:{wid}"

    @property
    def sched(self) -> str:
        """Hash: the lanes' passes, virtual time, aging credit, drain rates, next turns of the refused; cold start."""
        return f"{self.base}sched"

    @property
    def lanes(self) -> str:
        """Hash: `<lane>.<setting>` → value, where it differs from what processes were started with."""
        return f"{self.base}lanes"

    @property
    def output(self) -> str:
        """Hash: `t:<tenant>` and `pool` → moving average of a sequence's length, in tokens."""
        return f"{self.base}out"

    @property
    def tenants(self) -> str:
        """Hash: tenant → requests in the system."""
        return f"{self.base}ten"

    @property
    def deadlines(self) -> str:
        """Sorted set: rid by deadline, Unix ms."""
        return f"{self.base}dl"

    @property
    def workers(self) -> str:
        """Hash: worker id → wire.WorkerCard."""
        return f"{self.base}ws"

    @property
    def finished(self) -> str:
        """Stream: outbox of finished requests."""
        return f"{self.base}fin"

    @property
    def suspect(self) -> str:
        """String: rid of the request that was let out of quarantine last."""
        return f"{self.base}suspect"

    @property
    def redriven(self) -> str:
        """Hash: entry of a dead letter → rid under which it was admitted again."""
        return f"{self.base}redriven"

    @property
    def dead_letters(self) -> str:
        """Stream: requests that were given up, with body."""
        return f"{self.base}dlq"

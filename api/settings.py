"""Settings of a replica."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, SecretStr

from api.scaling import Targets
from shared.outcomes import Bounds
from shared.settings import Settings


class ApiSettings(Settings):
    """A Penstock replica: answers HTTP, puts requests on the queue, relays their answers."""

    LEGACY_ENV: ClassVar[dict[str, tuple[str, ...]]] = {
        **Settings.LEGACY_ENV,
        "api_keys": ("GATEWAY_API_KEYS", "VLLM_API_KEY"),
        "queue_max": ("QUEUE_MAX", "QUEUE_CAPACITY"),
        "queue_timeout_s": ("QUEUE_TIMEOUT_S",),
        "request_timeout_s": ("REQUEST_TIMEOUT_S",),
        "tenant_max": ("MAX_CONCURRENT_REQUESTS",),
    }

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    api_keys: SecretStr = Field(
        SecretStr(""), description="comma-separated keys that clients must send; empty lets everybody in"
    )
    admin_keys: SecretStr = Field(
        SecretStr(""), description="comma-separated keys for /v1/admin; empty keeps it closed"
    )
    max_body_bytes: int = Field(10_000_000, ge=1024, description="largest request body")
    queue_max: int = Field(5_000, ge=1, description="most requests that may wait in one lane")
    queue_max_bytes: int = Field(1 << 30, ge=1, description="most bytes of request bodies that may wait in one lane")
    queue_max_tokens: int = Field(50_000_000, ge=1, description="most tokens of work that may wait in one lane")
    tenant_share: float = Field(0.9, gt=0, le=1, description="most of a lane's queue that one tenant may hold")
    tenant_max: int = Field(10_000, ge=1, description="most requests that one tenant may have in the system")
    queue_timeout_s: float = Field(600, gt=0, description="seconds that a request may wait for a worker")
    request_timeout_s: float = Field(3600, gt=0, description="seconds that a request may take in all")
    header_hold_s: float = Field(5, gt=0, description="seconds for which a stream's headers wait for the first frame")
    disconnect_grace_s: float = Field(
        10, ge=0, description="seconds for which a request whose client is gone waits for it to come back"
    )
    idempotency_ttl_s: int = Field(
        86_400, ge=10, description="seconds for which the answer of a request with an Idempotency-Key stays"
    )
    heartbeat_s: float = Field(10, gt=0, description="seconds between comments on a silent stream")
    redis_grace_s: float = Field(30, gt=0, description="seconds for which streams wait for a Redis that is away")
    memory_limit: float = Field(
        0.8, gt=0, le=1, description="share of Redis's maxmemory above which nothing new is admitted"
    )
    lost_grace_s: float = Field(
        10, ge=0, description="seconds for which streams wait for their worker to bring back what Redis has lost"
    )
    drain_s: float = Field(30, ge=0, description="seconds that open streams get when the replica stops")

    scale_min: int = Field(1, ge=0, description="least penstock_wanted_workers; 0 lets a pool without work have none")
    scale_max: int = Field(100, ge=1, description="most penstock_wanted_workers")
    scale_drain_s: float = Field(
        60, gt=0, description="seconds in which the workers that are wanted do what waits and runs"
    )
    scale_age_s: float = Field(
        2, gt=0, description="seconds that an interactive request may wait before one more worker is wanted"
    )

    @property
    def scale_targets(self) -> Targets:
        """What `penstock_wanted_workers` aims at."""
        return Targets(self.scale_min, self.scale_max, self.scale_drain_s, self.scale_age_s)

    @property
    def bounds(self) -> Bounds:
        """The bounds of each lane."""
        return Bounds(self.queue_max, self.queue_max_bytes, self.queue_max_tokens, self.tenant_share)

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys."""
        return _split(self.api_keys)

    @property
    def admins(self) -> tuple[str, ...]:
        """The admin keys."""
        return _split(self.admin_keys)


def _split(keys: SecretStr) -> tuple[str, ...]:
    return tuple(key.strip() for key in keys.get_secret_value().split(",") if key.strip())

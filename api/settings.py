"""Settings of a replica."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from api.bylane import Mode, by_lane, mode, seconds
from api.files.upload import UploadRules
from api.hooks import HookRules
from api.images import Rules
from api.limits import Limits
from api.reach import hosts_of, networks_of
from api.scaling import Targets
from shared.file_index import Quota
from shared.lanes import Lane
from shared.outcomes import Bounds
from shared.settings import Settings


class ApiSettings(Settings):
    """A Penstock replica: answers HTTP, puts requests on the queue, relays their answers."""

    LEGACY_ENV: ClassVar[dict[str, tuple[str, ...]]] = {
        **Settings.LEGACY_ENV,
        "api_keys": ("GATEWAY_API_KEYS", "VLLM_API_KEY"),
        "queue_max": ("QUEUE_MAX", "QUEUE_CAPACITY"),
        "queue_mode": ("QUEUE_MODE",),
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
    access_log: bool = Field(False, description="one line in the log for each HTTP request")
    max_body_bytes: int = Field(10_000_000, ge=1024, description="largest request body")
    max_json_depth: int = Field(100, ge=8, le=500, description="most levels of objects and lists in a request body")
    max_messages: int = Field(2_048, ge=1, description="most messages of a conversation")
    max_inputs: int = Field(2_048, ge=1, description="most texts of an embedding, a score or a classification")
    max_n: int = Field(128, ge=1, le=1_024, description="most choices of one request")
    max_tools: int = Field(128, ge=1, description="most tools of one request")
    max_stops: int = Field(4, ge=1, description="most stop strings of one request; vLLM has a limit of its own, also 4")
    max_schema_bytes: int = Field(131_072, ge=256, description="largest JSON schema: of an answer, or of a tool")
    max_prompt_tokens: int = Field(0, ge=0, description="most tokens of a prompt; 0: what the model can read")
    fetch_images: str = Field(
        "off", description="from where images are fetched that requests name by http(s) URLs: off, any, or hosts"
    )
    fetch_images_networks: str = Field(
        "", description="networks from which images are fetched although they are not public, as 10.1.0.0/16"
    )
    fetch_images_most: int = Field(16, ge=1, description="most images of one request that are fetched")
    fetch_images_bytes: int = Field(7_000_000, ge=1024, description="largest image that is fetched")
    fetch_images_timeout_s: float = Field(10, gt=0, description="seconds in which all images of a request must come")
    fetch_images_at_once: int = Field(16, ge=1, le=256, description="images that are fetched at the same time")
    webhook_hosts: str = Field(
        "off", description="to which hosts webhooks of batches go that their clients ask for: off, any, or hosts"
    )
    webhook_networks: str = Field(
        "", description="networks to which such webhooks go although they are not public, as 10.1.0.0/16"
    )
    webhook_http: bool = Field(False, description="let such webhooks go to http:// URLs, too")
    storage_url: str = Field(
        "", description="where files are kept: a folder, s3://, gs:// or az://bucket/prefix; empty: there are no files"
    )
    max_file_bytes: int = Field(512_000_000, ge=1, description="largest uploaded file")
    max_batch_file_bytes: int = Field(200_000_000, ge=1, description="largest uploaded file of purpose batch")
    tenant_file_bytes: int = Field(100_000_000_000, ge=0, description="most bytes that one tenant may store; 0: any")
    tenant_files: int = Field(10_000, ge=0, description="most files that one tenant may store; 0: any")
    uploads_at_once: int = Field(16, ge=1, le=1_024, description="uploads at the same time; each takes about 16 MB")
    upload_idle_s: float = Field(60, gt=0, description="seconds without a byte after which an upload is given up")
    queue_max: int = Field(5_000, ge=1, description="most requests that may wait in one lane")
    queue_max_bytes: int = Field(1 << 30, ge=1, description="most bytes of request bodies that may wait in one lane")
    queue_max_tokens: int = Field(50_000_000, ge=1, description="most tokens of work that may wait in one lane")
    tenant_share: float = Field(0.9, gt=0, le=1, description="most of a lane's queue that one tenant may hold")
    tenant_max: int = Field(10_000, ge=1, description="most requests that one tenant may have in the system")
    queue_mode: str = Field(
        "queue", description="queue, or reject what no slot is free for; by lane: `queue,interactive=reject`"
    )
    queue_timeout_s: str = Field(
        "600", description="seconds that a request may wait for a worker; by lane: `600,batch=86400`"
    )
    request_timeout_s: str = Field(
        "3600", description="seconds that a request may take in all; by lane: `3600,batch=90000`"
    )
    max_lane: Literal["interactive", "standard", "batch"] = Field(
        "interactive", description="highest lane here; who asks for a higher one gets this one"
    )
    max_lane_strict: bool = Field(False, description="refuse who asks for a higher lane than --max-lane instead")
    cold_start_s: float = Field(
        30, gt=0, description="seconds that a worker takes to start, as long as none of its pool has said so"
    )
    cold_start_hold_s: float = Field(
        0, ge=0, description="seconds that requests wait while no worker of their model lives; 0: refuse them"
    )
    header_hold_s: float = Field(5, gt=0, description="seconds for which a stream's headers wait for the first frame")
    disconnect_grace_s: float = Field(
        10, ge=0, description="seconds for which a request whose client is gone waits for it to come back"
    )
    idempotency_ttl_s: int = Field(
        86_400, ge=10, description="seconds for which the answer of a request with an Idempotency-Key stays"
    )
    responses_ttl_s: int = Field(
        86_400, ge=10, description="seconds for which a response of /v1/responses can be retrieved and gone on with"
    )
    heartbeat_s: float = Field(10, gt=0, description="seconds between comments on a silent stream")
    redis_grace_s: float = Field(30, gt=0, description="seconds for which streams wait for a Redis that is away")
    memory_limit: float = Field(
        0.8, gt=0, le=1, description="share of Redis's maxmemory above which nothing new is admitted"
    )
    lost_grace_s: float = Field(
        10, ge=0, description="seconds for which streams wait for their worker to bring back what Redis has lost"
    )
    metrics_tenants: int = Field(
        20, ge=0, le=1_000, description="tenants that the metrics name, those with the most tokens of late; 0: none"
    )
    drain_s: float = Field(30, ge=0, description="seconds that open streams get when the replica stops")

    @field_validator("queue_timeout_s", "request_timeout_s")
    @classmethod
    def _spans(cls, text: str) -> str:
        by_lane(text, seconds, 1.0)
        return text

    @field_validator("fetch_images", "webhook_hosts")
    @classmethod
    def _hosts(cls, text: str) -> str:
        hosts_of(text)
        return text

    @field_validator("fetch_images_networks", "webhook_networks")
    @classmethod
    def _networks(cls, text: str) -> str:
        networks_of(text)
        return text

    @field_validator("scale_max")
    @classmethod
    def _most(cls, most: int, info: ValidationInfo) -> int:
        least = info.data.get("scale_min", 0)
        if most < least:
            msg = f"must be at least scale_min, which is {least}"
            raise ValueError(msg)
        return most

    @field_validator("queue_mode")
    @classmethod
    def _modes(cls, text: str) -> str:
        by_lane(text, mode, "queue")
        return text

    @cached_property
    def queue_timeouts_s(self) -> dict[Lane, float]:
        """How long a request may wait for a worker, by lane."""
        return by_lane(self.queue_timeout_s, seconds, float(_default("queue_timeout_s")))

    @cached_property
    def request_timeouts_s(self) -> dict[Lane, float]:
        """How long a request may take in all, by lane."""
        return by_lane(self.request_timeout_s, seconds, float(_default("request_timeout_s")))

    @cached_property
    def queue_modes(self) -> dict[Lane, Mode]:
        """What each lane does with a request that no slot is free for."""
        return by_lane(self.queue_mode, mode, "queue")

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

    @cached_property
    def limits(self) -> Limits:
        """How much one request may ask for."""
        return Limits(
            depth=self.max_json_depth,
            messages=self.max_messages,
            inputs=self.max_inputs,
            n=self.max_n,
            tools=self.max_tools,
            stops=self.max_stops,
            schema_bytes=self.max_schema_bytes,
        )

    @property
    def uploads_each(self) -> int:
        """Uploads of one tenant at the same time: half of all, where there may be other tenants."""
        return max(1, self.uploads_at_once // 2) if self.keys else self.uploads_at_once

    @property
    def upload_rules(self) -> UploadRules:
        """What may be uploaded."""
        return UploadRules(self.max_batch_file_bytes, self.max_file_bytes, self.upload_idle_s)

    @property
    def file_quota(self) -> Quota:
        """What one tenant may store."""
        return Quota(self.tenant_file_bytes, self.tenant_files)

    @property
    def image_rules(self) -> Rules:
        """Which images are fetched, and how."""
        return Rules(
            hosts=hosts_of(self.fetch_images),
            networks=networks_of(self.fetch_images_networks),
            most=self.fetch_images_most,
            most_bytes=self.fetch_images_bytes,
            timeout_s=self.fetch_images_timeout_s,
            at_once=self.fetch_images_at_once,
            body_bytes=self.max_body_bytes,
        )

    @property
    def hook_rules(self) -> HookRules:
        """Where webhooks may go that clients ask for."""
        return HookRules(hosts_of(self.webhook_hosts), networks_of(self.webhook_networks), self.webhook_http)

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys."""
        return _split(self.api_keys)

    @property
    def admins(self) -> tuple[str, ...]:
        """The admin keys."""
        return _split(self.admin_keys)

    @property
    def secrets(self) -> tuple[str, ...]:
        """See Settings."""
        return (*super().secrets, *self.keys, *self.admins)


def _default(field: str) -> str:
    return str(ApiSettings.model_fields[field].default)


def _split(keys: SecretStr) -> tuple[str, ...]:
    return tuple(key.strip() for key in keys.get_secret_value().split(",") if key.strip())

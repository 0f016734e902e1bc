"""Settings of a batch process: those of a replica, since it admits rows as a replica admits requests, and its own."""

from __future__ import annotations

from functools import cached_property

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from api.hooks import url_of
from api.settings import ApiSettings
from shared.webhooks import keys_of

_MOST_PAUSE_S = 86_400


class BatchSettings(ApiSettings):
    """A Penstock batch process: runs the rows of batches in the batch lane and writes their files."""

    ops_host: str = Field("127.0.0.1", description="address of /livez, /readyz, /metrics")
    ops_port: int = Field(0, ge=0, le=65535, description="port of /livez, /readyz, /metrics; 0 = any free one")
    batch_window: float = Field(
        2, gt=0, description="rows of a batch that wait or run at once, as a multiple of the pool's slots"
    )
    batch_window_max: int = Field(4_096, ge=1, description="most rows of a batch that wait or run at once")
    batch_drivers: int = Field(64, ge=1, description="most batches that this process runs at once")
    batch_cancel_grace_s: float = Field(
        60, ge=0, description="seconds that running rows of a cancelled batch get to end in"
    )
    batch_output_ttl_s: int = Field(
        2_592_000,
        ge=3_600,
        description="seconds for which output and error files stay, unless the batch says otherwise",
    )
    batch_ttl_s: int = Field(2_592_000, ge=3_600, description="seconds for which a batch is known after its end")
    batch_parts_ttl_s: int = Field(
        86_400, ge=60, description="seconds for which /v1/batches/{id}/results is there after the end"
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="whsec_… that signs what goes to --webhook-url; several with commas between while one is replaced",
    )
    webhook_url: str = Field("", description="where the end of every batch is told that names no webhook of its own")
    webhook_retry_s: str = Field(
        "5,30,120,600,3600,10800,21600,43200",
        description="seconds between the attempts to tell an end, before it is given up",
    )

    @field_validator("webhook_secret")
    @classmethod
    def _secrets(cls, secrets: SecretStr) -> SecretStr:
        keys_of(secrets.get_secret_value())
        return secrets

    @field_validator("webhook_url")
    @classmethod
    def _signed(cls, url: str, info: ValidationInfo) -> str:
        if url:
            url_of(url)
            if "webhook_secret" in info.data and not info.data["webhook_secret"].get_secret_value().strip(" ,"):
                msg = "needs a secret: PENSTOCK_WEBHOOK_SECRET, or a file that PENSTOCK_WEBHOOK_SECRET_FILE names"
                raise ValueError(msg)
        return url

    @field_validator("webhook_retry_s")
    @classmethod
    def _pauses(cls, text: str) -> str:
        _spans(text)
        return text

    @cached_property
    def webhook_pauses_s(self) -> tuple[float, ...]:
        """Seconds between the attempts."""
        return _spans(self.webhook_retry_s)

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """What signs for the operator."""
        return keys_of(self.webhook_secret.get_secret_value())


def _spans(text: str) -> tuple[float, ...]:
    spans = tuple(float(word) for word in text.split(",") if word.strip())
    if not all(0 <= span <= _MOST_PAUSE_S for span in spans):
        raise ValueError(f"must be seconds from 0 to {_MOST_PAUSE_S}, with commas between")
    return spans

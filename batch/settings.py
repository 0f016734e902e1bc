"""Settings of a batch process: those of a replica, since it admits rows as a replica admits requests, and its own."""

from __future__ import annotations

from pydantic import Field

from api.settings import ApiSettings


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

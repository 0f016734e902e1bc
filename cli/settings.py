"""Settings of `penstock up`. What concerns replicas or workers alone reaches them through the environment."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from shared.settings import Settings

DEMO_MODEL = Path(__file__).resolve().parent.parent / "models" / "demo"


class UpSettings(Settings):
    """Penstock on this machine: a Redis of its own, replicas and workers. Flags after `--` go to every engine."""

    LEGACY_ENV: ClassVar[dict[str, tuple[str, ...]]] = {
        **Settings.LEGACY_ENV,
        "model": ("MODEL_NAME", "MODEL_PATH"),
        "tensor_parallel_size": ("TENSOR_PARALLEL_SIZE", "TP_SIZE"),
    }

    redis_url: str = Field("", description="Redis or Valkey to use; empty starts one for this folder")
    model: str = Field("", description="folder or Hugging Face id of the model; empty: the demo model")
    engine: Literal["vllm", "sim"] = Field("vllm", description="what runs the model; sim only pretends to")
    api: int = Field(1, ge=1, le=64, description="replicas; each has a port of its own, counted up from --port")
    workers: int = Field(1, ge=1, le=64, description="workers; each gets its own GPU where there are several")
    batch: int = Field(1, ge=0, le=16, description="batch processes, which run /v1/batches; 0: none")
    host: str = Field("127.0.0.1", description="address that the replicas listen on")
    port: int = Field(8000, ge=1, le=65535, description="port of the first replica")
    data: Path = Field(Path(".penstock"), description="folder for the server's data, all logs and uploaded files")
    storage_url: str = Field(
        "", description="where uploaded files are kept: a folder, s3://…, gs://…, az://…; empty: below --data"
    )
    tensor_parallel_size: int | None = Field(None, ge=1, description="vLLM: GPUs for one model")
    drain_s: float = Field(120, ge=0, description="seconds that running requests get when it stops")

    @property
    def model_argument(self) -> str:
        """What the workers are given as --model. The sim engine needs none."""
        if self.model or self.engine == "sim":
            return self.model
        return str(DEMO_MODEL)

    @property
    def ports(self) -> list[int]:
        """The replicas' ports."""
        return [self.port + index for index in range(self.api)]

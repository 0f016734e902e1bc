"""Settings of a worker. What concerns the engine alone comes after `--` and goes to the engine as it is."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from shared.settings import Settings


class WorkerSettings(Settings):
    """A Penstock worker: one engine, one model, one GPU (or tensor-parallel group). Engine flags follow `--`."""

    LEGACY_ENV: ClassVar[dict[str, tuple[str, ...]]] = {
        **Settings.LEGACY_ENV,
        "model": ("MODEL_NAME", "MODEL_PATH"),
        "gpu_memory_utilization": ("GPU_MEMORY_UTILIZATION", "GPU_UTIL"),
        "max_model_len": ("MAX_MODEL_LEN", "MAX_MODEL_LENGTH"),
        "max_num_seqs": ("MAX_NUM_SEQS",),
        "tensor_parallel_size": ("TENSOR_PARALLEL_SIZE", "TP_SIZE"),
        "quantization": ("QUANTIZATION",),
        "max_active": ("MAX_ACTIVE",),
        "warmup": ("WARMUP",),
    }

    engine: Literal["vllm", "sim"] = Field("vllm", description="what runs the model")
    model: str = Field("", description="folder or Hugging Face id of the model; the sim engine takes it as a name")
    pool: str = Field("", description="pool to join; default: made from the served model name")
    max_active: int = Field(0, ge=0, description="most sequences to run at once; 0 = what the engine can")
    ops_host: str = Field("127.0.0.1", description="address of /livez, /readyz, /metrics")
    ops_port: int = Field(0, ge=0, le=65535, description="port of /livez, /readyz, /metrics; 0 = any free one")
    drain_s: float = Field(120, ge=0, description="seconds that running requests get when the worker stops")
    stall_s: float = Field(
        60, gt=0, description="seconds without a token after which a worker with requests gives itself up"
    )
    orphan_s: float = Field(30, gt=0, description="seconds after which a request that nobody follows is stopped")
    history_bytes: int = Field(
        4_194_304, ge=0, description="bytes of each running answer that are kept for a Redis that loses them"
    )
    warmup: bool = Field(True, description="run one short request before taking work")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1, description="vLLM: share of the GPU's memory to use")
    max_model_len: int | None = Field(None, ge=1, description="vLLM: longest context, in tokens")
    max_num_seqs: int | None = Field(None, ge=1, description="vLLM: sequences in one step")
    tensor_parallel_size: int | None = Field(None, ge=1, description="vLLM: GPUs for one model")
    quantization: str | None = Field(None, description="vLLM: awq, gptq, fp8 …")

    def engine_flags(self) -> list[str]:
        """The settings that are flags of vLLM, in its spelling. Flags after `--` come later and win."""
        flags = {
            "--model": self.model or None,
            "--gpu-memory-utilization": self.gpu_memory_utilization,
            "--max-model-len": self.max_model_len,
            "--max-num-seqs": self.max_num_seqs,
            "--tensor-parallel-size": self.tensor_parallel_size,
            "--quantization": self.quantization,
        }
        return [part for name, value in flags.items() if value is not None for part in (name, str(value))]

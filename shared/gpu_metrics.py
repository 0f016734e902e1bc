"""Every metric of GPUs, as `penstock gpu-exporter` says them. Names as in `metrics.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Sensor:
    """A metric that is read from the driver of a GPU. Each names its GPU by the index in `gpu`."""

    name: str
    help: str
    labels: tuple[str, ...] = ("gpu",)
    kind: Literal["gauge", "counter"] = "gauge"


GPU_UP = Sensor("penstock_gpu_exporter_up", "1 when the driver could be asked.", ())
GPU_INFO = Sensor("penstock_gpu_info", "1; which GPU that is.", ("gpu", "uuid", "name", "driver"))
GPU_UTILIZATION = Sensor("penstock_gpu_utilization_ratio", "Share of the time in which a kernel ran, 0 to 1.")
GPU_MEMORY_BUSY = Sensor("penstock_gpu_memory_busy_ratio", "Share of the time in which memory was moved, 0 to 1.")
GPU_MEMORY_USED = Sensor("penstock_gpu_memory_used_bytes", "Memory in use; vLLM takes its whole share at start.")
GPU_MEMORY_TOTAL = Sensor("penstock_gpu_memory_total_bytes", "Memory of the GPU.")
GPU_TEMPERATURE = Sensor("penstock_gpu_temperature_celsius", "Temperature of the chip.")
GPU_TEMPERATURE_MAX = Sensor("penstock_gpu_slowdown_temperature_celsius", "From here on the GPU slows itself down.")
GPU_POWER = Sensor("penstock_gpu_power_watts", "Power that it draws.")
GPU_POWER_LIMIT = Sensor("penstock_gpu_power_limit_watts", "Power that it may draw.")
GPU_ENERGY = Sensor("penstock_gpu_energy_joules_total", "Energy since the driver was loaded.", kind="counter")
GPU_SM_CLOCK = Sensor("penstock_gpu_sm_clock_hertz", "Clock of the cores.")
GPU_MEMORY_CLOCK = Sensor("penstock_gpu_memory_clock_hertz", "Clock of the memory.")
GPU_ECC = Sensor(
    "penstock_gpu_ecc_errors_total", "Memory errors since the driver was loaded.", ("gpu", "kind"), "counter"
)
GPU_REMAPPED = Sensor("penstock_gpu_remapped_rows", "Rows of memory that were replaced.", ("gpu", "kind"))
GPU_XID = Sensor(
    "penstock_gpu_xid_errors_total",
    "Critical errors that the driver reported, by NVIDIA's number.",
    ("gpu", "xid"),
    "counter",
)
GPU_PCIE_REPLAYS = Sensor("penstock_gpu_pcie_replays_total", "Transfers that had to be repeated.", kind="counter")
GPU_THROTTLED = Sensor("penstock_gpu_throttled", "1 while it is slowed down for this reason.", ("gpu", "reason"))

"""Stands in for the module `pynvml` where there is no NVIDIA driver: the same names, the values of imagined GPUs.

It proves what the exporter makes of the library's answers, not that a driver gives them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """As the library's."""


class FakeNvml:
    """A driver with one GPU, or `gpus` alike. `away`: it cannot be initialized. `lacks`: functions that none supports.

    `lost`: indices of GPUs that have fallen off the bus.
    """

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 0, 1
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 0
    nvmlEventTypeXidCriticalError = 8  # noqa: N815 - the library's name

    def __init__(self, *, gpus: int = 1, away: bool = False, lacks: tuple[str, ...] = ()) -> None:
        self.away = away
        self.events: list[Any] = []
        self.inits = 0
        self.uncorrected = 1
        self.lost: set[int] = set()
        self._said: dict[str, Any] = {
            "nvmlDeviceGetCount": gpus,
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetName": b"Imagined 80GB",
            "nvmlSystemGetDriverVersion": "999.1",
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=12),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=60 << 30, total=80 << 30),
            "nvmlDeviceGetTemperature": 64,
            "nvmlDeviceGetTemperatureThreshold": 90,
            "nvmlDeviceGetPowerUsage": 312_500,
            "nvmlDeviceGetPowerManagementLimit": 700_000,
            "nvmlDeviceGetTotalEnergyConsumption": 5_000,
            "nvmlDeviceGetPcieReplayCounter": 3,
            "nvmlDeviceGetRemappedRows": (2, 1, 0, 0),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x40,
            "nvmlEventSetCreate": "events",
            "nvmlDeviceRegisterEvents": None,
            "nvmlShutdown": None,
        }
        for name in lacks:
            self._said.pop(name)

    def __getattr__(self, name: str) -> Any:
        """Any function of the library that is asked for."""
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def say(*_: Any) -> Any:
            if name not in self._said:
                raise NVMLError("Not Supported")
            return self._said[name]

        return say

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        self.inits += 1
        if self.away:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetIndex(self, handle: int) -> int:  # noqa: N802
        return handle

    def nvmlDeviceGetClockInfo(self, _: Any, which: int) -> int:  # noqa: N802
        return 1_755 if which == self.NVML_CLOCK_SM else 2_619

    def nvmlDeviceGetTotalEccErrors(self, _: Any, error: int, __: int) -> int:  # noqa: N802
        return 4 if error == self.NVML_MEMORY_ERROR_TYPE_CORRECTED else self.uncorrected

    def nvmlEventSetWait_v2(self, _: Any, timeout_ms: int) -> Any:  # noqa: N802
        assert timeout_ms == 0, "a scrape does not wait for a fault"
        if not self.events:
            raise NVMLError("Timeout")
        return self.events.pop(0)

    def breaks(self) -> None:
        """It gets hot and full, and its memory fails."""
        self._said["nvmlDeviceGetTemperature"] = 93
        self._said["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(used=(80 << 30) - (1 << 29), total=80 << 30)
        self.uncorrected += 1

    def xid(self, number: int, gpu: int = 0) -> None:
        """The driver reports a critical error."""
        self.events.append(SimpleNamespace(device=gpu, eventData=number))

"""What NVIDIA's management library says of the GPUs, in base units, as metrics of `shared/gpu_metrics.py`.

The library may be missing, and so may the driver: then `penstock_gpu_exporter_up` is 0 and nothing else is there. Both
are looked for again with every scrape. What a GPU does not support (ECC on a desktop card, power on a shared one) is
absent, and so is a GPU that is lost; of the others everything is told. Only the names of `nvidia-ml-py` are used; tests
give an object of the same names in its place.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared import gpu_metrics as metrics
from shared.gpu_metrics import Sensor

log = logging.getLogger(__name__)

_Value = tuple[Sensor, tuple[str, ...], float]
_MOST_EVENTS = 100
"""Events of one scrape: a GPU that falls off the bus must not keep the exporter in a loop."""
_REASONS = {
    "power_cap": 0x4,
    "hardware_slowdown": 0x8,
    "software_thermal": 0x20,
    "hardware_thermal": 0x40,
    "power_brake": 0x80,
}
"""Bits of NVML's clock event reasons that say that a GPU is slower than it could be."""


def library() -> Any:
    """The module `pynvml` of the package nvidia-ml-py. Raises ImportError where it is not installed."""
    return importlib.import_module("pynvml")


class Gpus(Collector):
    """Asks the driver with every scrape."""

    def __init__(self, load: Callable[[], Any] = library) -> None:
        self._load = load
        self._nvml: Any = None
        self._events: Any = None
        self._xids: Counter[tuple[str, str]] = Counter()
        self._asking = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """One family for each sensor that has a value. Each scrape has a thread of its own: they ask in turn."""
        families: dict[str, Metric] = {}
        with self._asking:
            values = self._values()
        for sensor, labels, value in values:
            family = families.get(sensor.name)
            if family is None:
                made = CounterMetricFamily if sensor.kind == "counter" else GaugeMetricFamily
                family = families[sensor.name] = made(sensor.name, sensor.help, labels=sensor.labels)
            family.add_metric(labels, float(value))  # type: ignore[attr-defined]
        return families.values()

    def _values(self) -> list[_Value]:
        try:
            nvml = self._opened()
            count = nvml.nvmlDeviceGetCount()
            self._read_events(nvml)  # first: what is wrong with a GPU is known even where it says nothing any more
            values = [value for index in range(count) for value in self._of_gpu(nvml, index)]
        except Exception as error:  # noqa: BLE001 - no library, no driver, or one that was unloaded: look again later
            log.debug("the GPUs cannot be asked: %r", error)
            self._close()
            return [(metrics.GPU_UP, (), 0)]
        xids = [(metrics.GPU_XID, key, float(count)) for key, count in sorted(self._xids.items())]
        return [(metrics.GPU_UP, (), 1), *values, *xids]

    def _opened(self) -> Any:
        """The library, initialized. Raises what it raises."""
        if self._nvml is None:
            nvml = self._load()
            nvml.nvmlInit()
            self._nvml = nvml
            self._events = _event_set(nvml)
        return self._nvml

    def _close(self) -> None:
        nvml, self._nvml, self._events = self._nvml, None, None
        if nvml is not None:
            _told(nvml, nvml.nvmlShutdown)

    def _of_gpu(self, nvml: Any, index: int) -> Iterator[_Value]:
        gpu = str(index)
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            who = (nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle), nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError as error:  # it fell off the bus: the others are there
            log.debug("GPU %s says nothing: %s", gpu, error)
            return
        yield metrics.GPU_INFO, (gpu, *map(_text, who)), 1
        for sensor, read in _SENSORS.items():
            value = _told(nvml, read, nvml, handle)
            if value is not None:
                yield sensor, (gpu,), value
        for sensor, kinds in _KINDS.items():
            for kind, read in kinds.items():
                value = _told(nvml, read, nvml, handle)
                if value is not None:
                    yield sensor, (gpu, kind), value
        bits = _told(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if bits is not None:
            for reason, bit in _REASONS.items():
                yield metrics.GPU_THROTTLED, (gpu, reason), bool(bits & bit)

    def _read_events(self, nvml: Any) -> None:
        """Counts the critical errors that the driver has reported since the last time. Never waits for one."""
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            event = _told(nvml, nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            index = _told(nvml, nvml.nvmlDeviceGetIndex, event.device)
            self._xids["unknown" if index is None else str(index), str(event.eventData)] += 1


def _event_set(nvml: Any) -> Any:
    """Where the driver puts critical errors; None when it knows no events."""
    events = _told(nvml, nvml.nvmlEventSetCreate)
    for index in range(nvml.nvmlDeviceGetCount() if events is not None else 0):
        handle = _told(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is not None:
            _told(nvml, nvml.nvmlDeviceRegisterEvents, handle, nvml.nvmlEventTypeXidCriticalError, events)
    return events


def _told(nvml: Any, read: Callable[..., Any], *arguments: Any) -> Any:
    """What the library says; None when this GPU, or this driver, does not say it."""
    try:
        return read(*arguments)
    except nvml.NVMLError as error:
        log.debug("%s: %s", getattr(read, "__name__", read), error)
        return None


def _text(said: str | bytes) -> str:
    return said.decode() if isinstance(said, bytes) else said


_Read = Callable[[Any, Any], float]
_SENSORS: dict[Sensor, _Read] = {
    metrics.GPU_UTILIZATION: lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    metrics.GPU_MEMORY_BUSY: lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).memory / 100,
    metrics.GPU_MEMORY_USED: lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    metrics.GPU_MEMORY_TOTAL: lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    metrics.GPU_TEMPERATURE: lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    metrics.GPU_TEMPERATURE_MAX: lambda nvml, gpu: nvml.nvmlDeviceGetTemperatureThreshold(
        gpu, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    ),
    metrics.GPU_POWER: lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1_000,
    metrics.GPU_POWER_LIMIT: lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1_000,
    metrics.GPU_ENERGY: lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1_000,
    metrics.GPU_SM_CLOCK: lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1_000_000,
    metrics.GPU_MEMORY_CLOCK: lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM) * 1_000_000,
    metrics.GPU_PCIE_REPLAYS: lambda nvml, gpu: nvml.nvmlDeviceGetPcieReplayCounter(gpu),
}
"""NVML says percent, milliwatts, millijoules and megahertz."""


def _ecc(nvml: Any, gpu: Any, error: int) -> float:
    return float(nvml.nvmlDeviceGetTotalEccErrors(gpu, error, nvml.NVML_VOLATILE_ECC))


_KINDS: dict[Sensor, dict[str, _Read]] = {
    metrics.GPU_ECC: {
        "corrected": lambda nvml, gpu: _ecc(nvml, gpu, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        "uncorrected": lambda nvml, gpu: _ecc(nvml, gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
    },
    metrics.GPU_REMAPPED: {
        "corrected": lambda nvml, gpu: nvml.nvmlDeviceGetRemappedRows(gpu)[0],
        "uncorrected": lambda nvml, gpu: nvml.nvmlDeviceGetRemappedRows(gpu)[1],
    },
}

"""The GPU exporter, on an object with the names of NVIDIA's library: there is no GPU here."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cli.nvml import Gpus
from shared import gpu_metrics as metrics
from shared.gpu_metrics import Sensor
from tests.support.fakenvml import FakeNvml
from tests.support.stack import free_port, get

SENSORS = {sensor.name: sensor for sensor in vars(metrics).values() if isinstance(sensor, Sensor)}


def scrape(gpus: Gpus) -> bytes:
    registry = CollectorRegistry()
    registry.register(gpus)
    return generate_latest(registry)


def values(gpus: Gpus) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(scrape(gpus).decode()):
        for sample in family.samples:
            found[sample.name, *(sample.labels[name] for name in SENSORS[sample.name].labels)] = sample.value
    return found


def test_what_the_library_says_in_its_own_units_is_told_in_base_units() -> None:
    library = FakeNvml()
    gpus = Gpus(lambda: library)
    assert values(gpus)["penstock_gpu_exporter_up",] == 1
    library.xid(79)
    found = values(gpus)
    assert {name for name, *_ in found} == SENSORS.keys()
    assert found["penstock_gpu_info", "0", "GPU-1", "Imagined 80GB", "999.1"] == 1
    assert found["penstock_gpu_utilization_ratio", "0"] == 0.37
    assert found["penstock_gpu_memory_used_bytes", "0"] == 60 << 30
    assert found["penstock_gpu_power_watts", "0"] == 312.5
    assert found["penstock_gpu_energy_joules_total", "0"] == 5
    assert found["penstock_gpu_sm_clock_hertz", "0"] == 1_755_000_000
    assert found["penstock_gpu_ecc_errors_total", "0", "uncorrected"] == 1
    assert found["penstock_gpu_throttled", "0", "hardware_thermal"] == 1
    assert found["penstock_gpu_throttled", "0", "power_cap"] == 0
    assert found["penstock_gpu_xid_errors_total", "0", "79"] == 1


def test_what_a_gpu_does_not_support_is_absent_and_the_rest_is_there() -> None:
    library = FakeNvml(lacks=("nvmlDeviceGetPowerUsage", "nvmlDeviceGetRemappedRows", "nvmlEventSetCreate"))
    found = values(Gpus(lambda: library))
    names = {name for name, *_ in found}
    absent = {"penstock_gpu_power_watts", "penstock_gpu_remapped_rows", "penstock_gpu_xid_errors_total"}
    assert names == SENSORS.keys() - absent


def test_a_gpu_that_is_lost_takes_neither_the_others_nor_its_last_error_with_it() -> None:
    library = FakeNvml(gpus=3)
    gpus = Gpus(lambda: library)
    values(gpus)
    library.lost.add(1)
    library.xid(79, gpu=1)
    found = values(gpus)
    assert found["penstock_gpu_exporter_up",] == 1
    assert found["penstock_gpu_xid_errors_total", "1", "79"] == 1
    assert {key[1] for key in found if key[0] == "penstock_gpu_power_watts"} == {"0", "2"}
    assert library.inits == 1, "a lost GPU is no reason to throw away what the others will report"


def test_a_gpu_that_was_lost_before_the_exporter_started_hides_no_other() -> None:
    library = FakeNvml(gpus=2)
    library.lost.add(0)
    assert values(Gpus(lambda: library))["penstock_gpu_power_watts", "1"] == 312.5


def test_two_scrapes_at_once_open_the_driver_once_and_count_an_error_once() -> None:
    library = FakeNvml()
    library.xid(79)
    meet = threading.Barrier(2)

    def load() -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            meet.wait(0.5)  # only a second scrape that asks at the same time comes here, too
        return library

    gpus = Gpus(load)
    with ThreadPoolExecutor(2) as pool:
        both = [scraping.result() for scraping in [pool.submit(values, gpus) for _ in range(2)]]
    assert library.inits == 1
    assert [found["penstock_gpu_xid_errors_total", "0", "79"] for found in both] == [1, 1]


def test_without_a_driver_it_says_so_and_looks_again_with_every_scrape() -> None:
    library = FakeNvml(away=True)
    gpus = Gpus(lambda: library)
    assert values(gpus) == {("penstock_gpu_exporter_up",): 0}
    library.away = False
    assert values(gpus)["penstock_gpu_exporter_up",] == 1
    assert library.inits == 2


def test_a_driver_that_goes_away_is_opened_again() -> None:
    library = FakeNvml()
    gpus = Gpus(lambda: library)
    values(gpus)
    library._said.pop("nvmlDeviceGetCount")
    assert values(gpus) == {("penstock_gpu_exporter_up",): 0}
    library._said["nvmlDeviceGetCount"] = 1
    assert values(gpus)["penstock_gpu_exporter_up",] == 1
    assert library.inits == 2


def test_without_the_library_it_says_so() -> None:
    def load() -> Any:
        raise ImportError("No module named 'pynvml'")

    assert values(Gpus(load)) == {("penstock_gpu_exporter_up",): 0}


def test_promtool_has_nothing_to_say_about_the_names() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("this machine has no promtool (Debian: apt install prometheus)")
    library = FakeNvml()
    library.xid(48)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=scrape(Gpus(lambda: library)), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_command_serves_metrics_on_a_machine_without_a_gpu_and_ends_when_told() -> None:
    port = free_port()
    command = [sys.executable, "-m", "cli", "gpu-exporter", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert re.fullmatch(rf"GPU metrics on http://127.0.0.1:{port}/metrics\n", process.stdout.readline())
        status, body = get(f"http://127.0.0.1:{port}/metrics")
        process.terminate()
        assert process.wait(10) == 0
    assert status == 200
    assert re.search(rb"^penstock_gpu_exporter_up [01]\.0$", body, re.MULTILINE)
    assert b'penstock_build_info{role="gpu-exporter",version="' in body

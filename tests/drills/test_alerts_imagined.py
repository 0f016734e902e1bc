"""Drill 46, for what cannot be broken here: targets that serve what the broken thing would say.

The GPU exporter is ours and real, over an imagined GPU; the rest serves metrics by their recorded names. So these prove
the rules and what is asked, not that a driver, vLLM or blackbox_exporter speaks up.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from cli.nvml import Gpus
from tests.drills.alerting import FASTER, NUMBERS, fires, quiet, scraped, watched_target
from tests.drills.conftest import Figures
from tests.support.fakenvml import FakeNvml
from tests.support.metric_names import declared, of_vllm
from tests.support.prometheus import faster, rule_files, running_prometheus
from tests.support.stack import free_port

_DAY_S = 86_400


@pytest.mark.drill(46)
async def test_a_gpu_is_full_hot_and_broken(tmp_path: Path, figures: Figures) -> None:
    library, registry = FakeNvml(), CollectorRegistry()
    registry.register(Gpus(lambda: library))
    expected = ("PenstockGpuMemory", "PenstockGpuHot", "PenstockGpuEcc", "PenstockGpuXid")
    with watched_target(tmp_path, registry) as prometheus:
        await scraped(prometheus, 'penstock_gpu_ecc_errors_total{kind="uncorrected"}')
        await quiet(prometheus, *expected)
        library.xid(79)
        library.breaks()
        figures |= await fires(prometheus, *expected)


@pytest.mark.long
@pytest.mark.drill(46)
async def test_an_exporter_cannot_ask_its_driver(tmp_path: Path, figures: Figures) -> None:
    port = free_port()
    command = [sys.executable, "-m", "cli", "gpu-exporter", "--port", str(port)]
    with (
        subprocess.Popen(command) as exporter,
        running_prometheus(tmp_path, faster(rule_files(), FASTER, NUMBERS)) as prometheus,
    ):
        try:
            prometheus.watch("penstock-gpu", f"127.0.0.1:{port}")
            await scraped(prometheus, "penstock_gpu_exporter_up")
            if prometheus.query("penstock_gpu_exporter_up")[0][1]:
                pytest.skip("this machine has a driver")
            figures |= await fires(prometheus, "PenstockGpuBlind")
        finally:
            exporter.terminate()


@pytest.mark.long
@pytest.mark.drill(46)
async def test_an_engine_runs_out_of_cache(tmp_path: Path, figures: Figures) -> None:
    registry, names = CollectorRegistry(), ("model_name", "engine")
    assert {"vllm:kv_cache_usage_perc", "vllm:num_preemptions_total"} <= of_vllm().keys()
    used = Gauge("vllm:kv_cache_usage_perc", "Imagined.", names, registry=registry).labels("m", "0")
    thrown_out = Counter("vllm:num_preemptions_total", "Imagined.", names, registry=registry).labels("m", "0")
    used.set(0.8)
    expected = ("PenstockKvCacheHigh", "PenstockKvCacheFull", "PenstockEnginePreempts")
    with watched_target(tmp_path, registry) as prometheus:
        await scraped(prometheus, "vllm:num_preemptions_total")
        await quiet(prometheus, *expected)
        used.set_function(lambda: thrown_out.inc() or 0.97)  # type: ignore[func-returns-value] # once for each scrape
        figures |= await fires(prometheus, *expected)


@pytest.mark.long
@pytest.mark.drill(46)
async def test_a_batch_will_be_late_and_nobody_takes_its_webhook(tmp_path: Path, figures: Figures) -> None:
    registry = CollectorRegistry()
    assert declared()["penstock_batches_late"][1] == ()
    late = Gauge("penstock_batches_late", "Imagined.", registry=registry)
    outcomes = declared()["penstock_webhook_attempts_total"][1]
    told = Counter("penstock_webhook_attempts_total", "Imagined.", outcomes, registry=registry)
    told.labels("given_up")
    expected = ("PenstockBatchLate", "PenstockWebhooksLost")
    with watched_target(tmp_path, registry) as prometheus:
        await scraped(prometheus, "penstock_webhook_attempts_total")
        await quiet(prometheus, *expected)
        late.set(1)
        told.labels("given_up").inc()
        figures |= await fires(prometheus, *expected)


@pytest.mark.long
@pytest.mark.drill(46)
async def test_a_certificate_ends_soon_and_a_lane_is_not_served_alike(tmp_path: Path, figures: Figures) -> None:
    registry = CollectorRegistry()
    ends_at = Gauge("probe_ssl_earliest_cert_expiry", "Imagined.", registry=registry)
    fairness = declared()["penstock_lane_fairness_ratio"][1]
    fair = Gauge("penstock_lane_fairness_ratio", "Imagined.", fairness, registry=registry).labels("standard", "m")
    ends_at.set(time.time() + 60 * _DAY_S)
    fair.set(0.99)
    with watched_target(tmp_path, registry, times=1_200) as prometheus:
        await scraped(prometheus, "penstock_lane_fairness_ratio")
        await quiet(prometheus, "PenstockCertificateExpires", "PenstockUnfair")
        ends_at.set(time.time() + 5 * _DAY_S)
        fair.set(0.5)
        figures |= await fires(prometheus, "PenstockCertificateExpires", "PenstockUnfair")

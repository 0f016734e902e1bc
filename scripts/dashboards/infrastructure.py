"""Redis, GPUs, processes."""

from __future__ import annotations

from scripts.dashboards.panels import RATE, Board, Panel, Query, Row, ratio

_OURS = 'job=~"penstock.*"'


def _gpu(name: str, title: str, says: str, runbook: str, unit: str, **more: float) -> Panel:
    expr = f"max by (instance, gpu) (penstock_gpu_{name})"
    return Panel(title, says, runbook, [Query(expr, "{{instance}} {{gpu}}")], unit, **more)  # type: ignore[arg-type]


BOARD = Board(
    "penstock-infrastructure",
    "infrastructure and GPU",
    "The Redis server, the GPUs (from `penstock gpu-exporter`, or dcgm-exporter by rules/dcgm.yml), the processes.",
    [
        Row(
            "Redis",
            [
                Panel(
                    "Memory",
                    "In use, and what it may use at most.",
                    "PenstockRedisMemory",
                    [
                        Query("max(penstock_redis_memory_used_bytes)", "used"),
                        Query("max(penstock_redis_memory_max_bytes)", "limit"),
                    ],
                    "bytes",
                ),
                Panel(
                    "Commands",
                    "Per second; scripts count once.",
                    "PenstockQueuesUnread",
                    [Query(f"max(rate(penstock_redis_commands_total[{RATE}]))", "commands")],
                    "ops",
                ),
                Panel(
                    "Processor",
                    "Cores.",
                    "PenstockQueuesUnread",
                    [Query(f"max(rate(penstock_redis_cpu_seconds_total[{RATE}]))", "cores")],
                ),
                Panel(
                    "Connections",
                    "Of clients, and of servers that follow it.",
                    "PenstockQueuesUnread",
                    [
                        Query("max(penstock_redis_clients_connected)", "clients"),
                        Query("max(penstock_redis_replicas_connected)", "replicas"),
                    ],
                ),
                Panel(
                    "Keys thrown away",
                    "Must be none. `expired` are those whose time was up.",
                    "PenstockRedisEvicts",
                    [
                        Query(f"max(rate(penstock_redis_evicted_keys_total[{RATE}]))", "evicted"),
                        Query(f"max(rate(penstock_redis_expired_keys_total[{RATE}]))", "expired"),
                    ],
                    "ops",
                ),
                Panel(
                    "On disk",
                    "Append-only file there, and well; last snapshot well.",
                    "PenstockRedisAofFails",
                    [
                        Query("max(penstock_redis_aof_enabled)", "file there"),
                        Query("min(penstock_redis_aof_ok)", "file well"),
                        Query("min(penstock_redis_save_ok)", "snapshot well"),
                    ],
                ),
                Panel(
                    "Append-only file",
                    "Its size.",
                    "PenstockRedisWithoutAof",
                    [Query("max(penstock_redis_aof_size_bytes)", "bytes")],
                    "bytes",
                ),
                Panel(
                    "Age",
                    "Time since its start and since its last snapshot.",
                    "PenstockQueuesUnread",
                    [
                        Query("time() - max(penstock_redis_start_timestamp_seconds)", "up"),
                        Query("time() - max(penstock_redis_last_save_timestamp_seconds)", "snapshot"),
                    ],
                    "s",
                ),
                Panel(
                    "Policy",
                    "What it does without memory: must be `noeviction`.",
                    "PenstockRedisEvicts",
                    [Query("max by (policy) (penstock_redis_maxmemory_policy_info)", "{{policy}}")],
                    kind="stat",
                ),
            ],
        ),
        Row(
            "GPUs",
            [
                _gpu(
                    "utilization_ratio",
                    "Busy",
                    "Share of the time in which a kernel ran: 1 says busy, not well used.",
                    "PenstockGpuHot",
                    "percentunit",
                    most=1,
                ),
                Panel(
                    "Memory",
                    "vLLM takes its share at its start: flat is right.",
                    "PenstockGpuMemory",
                    [
                        Query(
                            ratio(
                                "max by (instance, gpu) (penstock_gpu_memory_used_bytes)",
                                "max by (instance, gpu) (penstock_gpu_memory_total_bytes)",
                            ),
                            "{{instance}} {{gpu}}",
                        )
                    ],
                    "percentunit",
                    steps=((0.98, "red"),),
                    most=1,
                ),
                Panel(
                    "Temperature",
                    "Slows itself down near the dashed limit of its kind.",
                    "PenstockGpuHot",
                    [
                        Query("max by (instance, gpu) (penstock_gpu_temperature_celsius)", "{{instance}} {{gpu}}"),
                        Query("min(penstock_gpu_slowdown_temperature_celsius)", "slows down from"),
                    ],
                    "celsius",
                    steps=((85, "red"),),
                ),
                Panel(
                    "Power",
                    "Drawn, and the limit.",
                    "PenstockGpuHot",
                    [
                        Query("max by (instance, gpu) (penstock_gpu_power_watts)", "{{instance}} {{gpu}}"),
                        Query("min(penstock_gpu_power_limit_watts)", "limit"),
                    ],
                    "watt",
                ),
                _gpu(
                    "sm_clock_hertz", "Clock", "Of the cores. Lower under load: slowed down.", "PenstockGpuHot", "hertz"
                ),
                _gpu("memory_clock_hertz", "Memory clock", "Of the memory.", "PenstockGpuHot", "hertz"),
                Panel(
                    "Slowed down",
                    "1 while a GPU is slowed down, by reason.",
                    "PenstockGpuHot",
                    [
                        Query(
                            "max by (instance, gpu, reason) (penstock_gpu_throttled)", "{{instance}} {{gpu}} {{reason}}"
                        )
                    ],
                ),
                Panel(
                    "Memory errors",
                    "Since the driver was loaded; rows that were replaced.",
                    "PenstockGpuEcc",
                    [
                        Query(
                            "max by (instance, gpu, kind) (penstock_gpu_ecc_errors_total)",
                            "{{instance}} {{gpu}} {{kind}}",
                        ),
                        Query(
                            "max by (instance, gpu, kind) (penstock_gpu_remapped_rows)",
                            "rows {{instance}} {{gpu}} {{kind}}",
                        ),
                    ],
                ),
                Panel(
                    "Driver's errors",
                    "Xid numbers, and transfers over PCIe that had to be repeated.",
                    "PenstockGpuXid",
                    [
                        Query(
                            "max by (instance, gpu, xid) (penstock_gpu_xid_errors_total)",
                            "{{instance}} {{gpu}} Xid {{xid}}",
                        ),
                        Query(
                            f"max by (instance, gpu) (rate(penstock_gpu_pcie_replays_total[{RATE}]))",
                            "PCIe {{instance}} {{gpu}}",
                        ),
                    ],
                ),
                _gpu(
                    "memory_busy_ratio",
                    "Memory busy",
                    "Share of the time in which memory was moved.",
                    "PenstockGpuHot",
                    "percentunit",
                    most=1,
                ),
                Panel(
                    "Which",
                    "Name and driver.",
                    "PenstockGpuBlind",
                    [Query("max by (instance, gpu, name, driver) (penstock_gpu_info)")],
                    kind="table",
                ),
                Panel(
                    "Exporters",
                    "1 where the driver can be asked.",
                    "PenstockGpuBlind",
                    [Query("min by (instance) (penstock_gpu_exporter_up)", "{{instance}}")],
                ),
            ],
        ),
        Row(
            "Processes",
            [
                Panel(
                    "Answer",
                    "1 for every process that answers Prometheus.",
                    "PenstockTargetDown",
                    [Query(f"min by (job, instance) (up{{{_OURS}}})", "{{job}} {{instance}}")],
                ),
                Panel(
                    "Memory",
                    "Resident memory.",
                    "PenstockTargetDown",
                    [Query(f"process_resident_memory_bytes{{{_OURS}}}", "{{job}} {{instance}}")],
                    "bytes",
                ),
                Panel(
                    "Processor",
                    "Cores.",
                    "PenstockTargetDown",
                    [Query(f"rate(process_cpu_seconds_total{{{_OURS}}}[{RATE}])", "{{job}} {{instance}}")],
                ),
                Panel(
                    "Open files",
                    "Sockets are files: a replica has one for each stream.",
                    "PenstockTargetDown",
                    [Query(f"process_open_fds{{{_OURS}}}", "{{job}} {{instance}}")],
                ),
                Panel(
                    "Versions",
                    "What runs.",
                    "PenstockTargetDown",
                    [Query("count by (role, version) (penstock_build_info)")],
                    kind="table",
                ),
                Panel(
                    "Certificates",
                    "Time that they are good for; from blackbox_exporter.",
                    "PenstockCertificateExpires",
                    [Query("min by (instance) (probe_ssl_earliest_cert_expiry) - time()", "{{instance}}")],
                    "s",
                    steps=(),
                    least=None,
                ),
            ],
        ),
    ],
)

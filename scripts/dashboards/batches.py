"""Batches: how many there are, how fast their rows end, who drives them and is told; and files."""

from __future__ import annotations

from scripts.dashboards.panels import Board, Panel, Query, Row, quantile, rate

BOARD = Board(
    "penstock-batches",
    "batches",
    "Batches that have not ended, their rows, webhooks, the processes that drive them, and files.",
    [
        Row(
            "Batches",
            [
                Panel(
                    "Not ended",
                    "By status. Every process says the same.",
                    "PenstockBatchWaits",
                    [Query("max by (status) (penstock_batches_active)", "{{status}}")],
                    stacked=True,
                ),
                Panel(
                    "Their rows",
                    "Done, failed, left.",
                    "PenstockBatchWaits",
                    [Query("max by (state) (penstock_batch_rows)", "{{state}}")],
                    stacked=True,
                ),
                Panel(
                    "Oldest, and time left",
                    "Since the oldest that has not ended was made; until the slowest will be done, as fast as it "
                    "is now (0: not known). Compare with the completion window, 24 h if none was asked for.",
                    "PenstockBatchWaits",
                    [
                        Query("max(penstock_batch_oldest_age_seconds)", "oldest"),
                        Query("max(penstock_batch_left_seconds)", "left"),
                    ],
                    "s",
                    steps=((86_400, "red"),),
                ),
                Panel(
                    "Late",
                    "Batches that will not be done before they expire, as fast as they are now.",
                    "PenstockBatchLate",
                    [Query("max(penstock_batches_late)", "late")],
                    steps=((1, "red"),),
                ),
                Panel(
                    "Rows per second",
                    "Rows that count, by outcome. Failed ones are in the batch's error file.",
                    "PenstockErrorsBurnSlow",
                    [Query(rate("penstock_batch_rows_committed_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "In the lane",
                    "Rows that wait or run now, and what waits in the lane `batch` in all.",
                    "PenstockBatchWaits",
                    [
                        Query("sum(penstock_batch_rows_in_flight)", "of batches, in flight"),
                        Query('sum(max by (model) (penstock_queue_depth{lane="batch"}))', "lane, waiting"),
                    ],
                ),
                Panel(
                    "Wait of the lane",
                    "What 95 % of its requests wait before they start.",
                    "PenstockBatchWaits",
                    [Query(quantile(0.95, "penstock_queue_wait_seconds", 'lane="batch"'), "95 %")],
                    "s",
                ),
            ],
        ),
        Row(
            "Webhooks",
            [
                Panel(
                    "To be told",
                    "Ends of batches that are to be told, now or later. Every process says the same.",
                    "PenstockWebhooksLost",
                    [Query("max(penstock_webhooks_pending)", "pending")],
                    wide=12,
                ),
                Panel(
                    "Attempts",
                    "By what became of them: `again` is tried again; `given_up` and `refused` are lost.",
                    "PenstockWebhooksLost",
                    [Query(rate("penstock_webhook_attempts_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                    wide=12,
                ),
            ],
        ),
        Row(
            "Drivers and files",
            [
                Panel(
                    "Driven",
                    "Batches that each process drives.",
                    "PenstockTargetDown",
                    [Query("sum by (instance) (penstock_batch_drivers)", "{{instance}}")],
                    stacked=True,
                ),
                Panel(
                    "Taken over",
                    "Batches taken from a driver that died or stopped; parts of outputs that were written.",
                    "PenstockTargetDown",
                    [
                        Query(rate("penstock_batch_takeovers_total"), "taken over"),
                        Query(rate("penstock_batch_commits_total", by="outcome"), "written: {{outcome}}"),
                    ],
                    "reqps",
                ),
                Panel(
                    "Uploads",
                    "By what became of them; transfers that run.",
                    "PenstockErrorsBurnSlow",
                    [
                        Query(rate("penstock_file_uploads_total", by="outcome"), "{{outcome}}"),
                        Query("sum by (direction) (penstock_file_transfers_open)", "now, {{direction}}"),
                    ],
                ),
                Panel(
                    "Bytes of files",
                    "In and out, per second.",
                    "PenstockErrorsBurnSlow",
                    [Query(rate("penstock_file_bytes_total", by="direction"), "{{direction}}")],
                    "Bps",
                ),
            ],
        ),
    ],
)

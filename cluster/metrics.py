"""A run's metrics for Prometheus. Ray exports them on every machine's metrics port, with the prefix `ray_`;
`grafana.json` beside this file is a dashboard of them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class Metrics:
    """What the driver and the workers of one run report, each from its own process."""

    def __init__(self, run_id: str):
        self.pictures_done = Counter(
            "dgn_pictures_done", "Pictures committed, by outcome", ("run", "mode", "layer", "status")
        )
        self.picture_seconds = Histogram(
            "dgn_picture_seconds", "Seconds per picture: its share of its batch's", SECONDS, ("run", "mode", "layer")
        )
        self.attempts_failed = Counter("dgn_attempts_failed", "Attempts at a shard that failed", ("run", "cause"))
        self.storage_retries = Counter(
            "dgn_storage_retries", "Storage operations that were tried again", ("run", "operation")
        )
        self.device_memory = Gauge(
            "dgn_device_memory_bytes", "Most memory that a worker has held, on its device", ("run", "device")
        )
        self.shards = Gauge("dgn_shards", "Shards: waiting, running, done, quarantined", ("run", "state"))
        self.busy_share = Gauge(
            "dgn_device_busy_share", "Share of workers' time in which their devices worked", ("run",)
        )
        self.workers = Gauge("dgn_workers", "Workers: starting, ready", ("run", "state"))
        for metric in vars(self).values():
            metric.set_default_tags({"run": run_id})

    def note_storage_retry(self, operation: str, error: BaseException) -> None:
        """An observer for `dgn.runs.stores.retry_observers`."""
        self.storage_retries.inc(tags={"operation": operation})

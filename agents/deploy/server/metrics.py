"""What a server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 5)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)


class Metrics:
    """Counters, gauges and histograms of one server; `text` is what `/metrics` answers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, file descriptors, CPU seconds
        self.requests = Counter("marl_requests", "Requests answered", ["route", "status"], registry=registry)
        self.refused = Counter("marl_refused", "Requests refused, by reason", ["reason"], registry=registry)
        self.seconds = Histogram(
            "marl_request_seconds", "From a request's head to its answer", ["route"], buckets=SECONDS, registry=registry
        )
        self.batches = Histogram("marl_batch_rows", "Rows of a batch", buckets=ROWS, registry=registry)
        self.joined = Histogram("marl_batch_requests", "Requests of a batch", buckets=ROWS, registry=registry)
        self.computing = Histogram("marl_batch_seconds", "To compute a batch", buckets=SECONDS, registry=registry)
        self.in_flight = Gauge("marl_requests_in_flight", "Requests under way", registry=registry)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when someone asks."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def batch(self, rows: int, jobs: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(rows)
        self.joined.observe(jobs)
        self.computing.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)

"""Figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counted in a registry of its own, so that several servers of one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "labelmill_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "labelmill_request_seconds", "From a request's first byte to its answer.", ["route"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._batches = Histogram(
            "labelmill_batch_images", "Images, or texts, in a call of a model.", ["model"],
            buckets=BATCHES, registry=self._registry,
        )  # fmt: skip
        self._model = Counter("labelmill_model_seconds", "Spent in a model.", ["model"], registry=self._registry)
        self.models = Gauge("labelmill_models", "Models that are loaded.", registry=self._registry)
        self.images = Gauge("labelmill_images", "Images that wait or are computed.", registry=self._registry)
        self.bytes = Gauge("labelmill_bytes", "Bytes of bodies and pixels that are held.", registry=self._registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request by its route, never by its path, which is a client's to choose."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, model: str, items: int, seconds: float) -> None:
        """Count a call of a model."""
        self._batches.labels(model).observe(items)
        self._model.labels(model).inc(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

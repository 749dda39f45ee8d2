"""News from Ray's workers to the driver: one actor that collects it, for as long as the driver is connected."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from pipelines.receipts import News, OnNews


class _Progress:
    """Collects news from the workers until the driver asks for it."""

    def __init__(self) -> None:
        self._news: list[News] = []

    def add(self, news: News) -> None:
        self._news.append(news)

    def drain(self) -> list[News]:
        news, self._news = self._news, []
        return news


@contextmanager
def collected(on_news: OnNews) -> Iterator[Any]:
    """An actor for news, and a thread that passes it on; the last of it before the block is left.

    News is for the eye and for events.jsonl: a run whose news is lost goes on, since what is done is told by files.
    """
    import ray

    context = ray.get_runtime_context()
    actor = _actor(context.get_node_id(), context.get_job_id())
    stop = threading.Event()

    def drain() -> None:
        for news in ray.get(actor.drain.remote(), timeout=60):
            on_news(news)

    def poll() -> None:
        while not stop.wait(0.5):
            try:
                drain()
            except ray.exceptions.RayError:
                _actor.cache_clear()
                return

    thread = threading.Thread(target=poll, name="news", daemon=True)
    thread.start()
    try:
        yield actor
        stop.set()
        thread.join()
        with suppress(ray.exceptions.RayError):
            drain()
    finally:
        stop.set()


@lru_cache(maxsize=1)
def _actor(node: str, job: str) -> Any:
    """The actor of this connection, on the driver's node; it ends with the connection."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    beside_me: Any = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=beside_me)(_Progress).remote()

"""News from Ray's workers to the driver, in bundles; and who sees from it that nobody works any more.

A worker that is at work sends what there is to tell once in a while, and that it lives. The more workers there are, the
longer each gathers, so that the one actor that collects it all keeps up. Where it has heard of no worker for long, the
run is stopped with a sentence: Ray itself counts finished blocks alone, and so takes a slow model for one that hangs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

from labelmill.pipelines.engine.receipts import News, OnNews, Partial
from labelmill.pipelines.errors import UserError

SILENT_SECONDS = 600.0
"""A run in which no worker has been heard of for so long is stopped: none is left, or none has been started."""

STILL_SECONDS = 3600.0
"""A run is stopped too when its workers live, but none has done an image or used a processor for so long. One loads or
waits for a server meanwhile; an image may take as long."""

MESSAGES_A_SECOND = 100
"""About how many the collector is sent by all workers together; a message costs it a millisecond."""

LONGEST_SECONDS = 120.0
"""A worker gathers no longer than this."""

BUSY = 0.05
"""The part of a core that a worker uses if it computes. One that only waits uses some thousandths."""


Work = tuple[Any, ...]
"""What one worker does at a time: steps and a shard."""


class _Collector:
    """Keeps what the workers tell until the driver asks for it."""

    def __init__(self) -> None:
        self._news: list[News] = []
        self._heard = self._moved = False
        self._begun: Counter[Work] = Counter()

    def begin(self, work: Work) -> int:
        """How often some work was begun and not ended, this time included."""
        self._heard = True
        self._begun[work] += 1
        return self._begun[work]

    def add(self, news: list[News], busy: bool, ended: Work | None = None) -> None:
        self._news += news
        if ended is not None:
            self._begun.pop(ended, None)
        self._heard = True
        self._moved = self._moved or busy or bool(news)

    def drain(self) -> tuple[list[News], bool, bool]:
        """News since the last call, whether a worker was heard of, and whether one got on."""
        gathered = self._news, self._heard, self._moved
        self._news, self._heard, self._moved = [], False, False
        return gathered


class Line:
    """The collector, as a worker calls it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, work: Work) -> int:
        """See `_Collector.begin`. It waits for the answer: a worker that dies the next moment has been counted."""
        import ray

        try:
            return int(ray.get(self._actor.begin.remote(work), timeout=60))
        except ray.exceptions.RayError:
            return 1  # a run whose news is lost goes on

    def add(self, news: list[News], busy: bool, ended: Work | None) -> None:
        """Send news, whether this process has computed, and what it has ended."""
        self._actor.add.remote(news, busy, ended)


class Teller:
    """A worker's side: gathers news while the worker is at work, and sends it at intervals and when the work is done.

    Args:
        line: What it sends to.
        seconds: Between two messages.
    """

    def __init__(self, line: Line, seconds: float) -> None:
        self._line, self._seconds = line, seconds
        self._news: dict[Any, News] = {}
        self._lock = threading.Lock()
        self._since = time.monotonic(), time.process_time()

    def tell(self, news: News) -> None:
        """Gather news. Of how far a shard is only the last word counts."""
        key = (news.step, news.shard) if isinstance(news, Partial) else object()
        with self._lock:
            self._news.pop(key, None)
            self._news[key] = news

    @contextmanager
    def at_work(self, work: Work | None = None, waits: bool = False) -> Iterator[int]:
        """Tell, while the block is not left, that the worker lives.

        Args:
            work: Which work it is, if it is to be known how often it was begun.
            waits: Whether it may wait for others as long as they like; then it always counts as one that computes.

        Returns:
            How often the work was begun and not ended, this time included: once more than workers died on it.
        """
        begun = self._line.begin(work) if work is not None else 1
        done = threading.Event()
        self._since = time.monotonic(), time.process_time()

        def keep_telling() -> None:
            while not done.wait(self._seconds):
                self._flush(waits)

        thread = threading.Thread(target=keep_telling, name="teller", daemon=True)
        thread.start()
        try:
            yield begun
        finally:
            done.set()
            thread.join()
            self._flush(ended=work)

    def _flush(self, waits: bool = False, ended: Work | None = None) -> None:
        with self._lock:
            news, self._news = list(self._news.values()), {}
            (began, used), self._since = self._since, (time.monotonic(), time.process_time())
            elapsed, computed = self._since[0] - began, self._since[1] - used
        self._line.add(news, waits or computed > BUSY * max(elapsed, self._seconds), ended)


class Watch:
    """The driver's side: what the workers send to, and for how long they have sent nothing.

    Attributes:
        collector: The actor that they send to.
        seconds: How long each gathers.
        blind: Whether the collector is lost. Nothing can be said of the workers then, and the run goes on.
    """

    def __init__(self, collector: Any, workers: int) -> None:
        self.collector = collector
        self.seconds = min(LONGEST_SECONDS, max(1.0, workers / MESSAGES_A_SECOND), SILENT_SECONDS / 4)
        self._heard = self._moved = time.monotonic()
        self._ever = self.blind = False

    def teller(self) -> Callable[[], Teller]:
        """Makes a worker's `Teller`, in the worker."""
        return partial(Teller, Line(self.collector), self.seconds)

    def take(self, heard: bool, moved: bool) -> None:
        """Note what was drained."""
        now = time.monotonic()
        if moved or (heard and not self._ever):
            self._moved = now
        if heard:
            self._heard, self._ever = now, True

    def check(self) -> None:
        """Say so if the run stands still.

        Raises:
            UserError: With what to do.
        """
        if self.blind:
            return
        now = time.monotonic()
        kept = "What was finished is kept; the same command goes on from there"
        if now - self._heard > SILENT_SECONDS:
            silent = _minutes(SILENT_SECONDS)
            if not self._ever:
                raise UserError(
                    f"no worker has started for {silent}: the cluster does not give them the CPUs, GPUs or memory that "
                    "it says it has. See `ray status` for what others hold, and start the run again when that is free, "
                    f"or with fewer --workers. {kept}"
                )
            raise UserError(
                f"no worker has reported anything for {silent}: all have died, or cannot be started again. See `ray "
                f"status` for the nodes that are left. {kept}"
            )
        if self._ever and now - self._moved > STILL_SECONDS:
            raise UserError(
                f"no worker has done an image or computed anything for {_minutes(STILL_SECONDS)}, though they live: "
                "they wait for something that does not come, such as a file system or a server. --inline shows where. "
                f"{kept}"
            )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:g} s"


@contextmanager
def collected(on_news: OnNews, workers: int = 1) -> Iterator[Watch]:
    """What workers send news to, and a thread that passes it on; the last of it before the block is left.

    News is for the eye, for events.jsonl and to see whether anybody works: what is done is told by files.

    Args:
        on_news: Told of every news.
        workers: How many there will be.
    """
    import ray

    context = ray.get_runtime_context()
    watch = Watch(_actor(context.get_node_id(), context.get_job_id()), workers)
    stop = threading.Event()

    def drain() -> None:
        gathered, heard, moved = ray.get(watch.collector.drain.remote(), timeout=60)
        watch.take(heard, moved)
        for news in gathered:
            on_news(news)

    def poll() -> None:
        while not stop.wait(0.5):
            try:
                drain()
            except ray.exceptions.GetTimeoutError:
                watch.take(heard=True, moved=True)  # this machine is too busy to ask, which says nothing of the workers
            except ray.exceptions.RayError:
                watch.blind = True
                _actor.cache_clear()
                return

    thread = threading.Thread(target=poll, name="news", daemon=True)
    thread.start()
    try:
        yield watch
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
    return ray.remote(num_cpus=0, scheduling_strategy=beside_me)(_Collector).remote()

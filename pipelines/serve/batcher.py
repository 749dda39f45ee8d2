"""One thread for each model, which takes what waits in batches, whichever requests it is of."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from labelmill.operators.moment import kind_of
from labelmill.pipelines.serve.metrics import Metrics
from labelmill.pipelines.serve.work import Work, told

log = logging.getLogger("labelmill.serve")


@dataclass(slots=True)
class _Waiting:
    """What one image or text waits with."""

    item: Any
    future: Future[Any]
    since: float


class Batcher:
    """Everything that one model is asked, in one thread: a model is never called twice at once.

    The oldest item that waits decides what is asked next: with it go those that ask the same and have the same shape.
    A batch that is not full waits only while more is on its way (`coming`), and no longer than `wait`: one client
    alone never waits, and while the model is busy the next batch fills by itself.

    Args:
        name: Of the card.
        wait: Seconds that a batch waits for what is on its way, at most.
        metrics: Told of every batch.
    """

    def __init__(self, name: str, wait: float, metrics: Metrics) -> None:
        self.name = name
        self.lost: str | None = None
        self._wait, self._metrics = wait, metrics
        self._groups: OrderedDict[tuple[int, Hashable], deque[_Waiting]] = OrderedDict()
        self._works: dict[int, Work] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._coming = 0
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"model-{name}", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing waits, is computed or is on its way."""
        with self._changed:
            return not (self._groups or self._calls or self._coming or self._busy)

    def coming(self, count: int) -> None:
        """Say that so many items are on their way, or, negative, that so many have come or will not."""
        with self._changed:
            self._coming += count
            self._changed.notify()

    def submit(self, work: Work, item: Any) -> Future[Any]:
        """Have one item computed; the future gives its answer or raises its own exception."""
        future: Future[Any] = Future()
        key = (id(work), work.bucket(item))
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the model {self.name} was unloaded")
            self._works[id(work)] = work
            self._groups.setdefault(key, deque()).append(_Waiting(item, future, time.monotonic()))
            self._changed.notify()
        return future

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Have a function called in the model's thread, before anything else that waits."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the model {self.name} was unloaded")
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Do what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            task()
            del task  # what it holds is not kept until the next one comes
            with self._changed:
                self._busy = False

    def _next(self) -> Callable[[], None] | None:
        """What to do next; None when it is over."""
        with self._changed:
            while True:
                if self._calls:
                    function, future = self._calls.popleft()
                    self._busy = True
                    return lambda: _settle(future, function)
                if self._groups:
                    key = min(self._groups, key=lambda each: self._groups[each][0].since)
                    work, group = self._works[key[0]], self._groups[key]
                    left = group[0].since + self._wait - time.monotonic()
                    if len(group) < work.batch and self._coming > 0 and left > 0:
                        self._changed.wait(left)
                        continue
                    batch = [group.popleft() for _ in range(min(len(group), work.batch))]
                    if not group:
                        del self._groups[key]
                        if not any(number == key[0] for number, _ in self._groups):
                            del self._works[key[0]]
                    self._busy = True
                    return lambda: self._run(work, batch)
                if self._closed:
                    return None
                self._changed.wait()

    def _run(self, work: Work, batch: list[_Waiting]) -> None:
        wanted = [each for each in batch if each.future.set_running_or_notify_cancel()]
        if not wanted:
            return
        started = time.monotonic()
        try:
            outcomes = work.run([each.item for each in wanted])
        except BaseException as error:
            log.exception("model %s failed", self.name)
            if kind_of(error) == "accelerator":
                self.lost = str(error)
            outcomes = [told(error)] * len(wanted)
        self._metrics.batch(self.name, len(wanted), time.monotonic() - started)
        for each, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                each.future.set_exception(outcome)
            else:
                each.future.set_result(outcome)


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)

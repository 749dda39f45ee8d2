"""Parts of a dataset step as Ray tasks: `operators.base.Tasks` on the cluster that the step runs on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from labelmill.pipelines.engine.deaths import RETRIES
from labelmill.pipelines.engine.work import use_threads

WAIT_SECONDS = 15.0
"""How long a GPU that is held is waited for."""


class RayTasks:
    """Runs parts on the CPUs of the cluster that this process is connected to, or on its GPUs.

    Args:
        folder: See `operators.base.Tasks`.
        gpu: Whether a part runs faster on a GPU; then each gets one, if the cluster has any that nobody else holds:
            on CPUs it is done, on a GPU that is never given back it is not.
    """

    def __init__(self, folder: str, gpu: bool) -> None:
        import ray

        self.folder = folder
        has = ray.cluster_resources()
        self._gpus = 1 if gpu and has.get("GPU", 0) >= 1 and _free_gpu() else 0
        self.width = max(1, int(has["GPU"] if self._gpus else has.get("CPU", 1)))

    def map(
        self, function: Callable[[Any, Any], Any], shared: Any, arguments: Iterable[Any]
    ) -> Iterator[tuple[int, Any]]:
        """See `operators.base.Tasks`. A task that waits for these gives its own CPU back while it does."""
        import ray

        remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=RETRIES)(_call)
        everywhere = ray.put(shared)
        waiting: dict[Any, int] = {}

        def ended() -> tuple[int, Any]:
            (first,), _ = ray.wait(list(waiting), num_returns=1)
            return waiting.pop(first), ray.get(first)

        for number, argument in enumerate(arguments):
            waiting[remote.remote(function, everywhere, argument)] = number
            if len(waiting) > self.width:
                yield ended()
        while waiting:
            yield ended()


def _free_gpu() -> bool:
    """Whether some GPU is free, or becomes so in a moment: the steps before may just be giving theirs back."""
    import ray

    deadline = time.monotonic() + WAIT_SECONDS
    while ray.available_resources().get("GPU", 0) < 1:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _call(function: Callable[[Any, Any], Any], shared: Any, argument: Any) -> Any:
    use_threads()
    return function(shared, argument)

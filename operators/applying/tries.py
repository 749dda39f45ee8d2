"""What threads do to one image at a time: tried again where that can help, alone where memory is short."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from labelmill.operators.applying.memory import free_memory
from labelmill.operators.applying.patience import Patience, StopError, passes
from labelmill.operators.applying.results import ContractError
from labelmill.operators.moment import kind_of

if TYPE_CHECKING:
    from labelmill.operators.applying.shard_images import ShardImages


class Tries:
    """Actions of threads that work side by side; one of them may ask the others to wait when memory is short.

    Args:
        threads: How many there are.
        patience: How long to try again.
        images: Forgotten when memory is short.
    """

    def __init__(self, threads: int, patience: Patience, images: ShardImages) -> None:
        self._threads, self._patience, self._images = threads, patience, images
        self._places = threading.Semaphore(threads)
        self._turn = threading.Lock()

    def outcome(self, action: Callable[[], Any]) -> Any:
        """What an action gives, or the exception that is its row's.

        Raises:
            ContractError, StopError, RuntimeError: What is no row's: see `operators.applying.bisect.bisect`.
        """
        try:
            try:
                with self._places:
                    return action()
            except Exception as error:
                if not passes(error):
                    raise
                free = partial(free_memory, self._images)
                return self._patience.again(partial(self._again, action, error), error, free)
        except (ContractError, StopError):
            raise
        except Exception as error:
            if kind_of(error) == "accelerator":
                raise
            return error

    def _again(self, action: Callable[[], Any], failed: Exception) -> Any:
        if kind_of(failed) != "memory":
            with self._places:
                return action()
        with self._turn:
            for _ in range(self._threads):
                self._places.acquire()
            try:
                return action()
            finally:
                self._places.release(self._threads)

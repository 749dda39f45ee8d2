"""How long a worker waits for what passes, and when it stops waiting for anything."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from labelmill.operators.moment import kind_of, retry_after

if TYPE_CHECKING:
    from tenacity import RetryCallState

Result = TypeVar("Result")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the second attempt, and at most before any; twice as long each time, and up to half as much again by
chance, so that workers do not all come back at once."""
MEMORY_ATTEMPTS, MEMORY_PAUSE = 3, 0.2
"""A picture is too large for the memory that is left, or it is not: waiting longer helps little."""
REFILL = 0.1
"""Seconds of waiting that a worker earns in a second without any."""

FIRST_IMAGES, LAST_IMAGES = 32, 256
"""A step is judged by its latest images, so many at most, once it has had so many first ones."""
SHARE = 0.5
"""A step stops when more than this share of them is undone."""
NOTHING_SECONDS, NOTHING_IMAGES = 300.0, 8
"""It stops too when nothing has succeeded for so long, in which at least so many were undone: a server that hangs."""


class StopError(Exception):
    """A step cannot go on, whatever the image: a key that is refused, a model that is gone. Stops the run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How a run meets what passes; none of it changes a result.

    Attributes:
        seconds: How long an image is tried again. A worker waits twice as long altogether, then a tenth of its time.
        keep_going: Leave images undone, however many there are, where the run would stop.
    """

    seconds: float = 90.0
    keep_going: bool = False


class Patience:
    """Tries again with growing pauses, or those that a server asks for, as long as there is patience. Thread-safe.

    Args:
        limits: How long for one image. The time in which any thread tries again is taken from a budget of twice as
            much, which fills again slowly: a few images that never succeed must not hold up millions that do.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._left = self._most = 2 * self.limits.seconds
        self._troubled = 0
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def again(
        self, attempt: Callable[[], Result], failed: Exception, free: Callable[[], None] = lambda: None
    ) -> Result:
        """What `attempt` gives after it has failed once.

        Args:
            attempt: Is called again while it raises what is of the moment (`operators.moment`).
            failed: What it raised the first time.
            free: Gives memory back; called before an attempt that lacked some.

        Raises:
            Exception: What `attempt` raised last.
        """
        import tenacity

        first: list[Exception] = [failed]

        def tried() -> Result:
            if first:
                raise first.pop()
            return attempt()

        def before(state: RetryCallState) -> None:
            if kind_of(_error(state)) == "memory":
                free()

        self._account(+1)
        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception(passes),
                wait=_pause,
                stop=self._is_over,
                before_sleep=before,
                sleep=time.sleep,
                reraise=True,
            )(tried)
        finally:
            self._account(-1)

    def _is_over(self, state: RetryCallState) -> bool:
        if kind_of(_error(state)) == "memory" and state.attempt_number >= MEMORY_ATTEMPTS:
            return True
        pause = state.upcoming_sleep
        waited = state.seconds_since_start or 0.0
        return waited + pause > self.limits.seconds or self._account(0) < pause

    def _account(self, change: int) -> float:
        """Bring the budget up to date; seconds that are left."""
        with self._lock:
            now = time.monotonic()
            spent = now - self._at
            self._left += -spent if self._troubled else spent * REFILL
            self._left = min(self._most, max(0.0, self._left))
            self._at = now
            self._troubled += change
            return self._left


class Watch:
    """Sees when a step fails for reasons of the moment so often that going on would only burn through the images.

    Attributes:
        reason: Why the step should stop; None while it should not.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.reason: str | None = None
        self._keep_going = (limits or Limits()).keep_going
        self._latest: deque[bool] = deque(maxlen=LAST_IMAGES)
        self._in_a_row = 0
        self._began = 0.0

    def note(self, undone: bool, why: str = "") -> None:
        """What became of an image."""
        self._latest.append(undone)
        if not undone:
            self._in_a_row = 0
            return
        if not self._in_a_row:
            self._began = time.monotonic()
        self._in_a_row += 1
        if self._keep_going or self.reason is not None:
            return
        number, of = sum(self._latest), len(self._latest)
        nothing_for = time.monotonic() - self._began
        many = of >= FIRST_IMAGES and number > SHARE * of
        if many or (self._in_a_row >= NOTHING_IMAGES and nothing_for > NOTHING_SECONDS):
            self.reason = f"{number} of its latest {of} images could not be processed, the last because: {why}"


def passes(error: BaseException) -> bool:
    """Whether trying again in this process can help."""
    return kind_of(error) not in (None, "accelerator")


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None
    return error


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt."""
    import tenacity

    error = _error(state)
    if kind_of(error) == "memory":
        return MEMORY_PAUSE * (state.attempt_number - 1)
    growing: Any = tenacity.wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)(state)
    asked = retry_after(error) or 0.0
    spread: Any = tenacity.wait_random(0, min(growing / 2, LONGEST_PAUSE))(state)
    return float(max(growing, asked) + spread)

"""What ends a run before its images do, and says so in a sentence: an outage, a lost GPU."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from labelmill.operators.applying.patience import Limits, Patience, StopError, passes
from labelmill.operators.moment import Kind, kind_of
from labelmill.operators.wording import counted
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.steps import Step

KEPT = "What was finished is kept"

ADVICE: dict[Kind, str] = {
    "memory": "there is too little memory; end other programs, or take a machine with more",
    "machine": "the machine lacks something; raise its limit (ulimit -a), or end other programs",
    "network": "something cannot be reached; see that it can",
}

EXIT_UNDONE = 3
"""Exit status of a run that leaves images undone."""


class Stopped(UserError):
    """A step lacks something as a whole."""

    exit_status = 1


class Outage(UserError):
    """A step leaves so many images undone that the run stops.

    Args:
        step: Its name.
        reason: What `operators.applying.patience.Watch` says.
    """

    exit_status = 1

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(
            f"step {step!r} is stopped: {reason}. {KEPT}: see that this passes and run the same command again, or with "
            "--keep-going to leave such images undone and go on with the others"
        )
        self._told = (step, reason)

    def __reduce__(self) -> tuple[type[Outage], tuple[str, str]]:
        return type(self), self._told


class AcceleratorLost(UserError):
    """A GPU is in a state that only another process can mend.

    Args:
        step: Name of the step that used it.
        reason: What it said.
    """

    exit_status = 1

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(
            f"step {step!r} lost its GPU: {reason}. {KEPT}: run the same command again; if it comes back, try a "
            "smaller `batch`, or see the driver's log (dmesg) for what ails the GPU"
        )
        self.told = (step, reason)

    def __reduce__(self) -> tuple[type[AcceleratorLost], tuple[str, str]]:
        return type(self), self.told


@contextmanager
def stopped(steps: Sequence[Step]) -> Iterator[None]:
    """Name the steps in what stops them.

    Raises:
        UserError: An operator's StopError, or that something is lacking which no single image asked for.
        AcceleratorLost: A GPU is of no more use in this process.
    """
    names = " and ".join(step.name for step in steps)
    try:
        yield
    except StopError as error:
        raise UserError(f"step {names!r} cannot go on: {error}. {KEPT}") from error
    except UserError:
        raise
    except Exception as error:
        kind, text = kind_of(error), (str(error).strip() or type(error).__name__).partition("\n")[0]
        if kind == "accelerator":
            raise AcceleratorLost(names, text) from error
        if kind is None or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise  # the latter: `pipelines.run_folder.output_error` has a word on it
        raise Stopped(
            f"step {names!r} is stopped: {ADVICE[kind]} ({text}). {KEPT}: then run the same command again"
        ) from error


def undone_line(summary: Mapping[str, Any]) -> str | None:
    """What a run says at its end of images that are undone, and why; None where there are none.

    Args:
        summary: What ``summary.json`` holds.
    """
    number = summary["outcome"].get("undone", 0)
    if not number:
        return None
    first = next((each for each in summary["reasons"] if each["decision"] == "undone"), None)
    why = f" ({first['step']}: {first['reason']})" if first is not None else ""
    are = f"{counted(number, 'image')} {'is' if number == 1 else 'are'}"
    return f"{are} undone{why}; run the same command again to do {'it' if number == 1 else 'them'}"


def patient(fetch: Callable[[str], bytes], limits: Limits) -> Callable[[str], bytes]:
    """The same, tried again where what is in the way may pass."""
    patience = Patience(limits)

    def patiently(uri: str) -> bytes:
        try:
            return fetch(uri)
        except Exception as error:
            if not passes(error):
                raise
            return patience.again(partial(fetch, uri), error)

    return patiently

"""What ends a run before its images do, and says so in a sentence: an outage, a lost GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from operators.applying.patience import StopError
from operators.moment import kind_of
from operators.wording import counted
from pipelines.errors import UserError
from pipelines.steps import Step

KEPT = "What was finished is kept"

EXIT_UNDONE = 3
"""Exit status of a run that leaves images undone."""


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
        UserError: An operator's StopError.
        AcceleratorLost: A GPU is of no more use in this process.
    """
    names = " and ".join(step.name for step in steps)
    try:
        yield
    except StopError as error:
        raise UserError(f"step {names!r} cannot go on: {error}. {KEPT}") from error
    except Exception as error:
        if kind_of(error) != "accelerator":
            raise
        raise AcceleratorLost(names, str(error).strip().partition("\n")[0]) from error


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

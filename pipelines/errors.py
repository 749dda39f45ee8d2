"""Errors that are the user's to mend. The command line prints them without a traceback and exits with their status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something outside the program is wrong; the message says what, and what to do next.

    Attributes:
        exit_status: Of the command that it ends.
    """

    exit_status = 2


class ConfigError(UserError):
    """One or more mistakes in a pipeline file, each with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UnfinishedRun(UserError):
    """Some step of a run is not done for all of its shards."""

    def __init__(self, folder: str) -> None:
        super().__init__(f"the run {folder} is not finished; run its pipeline again to go on")


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the nearest known word, or nothing."""
    names = sorted(set(known))
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""

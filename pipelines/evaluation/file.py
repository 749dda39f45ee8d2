"""``evaluation.json``: what a run was found to be worth against a truth, kept in the run for whoever asks next."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cached_property
from typing import Any

from labelmill.pipelines.evaluation.truth import Truth
from labelmill.pipelines.run_folder.reopen import PIPELINE_FILE, reopen, state_of

EVALUATION_FILE = "evaluation.json"

VERSION = 3
"""Raised when the same run and the same truth give other figures."""


class EvaluationFile:
    """The figures of the last evaluation of a run, if they are of this truth and of what the run is now.

    Args:
        folder: The run.
        truth: What it is held against.
    """

    def __init__(self, folder: str, truth: Truth) -> None:
        pipeline, self._layout, self._shards = reopen(folder)
        self._whole = all(self._layout.done(step.position) >= self._shards.keys() for step in pipeline.steps)
        self._truth = truth

    def read(self) -> dict[str, Any] | None:
        """The figures that fit; None where there are none, or the run is not finished."""
        if not self._whole or not self._layout.store.exists(EVALUATION_FILE):
            return None
        try:
            kept = json.loads(self._layout.store.read(EVALUATION_FILE))
            return kept["figures"] if kept["fingerprint"] == self._fingerprint else None
        except (ValueError, TypeError, KeyError):  # not as `write` leaves it: made anew
            return None

    def write(self, figures: dict[str, Any]) -> None:
        """Keep figures, unless the run is where nothing can be written: it can be evaluated all the same."""
        text = json.dumps({"fingerprint": self._fingerprint, "figures": figures}, indent=2, ensure_ascii=False)
        with suppress(OSError):
            self._layout.store.write(EVALUATION_FILE, f"{text}\n".encode())

    @cached_property
    def _fingerprint(self) -> str:
        """Of everything that the figures depend on: the run's results and settings, and all that the truth says."""
        state = [VERSION, state_of(self._layout, self._shards), self._layout.store.read(PIPELINE_FILE).decode()]
        return hashlib.sha256(json.dumps([*state, self._truth.digest()]).encode()).hexdigest()

"""Writes the report of a run."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from labelmill.pipelines.errors import UserError
from labelmill.pipelines.report.gather import OnProgress, gather
from labelmill.pipelines.report.page import render
from labelmill.pipelines.report.run_reader import RunReader

REPORT_FILE = "report.html"

VERSION = 1
"""Raised when a report of the same run looks different."""

HEAD = 2000
"""Bytes at the beginning of a report that hold its state."""


def write_report(
    folder: str,
    truth: str | Path | None = None,
    out: Path | None = None,
    again: bool = True,
    on_progress: OnProgress = lambda done, of: None,
) -> str:
    """Write the report of a finished run: one HTML file that needs nothing but itself.

    Args:
        folder: The run.
        truth: Hold the run against it; see `pipelines.evaluation.truth.read_truth`.
        out: Where to write; ``report.html`` in the run if not given.
        again: Write it even if there is one already of the same results.
        on_progress: Told how many pictures of how many are made.

    Returns:
        The file's address.

    Raises:
        UserError: The run is not finished, the truth cannot be read, or the file cannot be written.
    """
    run = RunReader(folder)
    state = _state(run, truth)
    if out is None and not again and _known_state(run) == state:
        return run.layout.store.address(REPORT_FILE)
    page = render(gather(run, truth, on_progress), state).encode("utf-8", "backslashreplace")
    address = run.layout.store.address(REPORT_FILE) if out is None else str(out)
    try:
        if out is None:
            run.layout.store.write(REPORT_FILE, page)
        else:
            out.write_bytes(page)
    except OSError as error:
        raise UserError(f"the report cannot be written to {address}: {error}") from error
    return address


def _state(run: RunReader, truth: str | Path | None) -> str:
    """Identifies everything that the report is made from."""
    exports = [[export["export"], export["fingerprint"]] for export in run.summary.get("exports", [])]
    content = json.dumps([VERSION, run.summary["state"], run.pipeline.labels, exports, str(truth)])
    return hashlib.sha256(content.encode()).hexdigest()


def _known_state(run: RunReader) -> str | None:
    """The state of the report that is there."""
    store = run.layout.store
    try:
        head = store.fs.cat_file(store.path(REPORT_FILE), start=0, end=HEAD)
    except FileNotFoundError:
        return None
    found = re.search(rb'<meta name="labelmill-state" content="([0-9a-f]{64})">', head)
    return found[1].decode() if found else None

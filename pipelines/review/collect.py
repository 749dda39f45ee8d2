"""Takes back what people decided: into one file of decisions that a `review` step applies, and into figures."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from labelmill.operators.review import REVIEWS
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.review.answers import Answer, Report, shown_labels
from labelmill.pipelines.review.cvat import read_cvat
from labelmill.pipelines.review.estimate import estimate
from labelmill.pipelines.review.label_studio import read_label_studio
from labelmill.pipelines.review.manifest import Given, given_images, read_manifests
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.run_folder.store import Store, parquet_bytes

DECISIONS_FILE = "review/decisions.parquet"
"""Where a run keeps what people decided."""


def read_decisions(store: Store, name: str) -> pa.Table:
    """The decisions so far; none if there is no such file.

    Raises:
        UserError: The file is something else.
    """
    import pyarrow.parquet as pq

    try:
        content = store.read(name)
    except FileNotFoundError:
        return REVIEWS.empty_table()
    try:
        return pq.read_table(io.BytesIO(content)).select(REVIEWS.names).cast(REVIEWS)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{store.address(name)} must be a file of decisions but is not; move it away: {error}"
        ) from error


def import_review(file: Path, run: str, reviewer: str | None = None) -> dict[str, Any]:
    """Add a tool's answers to the run's decisions. A later answer about an image takes the place of an earlier one.

    Args:
        file: What Label Studio exports as JSON, or CVAT as *CVAT for images 1.1* (XML or zip).
        run: The run that the images were given out from.
        reviewer: Who, for answers that do not say so themselves.

    Returns:
        ``decisions`` (the file's address), ``reviewed``, ``not_reviewed``, ``skipped`` (images), ``untouched``,
        ``changed``, ``removed`` and ``added`` (labels), ``problems`` (sentences), ``estimate`` (see `estimate`; of all
        random slices of the same labels), and ``random`` and ``random_reviewed`` (images of those slices).

    Raises:
        UserError: No review was given out, or the file is none of these.
    """
    if not file.is_file():
        raise UserError(f"there is no file {str(file)!r}; give what Label Studio or CVAT exported")
    _, layout, _ = reopen(run)
    manifests = read_manifests(layout.store)
    if not manifests:
        raise UserError(
            f"nothing of {run} was given out for review; begin with: labelmill review export OUT --run {run}"
        )
    given, report = given_images(manifests), Report()
    read = read_label_studio if _looks_like_json(file) else read_cvat
    answers = list(read(file, given, report))
    store = layout.store
    merged = _merged(read_decisions(store, DECISIONS_FILE), answers, given, reviewer)
    if answers:
        store.write(DECISIONS_FILE, parquet_bytes(merged))
    counts = dict.fromkeys(("untouched", "changed", "removed", "added"), 0)
    for each in answers:
        for name, count in _changes(given[each.image_id], each).items():
            counts[name] += count
    latest = given[answers[-1].image_id].details if answers else manifests[-1][0]
    about = max((given[each.image_id].details for each in answers), key=lambda each: each.number, default=latest)
    figures = _figures(about.fingerprint, given, merged)
    return {
        "run": run,
        "decisions": store.address(DECISIONS_FILE),
        "labels": about.labels,
        "reviewed": len(answers),
        "not_reviewed": report.not_reviewed,
        "skipped": report.skipped,
        **counts,
        **figures,
        "problems": report.problems,
    }


def _looks_like_json(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{")


def _merged(earlier: pa.Table, answers: list[Answer], given: dict[int, Given], reviewer: str | None) -> pa.Table:
    """All decisions, by key; the new ones in the place of earlier ones about the same image."""
    new = {given[each.image_id].image.key: each for each in answers}
    rows = [row for row in earlier.to_pylist() if row["key"] not in new]
    rows += [
        {
            "key": key,
            "image_id": each.image_id,
            "detections": each.detections,
            "reviewer": each.reviewer if each.reviewer is not None else reviewer,
            "reviewed_at": each.reviewed_at,
        }
        for key, each in new.items()
    ]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["key"])), schema=REVIEWS)


def _changes(given: Given, answer: Answer) -> dict[str, int]:
    """What became of the labels of one image: an IoU of 0.5 and the class say which ones are the same object."""
    shown = _shown(given)
    found = estimate([(given.image.image_id, shown, answer.detections)], given.details.classes)
    same = found["precision"]["right"]
    return {
        "untouched": answer.untouched,
        "changed": max(0, same - answer.untouched),
        "removed": len(shown) - max(same, answer.untouched),
        "added": len(answer.detections) - max(same, answer.untouched),
    }


def _shown(given: Given) -> list[dict[str, Any]]:
    return [given.image.detections[label.position - 1] for label in shown_labels(given)]


def _figures(fingerprint: str, given: dict[int, Given], decisions: pa.Table) -> dict[str, Any]:
    """The estimate from all random slices of the labels of one step."""
    slice_ = [each for each in given.values() if each.random and each.details.fingerprint == fingerprint]
    left = {row["key"]: row["detections"] for row in decisions.select(["key", "detections"]).to_pylist()}
    done = [each for each in slice_ if each.image.key in left]
    pairs: Iterable[Any] = ((each.image.image_id, _shown(each), left[each.image.key]) for each in done)
    classes = list(dict.fromkeys(name for each in done for name in each.details.classes))
    return {"random": len(slice_), "random_reviewed": len(done), "estimate": estimate(pairs, classes)}

"""What a labelling tool gives back, whichever it is: an answer for each image, and everything wrong with the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from labelmill.pipelines.exports.labels import Label, Tally
from labelmill.pipelines.review.manifest import Given
from labelmill.pipelines.sources.labels import LabelError, clip, detection, mask_box


@dataclass(frozen=True, slots=True)
class Returned:
    """An object as the tool gave it back.

    Attributes:
        name: Its class.
        box: x1, y1, x2, y2 in pixels of the upright image, unclipped; None where the mask says it.
        mask: Counts of compressed RLE over the image.
        same_as: 1-based position of the label that was shown and is this one, untouched; None for a person's work.
    """

    name: str
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    same_as: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a person left of one image.

    Attributes:
        image_id: Of the image.
        reviewer: Who; None where the file does not say.
        reviewed_at: When; None where the file does not say.
        detections: Dicts of `operators.columns.schemas.DETECTION`.
        untouched: How many of them are labels as they were shown.
    """

    image_id: int
    reviewer: str | None
    reviewed_at: datetime | None
    detections: list[dict[str, Any]]
    untouched: int


@dataclass
class Report:
    """What a reader noticed.

    Attributes:
        problems: One sentence each, with the id that the tool gave it.
        not_reviewed: Images in the file that nobody has answered yet.
        skipped: Images that a person passed over.
    """

    problems: list[str] = field(default_factory=list)
    not_reviewed: int = 0
    skipped: int = 0


def shown_labels(given: Given) -> list[Label]:
    """The labels of an image as they were written into its task."""
    return Tally(given.details.classes, []).read(given.image)


def answer(
    given: Given,
    returned: Iterator[tuple[str, Returned]],
    reviewer: str | None,
    reviewed_at: datetime | None,
    report: Report,
) -> Answer:
    """From objects to detections. What cannot be used is reported and left out.

    Args:
        given: The image as it was given out.
        returned: Each object with what to call it in a report.
        reviewer: Who.
        reviewed_at: When.
        report: Is added to.
    """
    size = given.image.width, given.image.height
    found: list[dict[str, Any]] = []
    untouched = 0
    for where, each in returned:
        try:
            if each.same_as is not None:
                found.append(given.image.detections[each.same_as - 1])
                untouched += 1
                continue
            if each.name not in given.details.classes:
                known = ", ".join(given.details.classes)
                raise LabelError(f"has the label {each.name!r}, which must be one of {known}")
            box = each.box if each.mask is None else mask_box(each.mask, size)
            assert box is not None
            found.append(detection(clip(box, size)[0], each.name, mask=each.mask))
        except LabelError as error:
            report.problems.append(f"{where} {error}; left out")
    return Answer(given.image.image_id, reviewer, reviewed_at, found, untouched)


def moment(text: Any) -> datetime | None:
    """A point in time as tools write it (ISO 8601; UTC where it names no zone); None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        read = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def alike(first: Sequence[float], second: Sequence[float], within: float) -> bool:
    """Whether two lists have the same numbers."""
    return len(first) == len(second) and all(abs(a - b) <= within for a, b in zip(first, second, strict=True))

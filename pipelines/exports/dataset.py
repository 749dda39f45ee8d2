"""What an exporter is given and what it gives back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from labelmill.operators.moment import kind_of
from labelmill.pipelines.errors import UserError

Fetch = Callable[[str], bytes]


ALL = "all"
"""What the only split is called in counts when a run has none."""


_SPLIT_NAME = re.compile(r"\w[\w.-]*")


class ExportError(UserError):
    """The dataset cannot be written as asked."""


def unreadable(key: str, error: Exception) -> ExportError:
    """The error of an image that was kept and cannot be read now; with what to do, where that may pass."""
    again = "; when it can, run the same command again" if kind_of(error) is not None else ""
    return ExportError(f"image {key!r} cannot be read: {error}{again}")


@dataclass(frozen=True, slots=True)
class ExportImage:
    """One image of the dataset.

    Attributes:
        image_id: At least 1, unique, stable when shards are added.
        key: Path below the source's root, unique.
        uri: Where the bytes are.
        width: Of the upright image, in pixels.
        height: Of the upright image, in pixels.
        split: Name of its split; None when the dataset has none.
        detections: Dicts of `operators.columns.schemas.DETECTION`, in pixels of the upright image.
        format: Pillow's name of the format that the bytes have, such as ``JPEG``.
        words: Dicts of `operators.read.WORD`; None where nobody looked for words.
        caption: A sentence about the image, if there is one.
        image_class: The class of the image as a whole, if there is one.
        label_state: One of `operators.columns.schemas.LABEL_STATES`. Only of an image that is ``read`` do `detections`
            say what is there, and what is not.
    """

    image_id: int
    key: str
    uri: str
    width: int
    height: int
    split: str | None
    detections: list[dict[str, Any]]
    format: str
    words: list[dict[str, Any]] | None = None
    caption: str | None = None
    image_class: str | None = None
    label_state: str = "read"


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is to be written.

    Attributes:
        images: One pass over them, ordered by image_id; no more than one is held at a time.
        classes: Class names; their order is the order of class ids.
        splits: Names of the splits, in order; empty when the dataset has none.
        fetch: Gives the bytes behind a uri; called from several threads.
        provenance: Where the dataset came from and how it was made, as JSON values. ``licences``, a list of names or
            URLs, goes where the format has a place for it. ``models`` lists the models that made the labels, as
            `pipelines.exports.columns.models_used` gives them.
        categories: Class name → what else the source says of the class; see `Source.categories`.
        left_out: Images that are not among them because nobody knows what is on them, by the state of their labels.
    """

    images: Iterator[ExportImage]
    classes: list[str]
    splits: list[str]
    fetch: Fetch
    provenance: dict[str, Any]
    left_out: Counter[str] = field(default_factory=Counter)
    categories: dict[str, dict[str, Any]] = field(default_factory=dict)

    def checked(self) -> Iterator[ExportImage]:
        """The images, each checked against what is promised of them.

        Raises:
            ExportError: A split has no plain name, images are out of order, or one has no pixels or a split that is not
                in `splits`.
        """
        for split in self.splits:
            if not _SPLIT_NAME.fullmatch(split):
                raise ExportError(f"a split's name must be letters, digits, '_', '-' and '.' but is {split!r}")
        last = 0
        for image in self.images:
            if image.image_id <= last:
                raise ExportError(
                    f"images must come by ascending image_id from 1 but {image.key!r} has {image.image_id} after {last}"
                )
            last = image.image_id
            if image.width < 1 or image.height < 1:
                raise ExportError(f"image {image.key!r} must have pixels but is {image.width} by {image.height}")
            if self.splits and image.split not in self.splits:
                known = ", ".join(self.splits)
                where = "none" if image.split is None else repr(image.split)
                raise ExportError(
                    f"image {image.key!r} must be in one of the splits {known} but is in {where}; "
                    "`split:` under `export:` puts every image into one"
                )
            if not self.splits and image.split is not None:
                raise ExportError(
                    f"image {image.key!r} must have no split, as there are none, but is in {image.split!r}"
                )
            yield image


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written.

    Attributes:
        images: Images of each split; under ``all`` when there are no splits.
        annotations: Annotations of each class, every class of the dataset in its order.
        skipped: Labels that were left out, by reason.
        notes: Sentences about what a reader of the format will stumble over.
        paths: Files to hand to a reader, below the output's root.
    """

    images: dict[str, int]
    annotations: dict[str, int]
    skipped: dict[str, int]
    notes: tuple[str, ...]
    paths: tuple[str, ...]

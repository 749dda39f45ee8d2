"""From the detections of an image to labels that every format can hold, and the counts of both."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.dataset import ALL, ExportError, ExportImage, ExportSummary
from labelmill.pipelines.exports.masks import Mask, MaskError, read_mask

MIN_SIDE = 0.5
"""Pixels of a box inside the image, in width and in height, below which there is nothing to label."""

IDS_PER_IMAGE = 100_000
"""An object's id is ``image_id * IDS_PER_IMAGE + position``: images added later change no id, two images never share
one, and a person can read the image and the place in it off the number."""

MAX_ID = 2**53
"""Beyond it, a reader that keeps ids as doubles (COCOeval, JavaScript) confuses them."""

NOT_FINITE = "box has a coordinate that is missing or not finite"
INVERTED = "box is inverted"
OUTSIDE = "box lies outside the image"
THIN = f"box is less than {MIN_SIDE} px wide or high inside the image"


@dataclass(frozen=True, slots=True)
class Label:
    """One object of an image, checked.

    Attributes:
        position: 1-based place among the image's detections, those left out included.
        class_id: 0-based place of its class.
        box: x1, y1, x2, y2 in pixels, clipped to the image.
        mask: None for a box alone; an empty mask counts as none.
        score: None for a label that a person made.
        prompt: None where nothing was asked.
        models: References of the model cards that made it, the box's first; empty where none is known.
        crowd: No object but a region to ignore.
        extra: What else its source said of it.
    """

    position: int
    class_id: int
    box: tuple[float, float, float, float]
    mask: Mask | None
    score: float | None
    prompt: str | None
    models: tuple[str, ...] = ()
    crowd: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def object_id(image: ExportImage, label: Label) -> int:
    """An object's id, which changes neither when images are added nor between formats.

    Raises:
        ExportError: The image has more objects than ids.
    """
    number = image.image_id * IDS_PER_IMAGE + label.position
    if label.position >= IDS_PER_IMAGE or number >= MAX_ID:
        raise ExportError(
            f"image {image.key!r}: ids have room for {IDS_PER_IMAGE - 1} objects an image and image_id up to "
            f"{MAX_ID // IDS_PER_IMAGE - 1}, but this is object {label.position} of image_id {image.image_id}"
        )
    return number


def state_notes(left_out: Counter[str], written: Counter[str]) -> list[str]:
    """What to say of images that nobody knows all objects of: those left out, and those written all the same."""
    notes = []
    if count := left_out["unread"]:
        notes.append(
            f"{counted(count, 'image')} left out: nobody looked for objects there, so they are not background. "
            "`unread: background` takes them as images with nothing on them."
        )
    if count := left_out["refused"]:
        notes.append(
            f"{counted(count, 'image')} left out: some of their labels could not be taken (refused.parquet). "
            "`refused: rest` writes them with the others."
        )
    if count := written["unread"]:
        notes.append(f"{counted(count, 'image')} without labels: nobody looked for objects there.")
    if count := written["refused"]:
        notes.append(f"{counted(count, 'image')} with some labels missing, which could not be taken (refused.parquet).")
    return notes


class Tally:
    """Reads labels and counts what became of them, by split and class."""

    def __init__(
        self,
        classes: Sequence[str],
        splits: Sequence[str],
        keeps: Sequence[str] = (),
        left_out: Counter[str] | None = None,
    ) -> None:
        """Args:
        classes: Class names in order.
        splits: Split names in order; empty for none.
        keeps: ``crowd`` where the format has a place for regions to ignore, ``extra`` for what else a source said.
        left_out: See `Dataset`.

        Raises:
            ExportError: A class name stands twice.
        """
        self.classes = list(classes)
        self.splits = list(splits) or [ALL]
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise ExportError(f"class names must differ but {twice[0]!r} stands twice")
        self._ids = {name: index for index, name in enumerate(self.classes)}
        self.images = dict.fromkeys(self.splits, 0)
        self.annotations = {split: [0] * len(self.classes) for split in self.splits}
        self.skipped: Counter[str] = Counter()
        self.empty_masks = 0
        self.boxes_only = 0
        self.crowds = 0
        self.unsaid: Counter[str] = Counter()
        self.unlabelled: Counter[str] = Counter()
        self._keeps = frozenset(keeps)
        self._left_out = Counter() if left_out is None else left_out

    def read(self, image: ExportImage) -> list[Label]:
        """The labels of an image that can be written. Counts them, the image, and the labels that cannot.

        Raises:
            ExportError: A class is not among the classes.
        """
        split = self.count_image(image.split)
        if image.label_state != "read":
            self.unlabelled[image.label_state] += 1
        labels = []
        for position, detection in enumerate(image.detections, 1):
            class_id = self.class_id(image, detection["class"])
            reason, label = self._label(image, position, class_id, detection)
            if label is None:
                self.skipped[reason] += 1
            elif label.crowd and "crowd" not in self._keeps:
                self.crowds += 1
            else:
                if "extra" not in self._keeps:
                    self.unsaid.update(label.extra.keys())
                labels.append(label)
                self.annotations[split][label.class_id] += 1
        return labels

    def _label(
        self, image: ExportImage, position: int, class_id: int, detection: dict[str, Any]
    ) -> tuple[str, Label | None]:
        corners = [detection[name] for name in ("x1", "y1", "x2", "y2")]
        if not all(value is not None and math.isfinite(value) for value in corners):
            return NOT_FINITE, None
        x1, y1, x2, y2 = (float(value) for value in corners)
        if x2 < x1 or y2 < y1:
            return INVERTED, None
        if x1 > image.width or y1 > image.height or x2 < 0 or y2 < 0:
            return OUTSIDE, None
        x1, x2 = (min(max(value, 0.0), float(image.width)) for value in (x1, x2))
        y1, y2 = (min(max(value, 0.0), float(image.height)) for value in (y1, y2))
        if min(x2 - x1, y2 - y1) < MIN_SIDE:
            return THIN, None
        mask = None
        if detection.get("mask") is not None:
            try:
                mask = read_mask(detection["mask"], image.height, image.width)
            except MaskError as error:
                return str(error), None
            if mask.area == 0:
                self.empty_masks += 1
                mask = None
        self.boxes_only += mask is None
        score = detection.get("score")
        return "", Label(
            position=position,
            class_id=class_id,
            box=(x1, y1, x2, y2),
            mask=mask,
            score=None if score is None else float(score),
            prompt=detection.get("prompt"),
            models=tuple(detection.get("models") or ()),
            crowd=bool(detection.get("crowd")),
            extra=json.loads(detection.get("extra") or "{}"),
        )

    def add_class(self, name: str) -> int:
        """The place of a class, put behind the others if it is new."""
        if name not in self._ids:
            self._ids[name] = len(self.classes)
            self.classes.append(name)
            for counts in self.annotations.values():
                counts.append(0)
        return self._ids[name]

    def count_image(self, split: str | None) -> str:
        """Count an image whose labels are not read; gives the split that its annotations count for."""
        split = split if split is not None else ALL
        self.images[split] += 1
        return split

    def class_id(self, image: ExportImage, name: str) -> int:
        """The place of a class.

        Raises:
            ExportError: It is not among the classes.
        """
        if name not in self._ids:
            raise ExportError(
                f"image {image.key!r}: class must be one of {', '.join(map(repr, self.classes))} but is {name!r}; "
                "add it to the ontology"
            )
        return self._ids[name]

    def notes(self) -> list[str]:
        """What every format has to say about its labels."""
        notes = state_notes(self._left_out, self.unlabelled)
        if self.empty_masks:
            number = counted(self.empty_masks, "object has", "objects have")
            notes.append(f"{number} an empty mask; written without a mask.")
        if self.crowds:
            number = counted(self.crowds, "region", "regions")
            notes.append(
                f"{number} to ignore (COCO's crowds) left out, as the format has no place for them; "
                "whoever trains on these images takes them for background."
            )
        if self.unsaid:
            told = ", ".join(f"{name} of {count}" for name, count in sorted(self.unsaid.items()))
            notes.append(f"What the source says of objects besides box, mask and class is left out: {told} objects.")
        return notes

    def summary(self, notes: Sequence[str], paths: Sequence[str]) -> ExportSummary:
        """The counts so far."""
        totals = [sum(column) for column in zip(*self.annotations.values(), strict=True)]
        return ExportSummary(
            images=dict(self.images),
            annotations=dict(zip(self.classes, totals, strict=True)),
            skipped=dict(sorted(self.skipped.items())),
            notes=tuple(notes),
            paths=tuple(paths),
        )

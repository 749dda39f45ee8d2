"""The labels of anything that a source can be, read by that source's own code: for truth and answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from labelmill.pipelines.sources.base import Entry, Refused, Sizes


@dataclass(frozen=True)
class Labels:
    """All labels of a file or folder.

    Attributes:
        where: The file or folder.
        kind: What it was read as; a kind of source.
        classes: Class names: the source's own order where it has one, else those found, by name.
        images: Key → its entry, with `labels`, `label_state`, `refused`, `split`, `metadata` and `problem`.
        refused: Labels that could not be taken and belong to no image.
        problems: What else was wrong and belongs to no image, one sentence each.
    """

    where: str
    kind: str
    classes: list[str]
    images: dict[str, Entry] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_labels(where: str, sizes: Sizes | None = None) -> Labels:
    """Read labels of any kind that a source can read: tolerant where it is, and in the same words where it is not.

    Boxes are float64 as the source says them, clipped to the image; `crowd` marks regions to ignore; `extra_of` gives
    what else an object carries, such as COCO's ``area``.

    Args:
        where: A COCO file, a ``data.yaml``, a folder of any of the kinds, Parquet or tar files; local or remote.
        sizes: Width and height of the upright image by key, for labels whose images lie elsewhere (a COCO file alone).
            None: the images are beside the labels, as they are for a source.

    Raises:
        pipelines.sources.base.SourceError: It is not there, or nothing of it can be read.
    """
    from labelmill.pipelines.sources.guess import guess_kind
    from labelmill.pipelines.sources.spec import SourceSpec, open_source

    location, kind = guess_kind(where)
    spec = SourceSpec.model_validate({kind: location})
    source = open_source(spec, sizes)
    images = {entry.key: entry for entry in source.scan()}
    classes = source.classes
    if classes is None:
        classes = sorted({label["class"] for entry in images.values() for label in entry.labels or []})
    return Labels(where, kind, classes, images, list(source.refused), list(source.problems))


def extra_of(label: dict[str, Any]) -> dict[str, Any]:
    """What else the source said of an object: COCO's ``area``, ``keypoints``, ``attributes``, …; empty for nothing."""
    found = json.loads(label.get("extra") or "{}")
    return found if isinstance(found, dict) else {}

"""What a random slice says about all labels of a run: precision and recall, each with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.measures.detections import bbox, compare

IOU = 0.5
"""From which on a model's box and a person's are about the same thing."""

CONFIDENCE = 0.95

Labels = list[dict[str, Any]]


def estimate(pairs: Iterable[tuple[int, Labels, Labels]], classes: Sequence[str]) -> dict[str, Any]:
    """Precision and recall of the models' labels, a person's labels being the truth.

    A label is right if the person has one of its class that it overlaps with an IoU of at least `IOU`, and counts for
    nothing in a region to ignore. Intervals are
    Wilson's (1927) at 95 %; they take labels as independent, which those of one image are not quite.

    Args:
        pairs: image_id, the labels that were shown, those that the person left. Of the random slice only.
        classes: Class names.

    Returns:
        ``images``, ``precision`` and ``recall``, each with ``estimate``, ``low``, ``high``, ``right`` and ``of``; and
        ``precision_by_class``, the same for each class that has labels. Without labels an estimate is None.
    """
    images, shown_by, right_by = 0, Counter[str](), Counter[str]()
    people = 0
    numbers = {name: place for place, name in enumerate(classes, 1)}
    for image_id, shown, left in pairs:
        images += 1
        shown = [each for each in shown if not each.get("crowd")]
        truth = [_box(image_id, each, numbers) for each in left]
        found = [_box(image_id, each, numbers) for each in shown]
        compared = compare(truth, found, IOU)
        people += compared.objects
        shown_by.update(each["class"] for place, each in enumerate(shown) if place not in compared.ignored)
        right_by.update(shown[pair.found]["class"] for pair in compared.pairs)
    right = right_by.total()
    return {
        "images": images,
        "precision": _share(right, shown_by.total()),
        "recall": _share(right, people),
        "precision_by_class": {name: _share(right_by[name], shown_by[name]) for name in classes if shown_by[name]},
    }


def _box(image_id: int, label: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    number = numbers.setdefault(label["class"], len(numbers) + 1)
    box = bbox(*(float(label[side]) for side in SIDES))
    return {"image_id": image_id, "category_id": number, "bbox": box, "score": label["score"],
            "iscrowd": int(bool(label.get("crowd")))}  # fmt: skip


def _share(right: int, of: int) -> dict[str, Any]:
    from scipy.stats import binomtest

    if not of:
        return {"estimate": None, "low": None, "high": None, "right": 0, "of": 0}
    interval = binomtest(right, of).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "estimate": right / of,
        "low": float(interval.low),
        "high": float(interval.high),
        "right": right,
        "of": of,
    }

"""What can be wrong with the labels that data came with, as a column: one type for every operator that looks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from labelmill.operators.columns.schemas import SIDES

KINDS = ("missing", "spurious", "location", "class", "duplicate", "conflict", "invalid")
"""Kinds of label errors.

=========  ============================================================================================
missing    an object that no label covers
spurious   a label where there is nothing
location   a label of an object that is beside it, too large or too small
class      a label with the wrong class, or with one that is not known
duplicate  a second label of one object
conflict   a label that copies of the image contradict
invalid    a label that cannot be used at all: a box without area, with NaN, outside the image
=========  ============================================================================================
"""

_BOX = [pa.field(side, pa.float32()) for side in SIDES]

LABEL_ERROR = pa.struct(
    [
        pa.field("kind", pa.string()),  # one of KINDS
        pa.field("label", pa.int32()),  # place of the label in its image's list, from 0; null for one that is missing
        pa.field("class", pa.string()),  # as given; null for one that is missing
        *_BOX,  # as given
        pa.field("suggested", pa.struct([pa.field("class", pa.string()), *_BOX])),  # null: no label should be here
        pa.field("score", pa.float32()),  # 0…1: how sure
        pa.field("reason", pa.string()),  # a sentence for a person
    ]
)
"""One error: the label as given, what it should be instead, how sure that is, and why."""

LABEL_ERRORS = pa.list_(LABEL_ERROR)
"""The errors of one image, the surest first. An empty list says that there are none; null that nobody looked."""

Box = Sequence[float]


def finding(
    kind: str,
    score: float,
    reason: str,
    given: tuple[int, str | None, Box] | None = None,
    suggested: tuple[str | None, Box] | None = None,
) -> dict[str, Any]:
    """One value of `LABEL_ERROR`.

    Args:
        kind: One of `KINDS`.
        score: How sure, 0…1.
        reason: Why.
        given: Place, class and box of the label; None for one that is missing.
        suggested: Class and box that it should have; None if it should not be there.
    """
    place, name, box = given or (None, None, (None,) * 4)
    return {
        "kind": kind,
        "label": place,
        "class": name,
        **dict(zip(SIDES, box, strict=True)),
        "suggested": None
        if suggested is None
        else {"class": suggested[0], **dict(zip(SIDES, suggested[1], strict=True))},
        "score": score,
        "reason": reason,
    }


def surest_first(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In an order that depends on nothing but what they say."""

    def place(found: dict[str, Any]) -> tuple[Any, ...]:
        label, suggested = found["label"], found["suggested"]
        where = () if suggested is None else tuple(suggested[side] for side in SIDES)
        return -found["score"], KINDS.index(found["kind"]), -1 if label is None else label, where, found["reason"]

    return sorted(findings, key=place)


def pool(scores: Sequence[float], temperature: float = 0.1) -> float:
    """How good an image's labels are, 0…1: the softmin of 1 − score over its labels and over what is missing.

    As in ObjectLab (Tkachenko, Thyagarajan and Mueller 2023): near the worst of them, a little lower if several are as
    bad. 1 where there is nothing to find fault with.
    """
    if not scores:
        return 1.0
    good = [1.0 - score for score in scores]
    weights = [math.exp((min(good) - each) / temperature) for each in good]
    return sum(weight * each for weight, each in zip(weights, good, strict=True)) / sum(weights)

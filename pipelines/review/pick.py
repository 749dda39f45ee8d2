"""Chooses the images that a person should look at, each with its reason, and a random slice for statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from labelmill.operators.sampling.seeded import key_bytes, seeded_hashes
from labelmill.operators.select import DEFAULT, Select
from labelmill.pipelines.run_folder.layout import Layout, column_of
from labelmill.pipelines.run_folder.outcomes import outcomes
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.steps import Input

NEAR = 0.1
"""A score within so much of its threshold could as well have gone the other way."""

RARE = 0.25
"""A class is rare when it has less than this share of the objects that a class has on average."""

BELOW = "score is below"
"""How `select` begins the reason of a detection that its threshold turned away."""


@dataclass(frozen=True, slots=True)
class Pick:
    """An image to look at.

    Attributes:
        image_id: Its number.
        random: Whether it belongs to the random slice.
        reasons: Why else; empty for an image that is only in the slice.
    """

    image_id: int
    random: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What speaks for an image: the lower the value, the more."""

    value: float
    chance: int
    image_id: int
    reason: str

    @property
    def order(self) -> tuple[float, int, int]:
        return self.value, self.chance, self.image_id


@dataclass
class _Best:
    """The `most` first candidates of many, in memory for twice as many."""

    most: int
    found: list[_Candidate] = field(default_factory=list)

    def add(self, candidate: _Candidate) -> None:
        self.found.append(candidate)
        if len(self.found) > 2 * self.most + 100:
            self.found = self.sorted()

    def sorted(self) -> list[_Candidate]:
        return sorted(self.found, key=lambda candidate: candidate.order)[: self.most]


@dataclass(frozen=True)
class _Row:
    """What the run says of one image that it kept."""

    image_id: int
    chance: int
    labels: list[dict[str, Any]]
    agreement: list[float | None]
    raw: list[dict[str, Any]]
    reasons: list[str | None]


def pick(
    layout: Layout,
    shards: dict[int, int],
    labels: Input,
    images: int,
    random_images: int,
    seed: int,
    reviewed: frozenset[int],
    drawn: frozenset[int],
) -> tuple[list[Pick], int]:
    """Choose up to `images` images among those that the run kept.

    The random slice is the first of all images in the order of a seeded hash of their key, so it is the same whatever
    else is there. The others are taken in turn from three lists, as far as the run has what they go by: the lowest
    `agreement` of a label (see `operators.verify`); scores nearest to the threshold of the last `select`, on either
    side of it and within `NEAR`; objects of rare classes, the rarest first. Equal ones go by the hash. When the lists
    are empty, the random slice takes the rest.

    Args:
        layout: A finished run.
        shards: Number of images by shard.
        labels: The column to review.
        images: How many in all.
        random_images: How many of them in the random slice, at least.
        seed: Another seed draws another slice.
        reviewed: Images that a person has seen, to be left out of the lists.
        drawn: Images of earlier random slices, to be left out of this one.

    Returns:
        The images by image_id, and how many images the run kept.
    """
    kept, counts = _count(layout, shards, labels)
    rare = _rare(counts)
    agreement, (raw, reasons, limit) = _agreement_column(layout), _select_columns(layout)
    by_chance, lists = _Best(images), [_Best(images) for _ in range(3)]
    for row in _rows(layout, shards, (labels, agreement, raw, reasons), seed):
        if row.image_id not in drawn:
            by_chance.add(_Candidate(0.0, row.chance, row.image_id, ""))
        if row.image_id in reviewed:
            continue
        for best, told in zip(lists, (_disagreement(row), _near(row, limit), _rarest(row, rare)), strict=True):
            if told is not None:
                best.add(_Candidate(told[0], row.chance, row.image_id, told[1]))
    chosen = _choose([best.sorted() for best in lists], by_chance.sorted(), images, random_images)
    return chosen, kept


def _choose(lists: list[list[_Candidate]], by_chance: list[_Candidate], images: int, random_images: int) -> list[Pick]:
    """The random slice, then the lists in turn, then the rest of the slice."""
    drawable = iter(by_chance)
    random = {candidate.image_id for candidate in islice(drawable, random_images)}
    reasons: dict[int, list[str]] = {image_id: [] for image_id in random}
    queues = [iter(candidates) for candidates in lists]
    while queues and len(reasons) < images:
        for queue in list(queues):
            candidate = next((each for each in queue if each.image_id not in reasons), None)
            if candidate is None:
                queues.remove(queue)
            elif len(reasons) < images:
                reasons[candidate.image_id] = []
    for candidate in drawable:
        if len(reasons.keys() | {candidate.image_id}) > images:
            break
        random.add(candidate.image_id)
        reasons.setdefault(candidate.image_id, [])
    for candidates in lists:
        for candidate in candidates:
            if candidate.image_id in reasons:
                reasons[candidate.image_id].append(candidate.reason)
    return [Pick(image_id, image_id in random, tuple(reasons[image_id])) for image_id in sorted(reasons)]


def _count(layout: Layout, shards: dict[int, int], labels: Input) -> tuple[int, Counter[str]]:
    """How many images the run kept, and their objects of each class."""
    images, counts = 0, Counter[str]()
    for outcome in outcomes(layout, shards):
        kept = np.flatnonzero([final == "kept" for final in outcome.final])
        images += len(kept)
        found = column_of(layout, labels, outcome.shard).take(pa.array(kept))
        classes = pc.struct_field(pc.list_flatten(found), "class")
        counts.update({each["values"]: each["counts"] for each in pc.value_counts(classes).to_pylist()})
    return images, counts


def _rows(layout: Layout, shards: dict[int, int], columns: Sequence[Input | None], seed: int) -> Iterator[_Row]:
    """The images that the run kept, with the values of labels, agreement, raw detections and their reasons."""
    for outcome in outcomes(layout, shards):
        rows = read_shard(layout.store, outcome.shard, ["image_id", "key"])
        image_ids = rows.column("image_id").to_pylist()
        chances = seeded_hashes(key_bytes(rows.column("key")), f"review:{seed}:")[:, 0].tolist()
        values: list[list[Any]] = [
            [None] * len(rows) if each is None else column_of(layout, each, outcome.shard).to_pylist()
            for each in columns
        ]
        for index, final in enumerate(outcome.final):
            if final == "kept":
                labels, agreement, raw, reasons = (each[index] or [] for each in values)
                yield _Row(image_ids[index], chances[index], labels, agreement, raw, reasons)


def _agreement_column(layout: Layout) -> Input | None:
    """The last column ``agreement`` that is a list of numbers."""
    for step in reversed(layout.steps):
        for column in step.operator.writes():
            if column.name == "agreement" and pat.is_list(column.type) and pat.is_floating(column.type.value_type):
                return Input(step.position, column.name, column.type)
    return None


def _select_columns(layout: Layout) -> tuple[Input | None, Input | None, Callable[[str], float]]:
    """What the last `select` read, its reasons, and the threshold of a class."""
    step = next((step for step in reversed(layout.steps) if isinstance(step.operator, Select)), None)
    if step is None:
        return None, None, lambda name: math.nan
    params = step.operator.params
    limits = params.score if isinstance(params.score, dict) else {DEFAULT: params.score}
    default = float(limits.get(DEFAULT, type(params).model_fields["score"].default))
    reasons = Input(step.position, "reasons", pa.list_(pa.string()))
    return step.inputs[params.detections], reasons, lambda name: float(limits.get(name, default))


def _rare(counts: Counter[str]) -> dict[str, int]:
    if len(counts) < 2:
        return {}
    most = RARE * sum(counts.values()) / len(counts)
    return {name: count for name, count in counts.items() if count < most}


def _disagreement(row: _Row) -> tuple[float, str] | None:
    known = [value for value in row.agreement if value is not None and math.isfinite(value)]
    if not known or min(known) >= 1:
        return None
    return min(known), f"agreement about a label is {min(known):.2f}"


def _near(row: _Row, limit: Callable[[str], float]) -> tuple[float, str] | None:
    nearest: tuple[float, str] | None = None
    for found, reason in zip(row.raw, row.reasons, strict=False):
        if found["score"] is None or (reason is not None and not reason.startswith(BELOW)):
            continue
        away = abs(found["score"] - limit(found["class"]))
        if away <= NEAR and (nearest is None or away < nearest[0]):
            told = f"{found['class']} scored {found['score']:.2f}, the threshold is {limit(found['class']):g}"
            nearest = away, told
    return nearest


def _rarest(row: _Row, rare: dict[str, int]) -> tuple[float, str] | None:
    names = sorted({label["class"] for label in row.labels} & rare.keys(), key=lambda name: (rare[name], name))
    return (float(rare[names[0]]), f"{names[0]} is rare: {rare[names[0]]} in all") if names else None

"""Judges the labels of one image by what a detector sees in it: which are wrong, how, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelmill.operators.detections.sightings import Floats, Integers, Sightings, overlaps, shares_inside
from labelmill.operators.labels.findings import finding

NEAR = 0.1
"""Boxes with a smaller IoU have nothing to do with each other: TIDE's border between `location` and background."""

MET = 0.5
"""Boxes with this IoU mean the same object: TIDE's border between right and badly placed."""

SAME = 0.7
"""Detections with a larger IoU are one sighting, as `select` takes them for one object."""

UNSEEN = 0.1
"""Chance that there is an object where a detector names none: no detector sees them all."""


@dataclass(frozen=True)
class Labels:
    """The usable labels of one image.

    Attributes:
        places: int64 (n,): where each stands in its image's list.
        boxes: float64 (n, 4), xyxy in pixels.
        codes: int64 (n,): class numbers.
        doubts: float64 (n,): chance that the label is wrong by other witnesses; 0.5 where there is none.
    """

    places: Integers
    boxes: Floats
    codes: Integers
    doubts: Floats


@dataclass(frozen=True)
class Regions:
    """Where one image's objects were not told apart: what is seen there needs no label.

    Attributes:
        boxes: float64 (n, 4), xyxy in pixels.
        codes: int64 (n,): the classes that were not told apart.
    """

    boxes: Floats
    codes: Integers


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        findings: Errors with a score of at least the floor.
        scores: Of the worst that can be said of each label, and of each sighting without one, floor or not.
    """

    findings: list[dict[str, Any]]
    scores: list[float]


def judge(
    labels: Labels, seen: Sightings, ignored: Regions, names: Sequence[str], overlap: float, floor: float
) -> Judgement:
    """Judge the labels of one image.

    Args:
        labels: Those that are usable.
        seen: What the detector says.
        ignored: A sighting of which half lies in such a region of its class is not missing.
        names: Classes by number.
        overlap: Two labels with this IoU may be one object.
        floor: The least score of a finding.
    """
    case = _Case(labels, seen, names, overlap)
    findings, scores = [], []
    released = np.ones(len(seen), dtype=bool)
    for label in range(len(labels.places)):
        found = case.label(label)
        partner = case.partner[label]
        if partner >= 0 and found["kind"] not in ("spurious", "duplicate"):
            released[partner] = False
        scores.append(found["score"])
        findings.append(found)
    released &= ~_inside(seen, case.best, ignored)
    for sighting in np.flatnonzero(released).tolist():
        found = case.missing(sighting)
        scores.append(found["score"])
        findings.append(found)
    return Judgement([found for found in findings if found["score"] >= floor], scores)


class _Case:
    """One image: labels and sightings, who goes with whom."""

    def __init__(self, labels: Labels, seen: Sightings, names: Sequence[str], overlap: float) -> None:
        self.labels, self.seen, self.names, self.overlap = labels, seen, names, overlap
        self.iou = overlaps(labels.boxes, seen.boxes)
        self.twins = overlaps(labels.boxes, labels.boxes)
        np.fill_diagonal(self.twins, 0.0)
        self.best = seen.chances.argmax(axis=1) if len(seen) else np.zeros(0, dtype=np.int64)
        self.sure = seen.chances.max(axis=1, initial=0.0)
        self.own = seen.chances[:, labels.codes].T if len(seen) else np.zeros((len(labels.codes), 0))
        self.partner, self.support = self._partners()

    def _partners(self) -> tuple[list[int], Floats]:
        """For each label the sighting that means its object, -1 if none does, and how well it supports the label.

        One to one, with the largest sum of overlap times chance; the label's own class counts double.
        """
        from scipy.optimize import linear_sum_assignment

        value = np.where(self.iou >= NEAR, self.iou, 0.0) * (self.own + self.sure) / 2
        partner, support = [-1] * len(value), np.zeros(len(value))
        for label, sighting in zip(*linear_sum_assignment(value, maximize=True), strict=True):
            if value[label, sighting] > 0:
                partner[label] = int(sighting)
                support[label] = self.own[label, sighting] * min(1.0, self.iou[label, sighting] / MET)
        return partner, support

    def label(self, label: int) -> dict[str, Any]:
        """The likeliest of what may be wrong with a label."""
        chances = self._chances(label)
        kind = max(chances, key=lambda name: chances[name])
        score = chances[kind]
        if kind in ("spurious", "class"):  # what a badly placed box shows says little about where it should be
            score = _and(score, float(self.labels.doubts[label]))
        tell = {"spurious": self._spurious, "duplicate": self._duplicate, "class": self._class}
        return tell.get(kind, self._location)(label, score)

    def _chances(self, label: int) -> dict[str, float]:
        met = np.minimum(1.0, self.iou[label] / MET)
        there = max(UNSEEN, float((self.sure * met).max(initial=0.0)))
        chances = {"duplicate": self._twin(label)[1]}
        sighting = self.partner[label]
        if sighting >= 0:
            own = float(self.own[label, sighting])
            iou = float(self.iou[label, sighting])
            there = max(there, own * min(1.0, iou / (2 * NEAR)))
            other = self._other(label, sighting)
            rival = float(self.seen.chances[sighting, other]) if other >= 0 else 0.0
            if rival:
                chances["class"] = float(met[sighting]) * rival * rival / (rival + own)
            chances["location"] = own * min(1.0, (1.0 - iou) / (1.0 - MET)) ** 2
        chances["spurious"] = 1.0 - there
        return chances

    def _other(self, label: int, sighting: int) -> int:
        """The likeliest class of a sighting that is not the label's; -1 if there is none."""
        chances = self.seen.chances[sighting].copy()
        chances[self.labels.codes[label]] = 0.0
        return int(chances.argmax()) if chances.any() else -1

    def _twin(self, label: int) -> tuple[int, float]:
        """The better label of the same object, and the chance that it is one; -1 and 0 if there is none."""
        support = self.support
        earlier = np.arange(len(support)) < label
        better = (support > support[label]) | ((support == support[label]) & earlier)
        alike = np.where(better & (self.twins[label] >= self.overlap), self.twins[label], 0.0)
        if not alike.any():
            return -1, 0.0
        twin = int(alike.argmax())
        return twin, float(alike[twin] * (1.0 - self.support[label]))

    def _given(self, label: int) -> tuple[int, str, list[float]]:
        labels = self.labels
        return int(labels.places[label]), self.names[labels.codes[label]], labels.boxes[label].tolist()

    def _spurious(self, label: int, score: float) -> dict[str, Any]:
        near = self.iou[label] * self.sure
        reason = "the detector sees nothing here"
        if near.any():
            sighting = int(near.argmax())
            overlap = self.iou[label, sighting]
            reason = f"the detector is not sure of anything here: nearest is {self._named(sighting)}, IoU {overlap:.2f}"
        return finding("spurious", score, reason, self._given(label))

    def _duplicate(self, label: int, score: float) -> dict[str, Any]:
        twin = self._twin(label)[0]
        place, name, _ = self._given(twin)
        reason = f"overlaps label {place} ({name}) by IoU {self.twins[label, twin]:.2f}; the detector sees one object"
        return finding("duplicate", score, reason, self._given(label))

    def _class(self, label: int, score: float) -> dict[str, Any]:
        sighting = self.partner[label]
        other = self._other(label, sighting)
        given = self._given(label)
        scores = self.seen.scores[sighting]
        reason = (
            f"the detector sees {self.names[other]} ({scores[other]:.2f}) here, "
            f"not {given[1]} ({scores[self.labels.codes[label]]:.2f})"
        )
        return finding("class", score, reason, given, (self.names[other], given[2]))

    def _location(self, label: int, score: float) -> dict[str, Any]:
        sighting = self.partner[label]
        given = self._given(label)
        own = f"{given[1]} ({self.seen.scores[sighting, self.labels.codes[label]]:.2f})"
        reason = f"the detector sees {own} elsewhere: IoU {self.iou[label, sighting]:.2f}"
        return finding("location", score, reason, given, (given[1], self.seen.boxes[sighting].tolist()))

    def missing(self, sighting: int) -> dict[str, Any]:
        """What it says of the labels that a sighting has none; less if a surer sighting may be of the same object."""
        code = int(self.best[sighting])
        labelled = float(self.iou[:, sighting].max(initial=0.0)) / MET
        surer = np.lexsort((np.arange(len(self.sure)), -self.sure))
        surer = surer[: int(np.flatnonzero(surer == sighting)[0])]
        again = float(overlaps(self.seen.boxes[[sighting]], self.seen.boxes[surer]).max(initial=0.0))
        covered = min(1.0, max(labelled, again / SAME if again >= MET else 0.0))
        reason = f"the detector sees {self._named(sighting)} and no label covers it"
        suggested = (self.names[code], self.seen.boxes[sighting].tolist())
        return finding("missing", float(self.sure[sighting]) * (1.0 - covered), reason, suggested=suggested)

    def _named(self, sighting: int) -> str:
        code = int(self.best[sighting])
        return f"{self.names[code]} ({self.seen.scores[sighting, code]:.2f})"


def _inside(seen: Sightings, best: Integers, ignored: Regions) -> np.ndarray:
    """bool: whether each sighting lies in a region of its likeliest class to ignore."""
    there = (shares_inside(seen.boxes, ignored.boxes) >= MET) & (best[:, None] == ignored.codes)
    return np.asarray(there.any(axis=1))


def _and(chance: float, doubt: float) -> float:
    """What two independent witnesses make of it together (naive Bayes); a doubt of 0.5 says nothing."""
    wrong, right = chance * doubt, (1.0 - chance) * (1.0 - doubt)
    return wrong / (wrong + right)

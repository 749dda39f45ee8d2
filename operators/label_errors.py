"""label_errors: which of the labels that data came with are wrong, how, and how sure that is."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from labelmill.operators.base import KEPT, Decision, OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detections.sightings import Detections, Floats, Sightings, overlaps, sightings, usable
from labelmill.operators.errors import OperatorError
from labelmill.operators.labels.findings import LABEL_ERRORS, finding, pool, surest_first
from labelmill.operators.labels.judge import MET, SAME, Labels, Regions, judge
from labelmill.operators.ontology import Ontology, normalise

Found = dict[str, Any]
Given = tuple[int, str | None, list[float]]

NO_CLASS = "(no class)"

_DOUBT = 0.05
"""Second opinions are wrong at least as often as this."""


class LabelErrors(TableOperator):
    """Labels that a detector contradicts: missing, spurious, badly placed, wrong class, duplicate; and unusable ones.

    The kinds are those of TIDE (Bolya et al. 2020), with the labels on trial instead of the detector; that every error
    has a score, and that scores are pooled to one for the image, is as in ObjectLab (Tkachenko, Thyagarajan and Mueller
    2023). Raw detections are read, not selected ones: what the detector was unsure of counts too. Those that overlap
    by more than 0.7 are one sighting, whose class stays open. Labels and sightings are then matched one to one. Of a
    sighting, p(c) is the chance that it is a c (its score, see `even`), p the largest of them:

    =========  =====================================================================================================
    missing    p, less as a label overlaps it, for a sighting without a label
    spurious   1 − p of the sightings here, less as they overlap the label less; at most 0.9, as detectors miss some
    class      p(other)² / (p(other) + p(given)) of the label's sighting
    location   p(given), less as the IoU nears 1, for a label whose sighting is elsewhere
    duplicate  IoU with a label that is supported better, less as this one has a sighting of its own
    invalid    1: the box has no area, or is not finite, or lies outside the image
    class      1: the class is null or not in the ontology; the suggestion is the nearest name in it
    =========  =====================================================================================================

    A label has one error at most, the likeliest. Nothing is decided here: the labels stay as they are. Regions to
    ignore (COCO's crowds) are not on trial, and what the detector sees in one, of its class, is not missing.

    Columns: `errors`, the surest first (`operators.labels.findings.LABEL_ERROR`), and `label_quality`, 0…1: how good
    the image's labels are, near the worst of them. Both are null where the source has no labels.
    """

    name = "label_errors"

    class Params(OperatorParams):
        """What is held against what.

        Attributes:
            labels: The column on trial.
            detections: Raw detections, before `select`; of a model that was not trained on these labels.
            agreement: The column of `verify` over the same labels: how far second opinions agree with each label's
                class, 0…1. A witness besides the detector for what may be spurious or of the wrong class.
            even: The score at which a detection is as often right as wrong. 0.5 takes scores as calibrated.
            overlap: Two labels with this IoU may be two of one object.
            size: Hold boxes against the image's size too; needs `inspect`.
            floor: Errors with a lower score are left out.
            ontology: The classes that labels may have; the pipeline's where a step names none.
        """

        labels: str = Field("source.labels", min_length=1)
        detections: str = Field("detections", min_length=1)
        agreement: str | None = None
        even: Annotated[float, Field(gt=0, lt=1)] = 0.3
        overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
        size: bool = False
        floor: Annotated[float, Field(ge=0, le=1)] = 0.1
        ontology: Ontology | None = None

    params: Params

    def reads(self) -> tuple[str, ...]:
        params = self.params
        names = [params.labels, params.detections, *([params.agreement] if params.agreement else [])]
        return tuple(dict.fromkeys([*names, *(("width", "height") if params.size else ())]))

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.labels: DETECTIONS, self.params.detections: DETECTIONS}

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        if self.params.labels == self.params.detections:
            message = f"labels and detections must be two columns but both are {self.params.labels!r}"
            raise OperatorError(message, ("detections",))
        kind = columns.get(self.params.agreement or "")
        if kind is not None and not (pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)):
            raise OperatorError(f"agreement must be a list of numbers for each image but is {kind}", ("agreement",))

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("errors", LABEL_ERRORS), pa.field("label_quality", pa.float32())])

    def compute(self, table: pa.Table) -> TableResult:
        """Judge each image by itself."""
        params = self.params
        labels, found = Detections(table.column(params.labels)), Detections(table.column(params.detections))
        court = _Court(params, labels, found)
        sizes = None
        if params.size:
            sizes = list(zip(table.column("width").to_pylist(), table.column("height").to_pylist(), strict=True))
        agreements = table.column(params.agreement).to_pylist() if params.agreement else None
        rows: list[tuple[list[Found], float] | None] = []
        decisions = [KEPT] * len(labels)
        for image in range(len(labels)):
            size = sizes[image] if sizes is not None else (None, None)
            agreement = agreements[image] if agreements is not None else None
            count = int(labels.starts[image + 1] - labels.starts[image])
            if agreement is not None and labels.known[image] and len(agreement) != count:
                reason = f"{params.agreement} must have a number for each of {count} labels but has {len(agreement)}"
                decisions[image] = Decision("failed", reason)
                rows.append(None)
            else:
                rows.append(court.judge(image, size, agreement))
        columns = [
            pa.array([row and row[0] for row in rows], LABEL_ERRORS),
            pa.array([row and row[1] for row in rows], pa.float32()),
        ]
        return TableResult(pa.table(columns, schema=self.writes()), decisions)


class _Court:
    """Judges the images of one shard.

    Args:
        params: The rules.
        labels: On trial.
        found: Raw detections.
    """

    def __init__(self, params: LabelErrors.Params, labels: Detections, found: Detections) -> None:
        self._params, self._labels, self._found = params, labels, found
        self._names = [*sorted({*labels.names, *found.names}), NO_CLASS]
        numbers = {name: number for number, name in enumerate(self._names)}
        # the last place serves -1, the code of null
        self._of_label = np.array([*(numbers[name] for name in labels.names), len(numbers) - 1])
        self._of_found = np.array([*(numbers[name] for name in found.names), -1])
        self._known = None if params.ontology is None else _Names(params.ontology)

    def judge(
        self, image: int, size: tuple[float | None, float | None], agreement: list[float | None] | None
    ) -> tuple[list[Found], float] | None:
        """Errors and label quality of one image; None where labels or detections are not known."""
        if not self._labels.known[image] or not self._found.known[image]:
            return None
        rows = self._labels.rows(image)
        boxes, codes = self._labels.boxes[rows], self._of_label[self._labels.codes[rows]]
        seen = self._sightings(image)
        givens: list[Given] = [
            (place, None if code == len(self._names) - 1 else self._names[code], box)
            for place, (code, box) in enumerate(zip(codes.tolist(), boxes.tolist(), strict=True))
        ]
        outside = [_outside(box, size) for box in boxes.tolist()]
        good = usable(boxes) & (np.array(outside, dtype=float) < 1)
        crowds = self._labels.crowds[rows]
        regions = Regions(boxes[good & crowds], codes[good & crowds])
        judged = np.flatnonzero(good & ~crowds)
        judged = judged[np.lexsort((codes[judged], *boxes[judged].T[::-1]))]  # their order in the file does not matter
        on_trial = Labels(judged, boxes[judged], codes[judged], _doubts(agreement, len(boxes))[judged])
        verdict = judge(on_trial, seen, regions, self._names, self._params.overlap, self._params.floor)
        ours = [
            each
            for given, part in zip(givens, outside, strict=True)
            for each in self._by_itself(given, bool(good[given[0]]), part, size, seen)
        ]
        worse = {each["label"]: each for each in verdict.findings if each["label"] is not None}
        ours = [each for each in ours if each["label"] not in worse or each["score"] > worse[each["label"]]["score"]]
        replaced = {each["label"] for each in ours}
        errors = [each for each in verdict.findings if each["label"] not in replaced] + ours
        return surest_first(errors), pool([*verdict.scores, *(each["score"] for each in ours)])

    def _sightings(self, image: int) -> Sightings:
        rows, found = self._found.rows(image), self._found
        codes = self._of_found[found.codes[rows]]
        return sightings(found.boxes[rows], codes, found.scores[rows], len(self._names), self._params.even, SAME)

    def _by_itself(
        self, given: Given, good: bool, outside: float, size: tuple[float | None, float | None], seen: Sightings
    ) -> Iterator[Found]:
        """What can be said of a label without the detector's opinion; one error at most."""
        _, name, box = given
        wrong = None if self._known is None and name is not None else self._unknown(name)
        if not good:
            yield finding("invalid", 1.0, _unusable(box, size), given)
        elif wrong is not None:
            reason, better = wrong
            better = better or self._seen_at(box, seen)
            yield finding("class", 1.0, reason, given, None if better is None else (better, box))
        elif outside >= self._params.floor and outside > 0:
            width, height = size
            clipped = [min(max(at, 0.0), float(most or 0)) for at, most in zip(box, (width, height) * 2, strict=True)]
            yield finding(
                "location", outside, f"{outside:.0%} of the box lies outside the image", given, (name, clipped)
            )

    def _unknown(self, name: str | None) -> tuple[str, str | None] | None:
        if name is None:
            return "the label has no class", None
        return self._known.problem(name) if self._known is not None else None

    def _seen_at(self, box: list[float], seen: Sightings) -> str | None:
        """The class that the detector thinks likeliest where a box is."""
        if not len(seen):
            return None
        near = overlaps(np.array([box]), seen.boxes)[0] >= MET
        chances = np.where(near[:, None], seen.chances, 0.0).max(axis=0)
        return self._names[int(chances.argmax())] if chances.any() else None


class _Names:
    """The classes of an ontology, and what people write instead of them."""

    def __init__(self, ontology: Ontology) -> None:
        self._classes = ontology.classes
        self._meant = {normalise(name): name for name in ontology.classes}
        for prompt, name in ontology.prompts():
            self._meant.setdefault(normalise(prompt), name)

    def problem(self, name: str) -> tuple[str, str | None] | None:
        """What is wrong with a label's class, and which class was probably meant; None if it is in the ontology."""
        if name in self._classes:
            return None
        meant = self._meant.get(normalise(name))
        if meant is not None:
            return f"class {name!r} is not in the ontology, which calls it {meant!r}", meant
        near = difflib.get_close_matches(normalise(name), self._meant, n=1, cutoff=0.6)
        if near:
            meant = self._meant[near[0]]
            return f"class {name!r} is not in the ontology; did they mean {meant!r}?", meant
        return f"class {name!r} is not in the ontology", None


def _outside(box: list[float], size: tuple[float | None, float | None]) -> float:
    """The share of a box, 0…1, that lies outside its image; edges of unknown size are not crossed. 0 if unusable."""
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    if not (x2 > x1 and y2 > y1 and math.isfinite(area)):
        return 0.0
    width, height = (math.inf if side is None else float(side) for side in size)
    inside = max(0.0, min(x2, width) - max(x1, 0.0)) * max(0.0, min(y2, height) - max(y1, 0.0))
    return 1.0 - inside / area


def _unusable(box: list[float], size: tuple[float | None, float | None]) -> str:
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return "the box is not four finite numbers"
    if x2 < x1 or y2 < y1:
        return "the box is inverted: its right or lower edge comes before its left or upper edge"
    if x2 == x1 or y2 == y1:
        return f"the box has no area: {x2 - x1:g} x {y2 - y1:g} pixels"
    shown = f" of {size[0]:g} x {size[1]:g} pixels" if size[0] is not None and size[1] is not None else ""
    return f"the box lies outside the image{shown}"


def _doubts(agreement: list[float | None] | None, count: int) -> Floats:
    """float64 (count,): chance that each label is wrong by the second opinions; 0.5 where there is none."""
    if agreement is None:
        return np.full(count, 0.5)
    agreed = np.array([math.nan if each is None else each for each in agreement], dtype=np.float64)
    return np.asarray(np.nan_to_num(np.clip(1.0 - agreed, _DOUBT, 1.0 - _DOUBT), nan=0.5))

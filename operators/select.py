"""Turn raw detections into labels."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator

from labelmill.operators.base import KEPT, Decision, OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detections.boxes import contained, suppress
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.ontology import Ontology
from labelmill.operators.wording import counted

DEFAULT = "default"
_SCORE = 0.3
_SEVERAL = 2
AGREEMENT = "agreement"
"""The column of `verify` that is read."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class Select(TableOperator):
    """Turn raw detections into labels: thresholds, non-maximum suppression, and why each other detection went.

    In this order: invalid boxes and classes that the ontology lacks go; then scores below the threshold, and if asked
    what other models agree with too little, as `verify` found out; then, class by class, boxes that overlap a better
    one (`nms`); then boxes that contain at least two others of their class (`containment`): the one giant box around a
    group; then, if asked, boxes that overlap a better one of another class (`across`); then what is over
    `max_per_image`. Detections without a score, such as labels that a person made, pass every threshold and are better
    than any that has one. Where scores are equal, coordinates and then the order of classes decide, so the order of the
    input never matters.

    Columns: `detections`, best first, and `reasons`, one for each detection of the input in its order: null for one
    that stays. An image of which no detection stays is kept, with an empty list.
    """

    name = "select"

    class Params(OperatorParams):
        """What makes a detection a label.

        Attributes:
            detections: The column to select from.
            score: The least score that stays: one number, or numbers by class: ``{car: 0.5, default: 0.3}``.
                Classes that are not named use `default`, which is 0.3 if it is not given.
            agreement: The least agreement of a `verify` step above about these detections; null: it does not matter.
                Detections of which nobody has an opinion stay.
            nms: Of two boxes of one class with a larger IoU the better one stays; null: all stay.
            containment: A box contains another when their intersection over the smaller area is at least this;
                null: containment does not matter.
            across: Of two boxes of two classes with a larger IoU the better one stays; null: classes may overlap.
            max_per_image: At most so many of the best stay; null: all.
            ontology: The classes that `score` may name; the pipeline's where a step names none.
        """

        detections: str = "detections"
        score: Fraction | dict[str, Fraction] = _SCORE
        agreement: Fraction | None = None
        nms: Fraction | None = 0.7
        containment: Annotated[float, Field(gt=0, le=1)] | None = 0.9
        across: Fraction | None = None
        max_per_image: Annotated[int, Field(ge=1)] | None = None
        ontology: Ontology | None = None

        @field_validator("score", mode="before")
        @classmethod
        def _class_names(cls, value: Any) -> Any:
            return {str(name): score for name, score in value.items()} if isinstance(value, dict) else value

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        if params.ontology is None or not isinstance(params.score, dict):
            return
        classes = params.ontology.classes
        if DEFAULT in params.score and DEFAULT in classes:
            raise OperatorError(
                f"a class must not be called {DEFAULT!r} where that name sets the score of all other classes",
                ("score", DEFAULT),
            )
        for name in params.score:
            if name != DEFAULT and name not in classes:
                near = difflib.get_close_matches(name, [*classes, DEFAULT], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f" ({', '.join(classes)})"
                message = f"a score must be for a class of the ontology but is for {name!r}{hint}"
                raise OperatorError(message, ("score", name))

    def reads(self) -> tuple[str, ...]:
        return (self.params.detections, *([] if self.params.agreement is None else [AGREEMENT]))

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.detections: DETECTIONS, AGREEMENT: pa.list_(pa.float32())}

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("detections", DETECTIONS), pa.field("reasons", pa.list_(pa.string()))])

    def compute(self, table: pa.Table) -> TableResult:
        column = _whole(table.column(self.params.detections))
        missing = column.is_null().to_numpy(zero_copy_only=False)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        found = column.flatten()
        image = np.repeat(np.arange(len(column)), lengths)
        agreement = None if self.params.agreement is None else _parallel(table, lengths, missing)
        picked, reasons = self._select(_Detections(found, self._classes(found)), image, agreement)
        counts = np.bincount(image[picked], minlength=len(column))
        detections = _lists(found.take(pa.array(picked)), counts, missing)
        columns = pa.table([detections, _lists(pa.array(reasons, pa.string()), lengths, missing)], schema=self.writes())
        failed = Decision("failed", f"no {self.params.detections}: nobody looked for objects in this image")
        return TableResult(columns, [failed if is_missing else KEPT for is_missing in missing])

    def _classes(self, found: pa.StructArray) -> list[str]:
        if self.params.ontology is not None:
            return list(self.params.ontology.classes)
        return sorted(name for name in pc.unique(pc.struct_field(found, "class")).to_pylist() if name is not None)

    def _select(
        self, found: _Detections, image: NDArray[np.int64], agreement: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.int64], list[str | None]]:
        """Indices of the detections that stay, image by image, best first; and a reason for each that does not."""
        reasons = found.problems()
        self._threshold(found, reasons)
        if agreement is not None and self.params.agreement is not None:
            for index in np.flatnonzero(agreement < np.float32(self.params.agreement)).tolist():
                reasons[index] = reasons[index] or f"agreement is below {self.params.agreement:g}"
        passed = np.array([index for index, reason in enumerate(reasons) if reason is None], dtype=np.int64)
        order = passed[found.order(passed, image)]
        picked = [np.empty(0, dtype=np.int64)]
        starts = np.flatnonzero(np.diff(image[order], prepend=-1))
        for group in np.split(order, starts[1:]):
            picked.append(self._one_image(found, group, reasons))
        return np.concatenate(picked), reasons

    def _threshold(self, found: _Detections, reasons: list[str | None]) -> None:
        by_class = self.params.score if isinstance(self.params.score, dict) else {DEFAULT: self.params.score}
        default = by_class.get(DEFAULT, _SCORE)
        limits = [by_class.get(name, default) for name in found.classes]
        exact = np.array([*limits, 0], dtype=np.float32)  # scores are float32: 0.7 must pass 0.7
        for index in np.flatnonzero(found.scores < exact[found.codes]).tolist():
            reasons[index] = reasons[index] or f"score is below {limits[found.codes[index]]:g}"

    def _one_image(self, found: _Detections, left: NDArray[np.int64], reasons: list[str | None]) -> NDArray[np.int64]:
        params = self.params
        if params.nms is not None:
            left = found.suppress(left, params.nms, reasons, within=True)
        if params.containment is not None:
            counts = contained(found.boxes[left], found.codes[left], params.containment)
            for position in np.flatnonzero(counts >= _SEVERAL).tolist():
                reasons[left[position]] = f"contains {counted(int(counts[position]), 'other box')} of its class"
            left = left[counts < _SEVERAL]
        if params.across is not None:
            left = found.suppress(left, params.across, reasons, within=False)
        if params.max_per_image is not None:
            for index in left[params.max_per_image :].tolist():
                reasons[index] = f"{params.max_per_image} better ones are enough"
            left = left[: params.max_per_image]
        return left


class _Detections:
    """The detections of all images as arrays."""

    def __init__(self, found: pa.StructArray, classes: list[str]) -> None:
        fields = {field.name: pc.struct_field(found, field.name) for field in found.type}
        self.classes = classes
        self.codes = (
            pc.fill_null(pc.index_in(fields["class"], value_set=pa.array(classes, pa.string())), -1)
            .to_numpy(zero_copy_only=False)
            .astype(np.int64)
        )
        self.names = fields["class"]
        sides = [fields[side].to_numpy(zero_copy_only=False) for side in ("x1", "y1", "x2", "y2")]
        self.boxes: NDArray[np.float32] = np.stack(sides, axis=1).astype(np.float32)
        scores = pc.fill_null(fields["score"], np.inf).to_numpy(zero_copy_only=False)
        self.scores: NDArray[np.float32] = scores.astype(np.float32)
        self.texts = [fields["prompt"], fields["mask"]]

    def problems(self) -> list[str | None]:
        """Why a detection cannot be used at all, else None."""
        reasons: list[str | None] = [None] * len(self.codes)
        for index in np.flatnonzero(self.codes < 0).tolist():
            name = self.names[index].as_py()
            reasons[index] = "has no class" if name is None else f"class {name!r} is not in the ontology"
        for index in np.flatnonzero(np.isnan(self.scores)).tolist():
            reasons[index] = "score is not a number"
        with np.errstate(invalid="ignore"):
            empty = (self.boxes[:, 2] <= self.boxes[:, 0]) | (self.boxes[:, 3] <= self.boxes[:, 1])
        for index in np.flatnonzero(empty).tolist():
            reasons[index] = "box is empty or inverted"
        for index in np.flatnonzero(~np.isfinite(self.boxes).all(axis=1)).tolist():
            reasons[index] = "box is not four finite numbers"
        return reasons

    def order(self, indices: NDArray[np.int64], image: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in `indices` in the order image, score (best first), box, class, prompt, mask."""
        chosen = pa.array(indices)
        texts = [
            pc.rank(pc.fill_null(text.take(chosen), ""), tiebreaker="dense").to_numpy(zero_copy_only=False)
            for text in reversed(self.texts)
        ]
        boxes = self.boxes[indices]
        keys = (*texts, self.codes[indices], *boxes.T[::-1], -self.scores[indices], image[indices])
        return np.lexsort(keys)

    def suppress(
        self, indices: NDArray[np.int64], threshold: float, reasons: list[str | None], within: bool
    ) -> NDArray[np.int64]:
        """Those of `indices`, best first, that stay after non-maximum suppression; writes the others' reasons."""
        by, overlap = suppress(self.boxes[indices], self.codes[indices], threshold, within)
        for position in np.flatnonzero(by >= 0).tolist():
            better = self.classes[self.codes[indices[by[position]]]]
            figures = f"IoU {overlap[position]:.2f}, over {threshold:g}"
            reasons[indices[position]] = f"overlaps a better {better} by {figures}"
        return indices[by < 0]


def _parallel(table: pa.Table, lengths: NDArray[np.int64], missing: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What others agree with, for every detection of all images; NaN where nobody has an opinion."""
    column = _whole(table.column(AGREEMENT))
    counts = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    if wrong := np.flatnonzero((counts != lengths) & ~missing).tolist():
        have = f"{lengths[wrong[0]]} but has {'none' if counts[wrong[0]] < 0 else counts[wrong[0]]}"
        raise RowError(f"agreement must have one number for each detection, {have}: it is about other detections")
    values = pc.if_else(pa.array(missing), pa.nulls(len(column), column.type), column).flatten()
    agreement: NDArray[np.float32] = values.to_numpy(zero_copy_only=False)
    return agreement


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _lists(values: pa.Array, lengths: NDArray[np.int64], missing: NDArray[np.bool_]) -> pa.ListArray:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(missing))

"""fuse: the detections of several detectors as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from labelmill.operators.base import KEPT, Decision, OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.detections.boxes import iou
from labelmill.operators.detections.crops import box_array

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Platt(BaseModel):
    """From a detector's score to a probability that its detection is right: Platt 1999.

    The probability is the sigmoid of ``slope × logit(score) + intercept``; a slope of 1 and an intercept of 0 change
    nothing. `labelmill evaluate --calibrate` fits both.

    Attributes:
        slope: Below 1 for a detector whose scores are too near to 0 and 1, above 1 for one that is too cautious.
        intercept: Above 0 for a detector whose scores are too low.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    intercept: Annotated[float, Field(allow_inf_nan=False)] = 0.0

    def probability(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities, 0…1, in the order of the scores."""
        return 1 / (1 + np.exp(-(self.slope * logit(scores) + self.intercept)))


def logit(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the odds, of scores that are not quite 0 or 1."""
    scores = np.clip(scores, 1e-6, 1 - 1e-6)
    found: NDArray[np.float64] = np.log(scores / (1 - scores))
    return found


class Fuse(TableOperator):
    """Weighted boxes fusion (Solovyev et al. 2021): boxes of several detectors that agree become one, class by class.

    Best first, a detection joins the fused box of its class that it overlaps most, if their IoU is above `iou`, or
    begins a new one. A fused box is the mean of its members, weighted by their scores; its score is their mean, times
    the share of all detectors that are among them: what one of two detectors alone has found keeps half of its score.
    Detectors count by their `weights`. Several boxes of one detector in one place count as one detector (the authors'
    `box_and_model_avg`), so raw detections can be fused; what a `select` with a low score and `nms` left is cheaper,
    and cleaner.

    Boxes that are not four finite numbers or are empty, and detections without a class, are left out. A detection
    without a score, such as a label that a person made, counts as 1. Masks do not outlive a change of the box; the
    prompt is that of the best member, and `models` are those of all members, the best one's first. An image for which
    one of the columns is null, because nobody looked, is failed.
    """

    name = "fuse"
    labels = "as read"

    class Params(OperatorParams):
        """What to fuse, and how.

        Attributes:
            detections: The columns of two or more detectors, such as [detect.detections, detect_2.detections].
            weights: How much each of them counts; all the same if not given.
            iou: Boxes with a larger IoU are fused.
            scores: For each of them how its scores become probabilities, so that they can be compared: slope and
                intercept, or null; as they are if not given.
        """

        detections: tuple[str, ...] = Field(min_length=2)
        weights: tuple[Weight, ...] | None = None
        iou: float = Field(0.55, gt=0, lt=1)
        scores: tuple[Platt | None, ...] | None = None

        @field_validator("detections")
        @classmethod
        def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
            if len(set(value)) < len(value):
                raise ValueError(f"must be different columns but are {', '.join(value)}")
            return value

        @model_validator(mode="after")
        def _one_each(self) -> Fuse.Params:
            count = len(self.detections)
            for name in ("weights", "scores"):
                given = getattr(self, name)
                if given is not None and len(given) != count:
                    raise ValueError(f"{name} must be one for each of the {count} columns but are {len(given)}")
            return self

    params: Params

    def reads(self) -> tuple[str, ...]:
        return self.params.detections

    def expects(self) -> dict[str, pa.DataType]:
        return dict.fromkeys(self.reads(), DETECTIONS)

    def writes(self) -> pa.Schema:
        """`detections`: the highest score first, then by class and box."""
        return pa.schema([pa.field("detections", DETECTIONS)])

    def compute(self, table: pa.Table) -> TableResult:
        rows: list[list[dict[str, Any]] | None] = []
        decisions = []
        for found in zip(*(table.column(name).to_pylist() for name in self.params.detections), strict=True):
            missing = [name for name, each in zip(self.params.detections, found, strict=True) if each is None]
            rows.append(None if missing else self._fuse(found))
            reason = f"no {', '.join(missing)}: nobody looked for objects in this image"
            decisions.append(Decision("failed", reason) if missing else KEPT)
        return TableResult(pa.table([pa.array(rows, DETECTIONS)], schema=self.writes()), decisions)

    def _fuse(self, found: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The fused detections of one image."""
        members = [(source, each) for source, given in enumerate(found) for each in given if each["class"] is not None]
        boxes = box_array([each for _, each in members])
        with np.errstate(invalid="ignore"):
            good = np.flatnonzero(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        members, boxes = [members[place] for place in good.tolist()], boxes[good]
        sources = np.array([source for source, _ in members], dtype=np.int64)
        scores = self._scores(members, sources)
        weights = np.array(self.params.weights or [1.0] * len(found))
        fused = []
        for name in sorted({each["class"] for _, each in members}):
            own = np.array([index for index, (_, each) in enumerate(members) if each["class"] == name])
            # Best first; what is equal in a fixed order, so that the order of the input never matters.
            order = own[np.lexsort((sources[own], *boxes[own].T[::-1], -(scores * weights[sources])[own]))]
            fusion = Fusion(boxes[order], scores[order], sources[order], weights)
            for box, score, group in fusion.run(self.params.iou):
                fused.append(_detection(name, box, score, [members[order[index]][1] for index in group]))
        return sorted(fused, key=lambda each: (-each["score"], each["class"], *(each[side] for side in SIDES)))

    def _scores(self, members: Sequence[tuple[int, dict[str, Any]]], sources: NDArray[np.int64]) -> NDArray[np.float64]:
        given = [1.0 if each["score"] is None else each["score"] for _, each in members]
        scores = np.nan_to_num(np.array(given, dtype=np.float64)).clip(0, 1)
        for source, platt in enumerate(self.params.scores or ()):
            if platt is not None:
                scores[sources == source] = platt.probability(scores[sources == source])
        return scores


class Fusion:
    """Weighted boxes fusion of one class in one image.

    Args:
        boxes: float64 (n, 4), xyxy, the highest weighted score first.
        scores: float64 (n,), 0…1.
        sources: int (n,), which detector.
        weights: float64 (detectors,), above 0.
    """

    def __init__(
        self,
        boxes: NDArray[np.float64],
        scores: NDArray[np.float64],
        sources: NDArray[np.int64],
        weights: NDArray[np.float64],
    ) -> None:
        self._boxes, self._scores, self._sources, self._weights = boxes, scores, sources, weights

    def run(self, threshold: float) -> list[tuple[NDArray[np.float64], float, list[int]]]:
        """Each fused box, its score, and its members, best first."""
        confidences = self._scores * self._weights[self._sources]
        means, groups = np.empty((len(self._boxes), 4)), list[list[int]]()
        for index, box in enumerate(self._boxes):
            if groups:
                overlap = iou(box[None], means[: len(groups)])[0]
                best = int(overlap.argmax())
                if overlap[best] > threshold:
                    groups[best].append(index)
                    parts = confidences[groups[best]]
                    if parts.sum() > 0:
                        means[best] = parts @ self._boxes[groups[best]] / parts.sum()
                    continue
            means[len(groups)] = box
            groups.append([index])
        return [(means[number], self._score(group, confidences), group) for number, group in enumerate(groups)]

    def _score(self, group: list[int], confidences: NDArray[np.float64]) -> float:
        mean = confidences[group].sum() / self._weights[self._sources[group]].sum()
        return float(mean * self._weights[np.unique(self._sources[group])].sum() / self._weights.sum())


def _detection(name: str, box: NDArray[np.float64], score: float, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    models = dict.fromkeys(model for each in members for model in each["models"] or ())
    return {
        **dict(zip(SIDES, box.tolist(), strict=True)),
        "class": name,
        "score": score,
        "prompt": members[0]["prompt"],
        "mask": None,
        "models": list(models) or None,
    }

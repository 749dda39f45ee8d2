"""label_conflicts: copies of an image whose labels contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from labelmill.operators.base import KEPT, DatasetOperator, Decision, Needs, OperatorParams, TableResult, tuning
from labelmill.operators.columns.rows import old_then_new
from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.deduplicate import By, Deduplicate
from labelmill.operators.detections.sightings import Floats, Integers, overlaps, shares_inside, usable
from labelmill.operators.labels.findings import LABEL_ERRORS, finding, surest_first
from labelmill.operators.labels.judge import MET

Found = dict[str, Any]

_GROUPS = 1024
"""Groups whose labels are in memory at a time."""


class LabelConflicts(DatasetOperator):
    """Labels that copies of one image contradict: another class, or one that only some of the copies have.

    Copies are found as `deduplicate` finds them. It stands above `deduplicate` in a pipeline, which would leave no
    copies to compare. Boxes are compared as shares of their image's width and height, so a copy may be smaller. Copies
    that only look alike (`semantic`) may show things elsewhere: there only the number of labels of each class counts.

    What most copies say is taken as right, and a label that says otherwise is a `conflict`, with the share of copies
    against it as its score. Where no side has more, every side is one, with the share of the others as its score: of
    two copies that disagree, both at 0.5. A copy with a region to ignore (COCO's crowd) of a class says nothing about
    objects of that class in it.

    Columns: `errors`, the surest first (`operators.labels.findings.LABEL_ERROR`), empty for an image without copies,
    null where the source has no labels; and `copy_of`, the image_id of the copy that it was compared with first, its
    own where it has none. Images that came in earlier runs keep their errors; new copies are compared with them.
    """

    name = "label_conflicts"

    class Params(OperatorParams):
        """What is a copy, and whose labels are compared.

        Attributes:
            labels: The column on trial.
            by: Which exact copies count: `file`, `pixels`, both or, with [], neither.
            distance: Bits of the perceptual hash that may differ, at most 16; null: such copies do not count.
            threshold: Least cosine of embeddings; such copies do not count if it is not given.
            embedding: The column that `embed` wrote.
            memory_gb: About how much memory to take for finding copies, besides 200 bytes for each image.
        """

        labels: str = Field("source.labels", min_length=1)
        by: tuple[By, ...] = ("file", "pixels")
        distance: Annotated[int, Field(ge=0, le=16)] | None = 4
        threshold: Annotated[float, Field(gt=0, le=1)] | None = None
        embedding: str = Field("embedding", min_length=1)
        memory_gb: float = tuning(2.0, gt=0)

        @model_validator(mode="after")
        def _check(self) -> LabelConflicts.Params:
            if not self.by and self.distance is None and self.threshold is None:
                raise ValueError("by must name file or pixels where neither distance nor threshold is given")
            return self

    params: Params

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        shared = {name: getattr(params, name) for name in ("by", "distance", "threshold", "embedding", "memory_gb")}
        self._copies = Deduplicate(Deduplicate.Params(**shared))

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._copies.reads(), "width", "height", self.params.labels]))

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.labels: DETECTIONS}

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        self._copies.check({name: columns[name] for name in self._copies.reads() if name in columns})

    def writes(self) -> pa.Schema:
        return pa.schema(
            [pa.field("errors", LABEL_ERRORS), pa.field("copy_of", pa.int64()), pa.field("copy_kind", pa.string())]
        )

    def needs(self) -> Needs:
        return self._copies.needs()

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        """Compare the labels of new images with those of their copies, old ones included."""
        found, decisions = self._find_copies(new, old)
        copies = _Rows(new, old, found, self.params.labels)
        errors: list[list[Found] | None] = [[] if known else None for known in copies.known[old.num_rows :].tolist()]
        for group in copies.groups(old.num_rows):
            for row, image_errors in _conflicts(group):
                if row >= old.num_rows:
                    errors[row - old.num_rows] = surest_first(image_errors)
        columns = [pa.array(errors, LABEL_ERRORS), *found.columns]
        return TableResult(pa.table(columns, schema=self.writes()), decisions)

    def _find_copies(self, new: pa.Table, old: pa.Table) -> tuple[pa.Table, Sequence[Decision]]:
        """`copy_of` and `copy_kind` of the new rows. One that cannot be compared does not fail: it has no copies."""
        names = ["image_id", "key", *self._copies.reads()]
        first = old.filter(pc.is_null(old.column("copy_kind")))
        known = first.select(names)
        for name, column in (("group", first.column("copy_of")), ("kind", first.column("copy_kind"))):
            known = known.append_column(name, column)
        kept = pa.array(["kept"] * first.num_rows, pa.string())
        result = self._copies.compute(new.select(names), known.append_column("decision", kept))
        assert result.columns is not None
        group = pc.coalesce(result.columns.column("group"), new.column("image_id"))
        return pa.table([group, result.columns.column("kind")], ["copy_of", "copy_kind"]), [KEPT] * new.num_rows


@dataclass(frozen=True)
class _Image:
    """One copy.

    Attributes:
        row: Among the old rows and then the new ones.
        key: Its name.
        alike: Whether it only looks like the first of its group.
        size: float64 (4,): width, height, width, height.
        labels: Dicts of `operators.columns.schemas.DETECTION`.
        places: Which of the labels are usable objects.
        boxes: float64 (places, 4), as shares of the image's size.
        regions: float64 (n, 4), the same of regions to ignore.
        ignored: Their classes.
    """

    row: int
    key: str
    alike: bool
    size: Floats
    labels: list[Found]
    places: list[int]
    boxes: Floats
    regions: Floats
    ignored: list[str]

    def abstains(self, box: Floats, names: Collection[str | None]) -> bool:
        """Whether half of a box lies in a region of this image to ignore, of one of these classes."""
        among = np.array([name in names for name in self.ignored], dtype=bool)
        return bool((shares_inside(box[None], self.regions[among]) >= MET).any())

    def given(self, place: int) -> tuple[int, str, list[float]]:
        """Place, class and box in pixels of a usable label."""
        label = self.labels[self.places[place]]
        return self.places[place], label["class"], [label[side] for side in SIDES]

    def name(self, place: int) -> str:
        return str(self.labels[self.places[place]]["class"])


class _Rows:
    """Old rows and then new ones, by group; labels are read group by group."""

    def __init__(self, new: pa.Table, old: pa.Table, found: pa.Table, labels: str) -> None:
        self._new, self._old, self._labels = new, old, labels
        self.known = old_then_new(labels, new, old).is_valid().to_numpy().astype(bool)
        self._ids = np.concatenate([table.column("image_id").to_numpy() for table in (old, new)])
        self._groups = np.concatenate([old.column("copy_of").to_numpy(), found.column("copy_of").to_numpy()])
        kinds = [*old.column("copy_kind").chunks, *found.column("copy_kind").chunks]
        self._alike = pc.fill_null(pc.equal(pa.chunked_array(kinds, pa.string()), "semantic"), False).to_numpy()

    def groups(self, old: int) -> Iterator[list[_Image]]:
        """Groups of at least two images with labels, one of them new, by the id of the first; in it the first leads."""
        rows = np.flatnonzero(self.known)
        order = rows[np.lexsort((self._ids[rows], self._groups[rows] != self._ids[rows], self._groups[rows]))]
        starts = np.flatnonzero(np.diff(self._groups[order], prepend=-1))
        parts = np.split(order, starts[1:]) if len(order) else []
        chosen = [part for part in parts if len(part) > 1 and part.max() >= old]
        for start in range(0, len(chosen), _GROUPS):
            batch = chosen[start : start + _GROUPS]
            images = self._images(np.concatenate(batch))
            for part in batch:
                yield [next(images) for _ in part]

    def _images(self, rows: Integers) -> Iterator[_Image]:
        names = ("key", "width", "height", self._labels)
        where = pa.array(rows)
        columns = [old_then_new(name, self._new, self._old).take(where).to_pylist() for name in names]
        for row, key, width, height, labels in zip(rows.tolist(), *columns, strict=True):
            size = np.array([width or 1, height or 1] * 2, dtype=np.float64)
            boxes = np.array([[label[side] for side in SIDES] for label in labels], dtype=np.float64).reshape(-1, 4)
            named = np.array([label["class"] is not None for label in labels], dtype=bool)
            crowds = np.array([bool(label["crowd"]) for label in labels], dtype=bool)
            regions = np.flatnonzero(usable(boxes) & named & crowds)
            ignored = [labels[place]["class"] for place in regions.tolist()]
            places = np.flatnonzero(usable(boxes) & named & ~crowds)
            places = places[np.lexsort(boxes[places].T[::-1])]
            alike = bool(self._alike[row])
            yield _Image(
                row, key, alike, size, labels, places.tolist(), boxes[places] / size, boxes[regions] / size, ignored
            )


@dataclass
class _Object:
    """What the copies say of one object: a place in each image that labels it."""

    box: Floats
    places: dict[int, int] = field(default_factory=dict)


def _conflicts(group: list[_Image]) -> Iterator[tuple[int, list[Found]]]:
    """The errors of each image of a group that has some."""
    found: dict[int, list[Found]] = {image.row: [] for image in group}
    exact = [image for image in group if not image.alike]
    if len(exact) > 1:
        for each in _objects(exact):
            _vote(each, exact, found)
    for image in group:
        if image.alike:
            found[image.row] += _counts(image, group[0])
    yield from found.items()


def _objects(images: list[_Image]) -> list[_Object]:
    """Labels of the copies put together by place: one to one, with the largest sum of IoU."""
    from scipy.optimize import linear_sum_assignment

    objects: list[_Object] = []
    for number, image in enumerate(images):
        there = np.array([each.box for each in objects]).reshape(-1, 4)
        value = overlaps(image.boxes, there)
        same = [[image.name(place) == _first_name(each, images) for each in objects] for place in range(len(value))]
        value = np.where(value >= MET, value + np.array(same, dtype=float).reshape(value.shape), 0.0)
        pairs = dict(zip(*(part.tolist() for part in linear_sum_assignment(value, maximize=True)), strict=True))
        for place in range(len(image.boxes)):
            other = pairs.get(place)
            if other is None or value[place, other] <= 0:
                objects.append(_Object(image.boxes[place], {number: place}))
            else:
                objects[other].places[number] = place
    return objects


def _first_name(each: _Object, images: list[_Image]) -> str:
    number, place = next(iter(each.places.items()))
    return images[number].name(place)


def _vote(each: _Object, images: list[_Image], found: dict[int, list[Found]]) -> None:
    """Add an error to each image that says of an object what fewer copies say, or no more than another side."""
    names = {images[number].name(place) for number, place in each.places.items()}
    said: list[str | None] = [
        image.name(each.places[number]) if number in each.places else None for number, image in enumerate(images)
    ]
    voters = [
        number for number in range(len(images)) if number in each.places or not images[number].abstains(each.box, names)
    ]
    votes = Counter(said[number] for number in voters)
    most = max(votes.values())
    if len(votes) == 1:
        return
    winners = {name for name, count in votes.items() if count == most}
    for number in voters:
        image, mine = images[number], said[number]
        if mine in winners and len(winners) == 1:
            continue
        other = next(at for at in voters if said[at] != mine and said[at] in winners)
        score = 1.0 - votes[mine] / len(voters)
        there = images[other]
        against = f"{len(voters) - votes[mine]} of {len(voters)} copies disagree"
        box = ((there.boxes[each.places[other]] if other in each.places else each.box) * image.size).tolist()
        if mine is None:
            reason = f"{there.key}, a copy, has {said[other]} here, this image has no label; {against}"
            found[image.row].append(finding("conflict", score, reason, suggested=(said[other], box)))
            continue
        given = image.given(each.places[number])
        what = f"has {said[other]} here" if said[other] is not None else "has no label here"
        suggested = None if said[other] is None else (said[other], given[2])
        reason = f"{there.key}, a copy, {what}, this image {mine}; {against}"
        found[image.row].append(finding("conflict", score, reason, given, suggested))


def _counts(image: _Image, first: _Image) -> list[Found]:
    """Classes of which an image that looks like another has more or fewer labels; no box can be blamed.

    Where either has a region in which they were not told apart, their number says nothing.
    """
    mine, theirs = (Counter(map(each.name, range(len(each.places)))) for each in (image, first))
    return [
        finding("conflict", 0.5, f"{first.key}, which looks alike, has {theirs[name]} {name}, this image {mine[name]}")
        for name in sorted(mine | theirs)
        if mine[name] != theirs[name] and name not in image.ignored and name not in first.ignored
    ]

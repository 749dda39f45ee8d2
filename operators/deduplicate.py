"""Find images that are copies of each other, exactly or nearly, and keep one of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from labelmill.operators.base import KEPT, DatasetOperator, Decision, Needs, OperatorParams, TableResult, tuning
from labelmill.operators.columns.vectors import check_vectors
from labelmill.operators.duplicates.copies import HASHES, Copies
from labelmill.operators.expressions.number import Figure

By = Literal["file", "pixels"]

_MEASURES: dict[str, tuple[str, ...]] = {
    "first": (),
    "largest": ("width", "height"),
    "sharpest": ("sharpness",),
    "labelled": ("source.labels",),
}


class Deduplicate(DatasetOperator):
    """Keep one image of what shows the same; the others become duplicates that name it.

    Four kinds of copies, the first two looked for unless `by` says otherwise, the others when their parameter is given:

    ==========  =======================================================  ===========================================
    kind        two images are copies if                                 needs
    ==========  =======================================================  ===========================================
    file        their files are the same byte for byte                   `inspect`
    pixels      they decode to the same upright pixels                   `inspect`
    perceptual  at most `distance` of 64 bits of their hashes differ     `inspect`
    semantic    the cosine of their embeddings is at least `threshold`   `embed`
    ==========  =======================================================  ===========================================

    Images are looked at from the best to the worst, as `keep` says, and one is removed if it is a copy, of any kind, of
    one that was kept. So no two images that are kept are copies of each other, and every duplicate is a copy of the
    kept image that it names. (In a chain where A and C each resemble B but not each other, either B stays, or A and C
    do.) No pair is missed: see `operators.duplicates.near_hashes` and `operators.duplicates.near_vectors` for how, and
    for what it costs.

    What earlier runs kept stays: a new copy of it is a duplicate, whatever its size. Neither the order of the files nor
    that of the rows matters. An image without a hash or a usable embedding, such as a broken one, fails: it is nobody's
    duplicate.

    Columns: `group`, the image_id of the kept image that each is a copy of, its own if it is kept; and `kind`, how it
    is a copy of that image, null if it is kept. A decision has the figure and the threshold of the perceptual and
    semantic kinds.

    With ``remove: false`` all images stay, and a group is whatever copies connect, through chains too: A and C above
    are of one group with B. So ``split: {group: deduplicate.group}`` never puts an image and its copy on two sides, and
    ``split: {check: source.split, group: deduplicate.group}`` finds the copies that a dataset came with on both. The
    group is named after its best image, and `kind` is how an image is a copy of the next one on the way there. Earlier
    groups stand: an image that connects two of them joins the one to which fewer steps lead, of equal ones the better.
    """

    name = "deduplicate"
    version = 2
    decides = True  # unless it removes none

    class Params(OperatorParams):
        """What is a copy, and which one stays.

        Attributes:
            by: Which exact copies count: `file`, `pixels`, both or, with [], neither.
            distance: Bits of the perceptual hash that may differ, at most 16. Copies saved anew differ by 0 to 4, other
                pictures by 20 to 44. Perceptual copies do not count if it is not given.
            flips: Whether a picture turned by 90, 180 or 270 degrees or mirrored is a perceptual copy too. Eight
                chances to agree by accident: at a distance of 8, 1 of 20 copies found was none; at 4, none was.
            threshold: Least cosine of embeddings. With CLIP, .95 is the same picture, .9 the same scene. Semantic
                copies do not count if it is not given.
            embedding: The column that `embed` wrote.
            remove: Whether copies are removed. If not, they only get a group.
            keep: Which image is the best: `first` by key, `largest` by width times height, `sharpest`, `labelled`: the
                one with most labels in the source, any more than none known; or an expression over columns, such as
                "sharpness * min_side", the more the better. Ties: first by key.
            memory_gb: About how much memory to take, besides 200 bytes for each image. Embeddings that do not fit into
                it are compared part by part in tasks, each of which may take as much.
        """

        by: tuple[By, ...] = ("file", "pixels")
        distance: Annotated[int, Field(ge=0, le=16)] | None = None
        flips: bool = False
        threshold: Annotated[float, Field(gt=0, le=1)] | None = None
        embedding: str = Field("embedding", min_length=1)
        remove: bool = True
        keep: str = Field("first", min_length=1)
        memory_gb: float = tuning(2.0, gt=0)

        @model_validator(mode="after")
        def _check(self) -> Deduplicate.Params:
            if not self.by and self.distance is None and self.threshold is None:
                raise ValueError("by must name file or pixels where neither distance nor threshold is given")
            if self.flips and self.distance is None:
                raise ValueError("flips needs a distance, such as 4")
            return self

    params: Params

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.decides = params.remove  # type: ignore[misc]
        self._figure = None if params.keep in _MEASURES else Figure(params.keep, ("keep",))
        self._hash = None if params.distance is None else "phash_variants" if params.flips else "phash"

    def reads(self) -> tuple[str, ...]:
        params = self.params
        names = [column for kind, column in HASHES.items() if kind in params.by]
        names += [] if self._hash is None else [self._hash]
        names += [] if params.threshold is None else [params.embedding]
        return tuple(dict.fromkeys([*names, *self._measured()]))

    def _measured(self) -> tuple[str, ...]:
        """Columns that say which image is the best."""
        return self._figure.reads if self._figure else _MEASURES[self.params.keep]

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("group", pa.int64()), pa.field("kind", pa.string())])

    def needs(self) -> Needs:
        return Needs(gpu=self.params.threshold is not None, memory_gb=self.params.memory_gb)

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        if self._figure:
            self._figure.check({name: columns[name] for name in self._figure.reads if name in columns})
        if self.params.threshold is not None and self.params.embedding in columns:
            check_vectors(self.params.embedding, columns[self.params.embedding])

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        """Compare the new rows with each other and with the old rows that were kept."""
        # Without `remove` those are all that could be compared.
        old = old.filter(pc.equal(old.column("decision"), "kept"))
        rows = pa.concat_tables([old.select(new.column_names), new], promote_options="permissive")
        rows = rows.set_column(rows.column_names.index("key"), "key", rows.column("key").cast(pa.large_string()))
        copies = Copies(self.params, rows, self._hash, self.tasks)
        order = self._best_first(rows, old.num_rows, copies.usable)
        if not self.params.remove:
            return self._groups(rows, old, copies, order)
        return self._result(rows, old.num_rows, copies, copies.kept_by(order, old.num_rows))

    def _best_first(self, rows: pa.Table, old: int, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Usable rows: old ones, then by measure, then by key."""
        several = np.flatnonzero(usable)
        picked = rows.select(list(dict.fromkeys(["image_id", "key", *self._measured()]))).take(pa.array(several))
        by_key = pc.sort_indices(picked.column("key")).to_numpy()
        place = np.empty(len(several), dtype=np.int64)
        place[by_key] = np.arange(len(several))
        return several[np.lexsort((place, -self._measure(picked), several >= old))]

    def _measure(self, rows: pa.Table) -> NDArray[np.float64]:
        """The larger, the better; what is not known is worst."""
        if self._figure:
            figures = self._figure.compute(rows)
        elif self.params.keep == "first":
            return np.zeros(rows.num_rows)
        else:
            columns = [rows.column(name) for name in _MEASURES[self.params.keep]]
            if self.params.keep == "labelled":
                columns = [pc.list_value_length(columns[0])]
            figures = np.prod([pc.cast(column, pa.float64()).to_numpy() for column in columns], axis=0)
        return np.nan_to_num(figures, nan=-np.inf, posinf=np.inf, neginf=-np.inf)

    def _result(self, rows: pa.Table, old: int, copies: Copies, kept_by: NDArray[np.int64]) -> TableResult:
        kinds = np.full(rows.num_rows, None, dtype=object)
        decisions = [KEPT] * rows.num_rows
        removed = np.flatnonzero(copies.usable & (kept_by != np.arange(rows.num_rows)))
        removed = removed[removed >= old]
        keys = rows.column("key").take(pa.array(kept_by[removed])).to_pylist()
        found = copies.how(removed, kept_by[removed])
        for row, key, (kind, figure) in zip(removed.tolist(), keys, found, strict=True):
            kinds[row] = kind
            decisions[row] = _decision(kind, figure, key, self.params)
        groups = rows.column("image_id").to_numpy()[kept_by]
        return self._table(old, copies, groups, kinds, decisions)

    def _groups(self, rows: pa.Table, old: pa.Table, copies: Copies, order: NDArray[np.int64]) -> TableResult:
        """Of rows that all stay."""
        known, everything = old.num_rows, np.arange(rows.num_rows)
        best, links = copies.connected(order, known)
        names = np.concatenate([old.column("group").to_numpy(), rows.column("image_id").to_numpy()[known:]])
        place = np.zeros(rows.num_rows, dtype=np.int64)
        place[order] = np.arange(len(order))
        copied = np.flatnonzero((links != everything) & (everything >= known))
        # Resemblance to turned and mirrored images is asked for by the later of two.
        later = np.where(place[copied] > place[links[copied]], copied, links[copied])
        kinds = np.full(rows.num_rows, None, dtype=object)
        kinds[copied] = [kind for kind, _ in copies.how(later, copied + links[copied] - later)]
        return self._table(known, copies, names[best], kinds, [KEPT] * rows.num_rows)

    def _table(
        self, old: int, copies: Copies, groups: NDArray[np.int64], kinds: NDArray[np.object_], decisions: list[Decision]
    ) -> TableResult:
        """Of the new rows."""
        for row in np.flatnonzero(~copies.usable).tolist():
            decisions[row] = Decision("failed", copies.problem(row))
        columns = {
            "group": pa.array(groups[old:], pa.int64(), mask=~copies.usable[old:]),
            "kind": pa.array(kinds[old:], pa.string()),
        }
        return TableResult(pa.table(columns, schema=self.writes()), decisions[old:])


def _decision(kind: str, figure: float | None, key: str, params: Deduplicate.Params) -> Decision:
    if kind == "perceptual":
        assert figure is not None
        bits = f"{int(figure)} bit{'' if figure == 1 else 's'}" if figure else "no bit"
        return Decision("duplicate", f"{bits} of 64 differ from {key}", figure, params.distance)
    if kind == "semantic":
        return Decision("duplicate", f"looks like {key}", figure, params.threshold)
    return Decision("duplicate", f"same {kind} as {key}")

"""Find images that are copies of each other, exactly or nearly, and keep one of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.base import KEPT, DatasetOperator, Decision, Needs, OperatorParams, TableResult, tuning
from operators.figures import Figure
from operators.greedy import Near, choose
from operators.near_hashes import NearHashes
from operators.near_vectors import NearVectors
from operators.rows import codes
from operators.vectors import Vectors, check_vectors

By = Literal["file", "pixels"]

_HASHES: dict[By, str] = {"file": "file_hash", "pixels": "pixel_hash"}
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
    do.) No pair is missed: see `operators.near_hashes` and `operators.near_vectors` for how, and for what it costs.

    What earlier runs kept stays: a new copy of it is a duplicate, whatever its size. Neither the order of the files nor
    that of the rows matters. An image without a hash or a usable embedding, such as a broken one, fails: it is nobody's
    duplicate.

    Columns: `group`, the image_id of the kept image that each is a copy of, its own if it is kept, so that images of
    one group can be kept in one split; and `kind`, how it is a copy of that image, null if it is kept. A decision has
    the figure and the threshold of the perceptual and semantic kinds.
    """

    name = "deduplicate"
    version = 2
    decides = True

    class Params(OperatorParams):
        """What is a copy, and which one stays.

        Attributes:
            by: Which exact copies count: `file`, `pixels`, both or, with [], neither.
            distance: Bits of the perceptual hash that may differ, at most 16. Copies saved anew differ by 0 to 4, other
                pictures by 20 to 44. Perceptual copies do not count if it is not given.
            flips: Whether a picture turned by 90, 180 or 270 degrees or mirrored is a perceptual copy too.
            threshold: Least cosine of embeddings. With CLIP, .95 is the same picture, .9 the same scene. Semantic
                copies do not count if it is not given.
            embedding: The column that `embed` wrote.
            keep: Which image is the best: `first` by key, `largest` by width times height, `sharpest`, `labelled`: the
                one with most labels in the source, any more than none known; or an expression over columns, such as
                "sharpness * min_side", the more the better. Ties: first by key.
            memory_gb: About how much memory to take, besides 200 bytes for each image.
        """

        by: tuple[By, ...] = ("file", "pixels")
        distance: Annotated[int, Field(ge=0, le=16)] | None = None
        flips: bool = False
        threshold: Annotated[float, Field(gt=0, le=1)] | None = None
        embedding: str = Field("embedding", min_length=1)
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
        self._figure = None if params.keep in _MEASURES else Figure(params.keep, ("keep",))
        self._hash = None if params.distance is None else "phash_variants" if params.flips else "phash"

    def reads(self) -> tuple[str, ...]:
        params = self.params
        names = [column for kind, column in _HASHES.items() if kind in params.by]
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
        old = old.filter(pc.equal(old.column("decision"), "kept"))
        rows = pa.concat_tables([old.select(new.column_names), new], promote_options="permissive")
        rows = rows.set_column(rows.column_names.index("key"), "key", rows.column("key").cast(pa.large_string()))
        copies = Copies(self.params, rows, self._hash)
        order = self._best_first(rows, old.num_rows, copies.usable)
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
        for row in np.flatnonzero(~copies.usable).tolist():
            decisions[row] = Decision("failed", copies.problem(row))
        ids = rows.column("image_id").to_numpy()
        columns = {
            "group": pa.array(ids[kept_by[old:]], pa.int64(), mask=~copies.usable[old:]),
            "kind": pa.array(kinds[old:], pa.string()),
        }
        return TableResult(pa.table(columns, schema=self.writes()), decisions[old:])


class Copies:
    """What is a copy of what among the rows of a table."""

    def __init__(self, params: Deduplicate.Params, rows: pa.Table, hash_column: str | None) -> None:
        self._params = params
        self._codes = {kind: codes(rows.column(_HASHES[kind]))[0] for kind in _HASHES if kind in params.by}
        self._columns: dict[str, str] = {kind: _HASHES[kind] for kind in self._codes}
        self._hashes = self._vectors = None
        self.usable = np.ones(rows.num_rows, dtype=bool)
        for code in self._codes.values():
            self.usable &= code >= 0
        if hash_column is not None:
            self._columns["perceptual"] = hash_column
            self._hashes, there = _hashes(rows.column(hash_column))
            self._hashed = there
            self.usable &= there
        if params.threshold is not None:
            self._vectors = Vectors(rows.column(params.embedding))
            self.usable &= self._vectors.usable

    def problem(self, row: int) -> str:
        """Why a row cannot be compared."""
        lacking = [self._columns[kind] for kind, code in self._codes.items() if code[row] < 0]
        if self._hashes is not None and not self._hashed[row]:
            lacking.append(self._columns["perceptual"])
        if lacking:
            return f"no hash: {' and '.join(lacking)} is null"
        assert self._vectors is not None
        return self._vectors.problems[row]

    def kept_by(self, order: NDArray[np.int64], old: int) -> NDArray[np.int64]:
        """For each row the row of the kept image that it is a copy of: its own if it is kept or cannot be compared.

        Args:
            order: Usable rows, the best first.
            old: So many of the first rows are kept whatever they look like.
        """
        found = np.arange(len(self.usable))
        if self._codes:
            widest = self._codes["pixels" if "pixels" in self._codes else "file"][order]
            _, first, same = np.unique(widest, return_index=True, return_inverse=True)
            found[order] = order[first[same]]
        kinds: list[Near] = []
        best = order[found[order] == order]
        if self._hashes is not None:
            assert self._params.distance is not None
            kinds.append(NearHashes(self._hashes[best], self._params.distance))
        if self._vectors is not None:
            assert self._params.threshold is not None
            kinds.append(NearVectors(self._vectors, best, self._params.threshold, self._params.memory_gb))
        if kinds and len(best):
            chosen = choose(kinds, len(best), int((best < old).sum()))
            moved = np.arange(len(self.usable))
            moved[best] = best[chosen]
            found[order] = moved[found[order]]
        return found

    def how(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> list[tuple[str, float | None]]:
        """The first kind by which each row is a copy of another, and its figure where it has one."""
        names = np.full(len(one), "semantic" if self._vectors is not None else "perceptual", dtype=object)
        figures = np.full(len(one), np.nan)
        if self._hashes is not None:
            far = np.bitwise_count(self._hashes[one, :1] ^ self._hashes[other]).min(axis=1)
            near = far <= (self._params.distance or 0) if self._vectors is not None else np.ones(len(one), dtype=bool)
            names[near], figures[near] = "perceptual", far[near]
        for kind in reversed(self._codes):
            same = self._codes[kind][one] == self._codes[kind][other]
            names[same], figures[same] = kind, np.nan
        semantic = np.flatnonzero(names == "semantic")
        if len(semantic):
            assert self._vectors is not None
            figures[semantic] = self._vectors.cosines(one[semantic], other[semantic])
        return [
            (name, None if np.isnan(figure) else figure) for name, figure in zip(names, figures.tolist(), strict=True)
        ]


def _decision(kind: str, figure: float | None, key: str, params: Deduplicate.Params) -> Decision:
    if kind == "perceptual":
        assert figure is not None
        bits = f"{int(figure)} bit{'' if figure == 1 else 's'}" if figure else "no bit"
        return Decision("duplicate", f"{bits} of 64 differ from {key}", figure, params.distance)
    if kind == "semantic":
        return Decision("duplicate", f"looks like {key}", figure, params.threshold)
    return Decision("duplicate", f"same {kind} as {key}")


def _hashes(column: pa.ChunkedArray) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """uint64 (rows, 1 or 8), and which rows have them."""
    present = column.is_valid().to_numpy()
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else 1
    found = np.zeros((len(column), width), dtype=np.uint64)
    flat = column.drop_null()
    values = pc.list_flatten(flat) if width > 1 else flat
    found[present] = values.to_numpy().astype(np.uint64).reshape(-1, width)
    return found, present

"""Find images that are copies of each other and keep one of each group."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from operators.base import KEPT, DatasetOperator, Decision, OperatorParams, TableResult

By = Literal["file", "pixels"]
Best = Literal["first", "largest", "sharpest", "labelled"]

_HASHES: dict[By, str] = {"file": "file_hash", "pixels": "pixel_hash"}
_MEASURES: dict[Best, tuple[str, ...]] = {
    "first": (),
    "largest": ("width", "height"),
    "sharpest": ("sharpness",),
    "labelled": ("source.labels",),
}


class Deduplicate(DatasetOperator):
    """Keep one image of each group of exact copies; the others become duplicates that name it.

    Two images are copies if their files are the same byte for byte (`file_hash`), or if they decode to the same
    upright pixels (`pixel_hash`: another format, other metadata). `inspect` writes both. The same file always decodes
    to the same pixels, so with `pixels` the groups are those of equal pixels, and `file` adds which of them are the
    same file. An image without a hash, such as a broken one, fails: it is nobody's duplicate.

    Of the images that are new in a run, the best of a group is kept. What earlier runs kept stays: a new copy of it
    is a duplicate, whatever its size. Neither the order of the files nor that of the rows matters.

    Columns: `group`, the image_id of the kept image of the group, for an image without copies its own, so that images
    of one group can be kept in one split; and `kind`, how an image is a copy of the kept one: `file` or `pixels`,
    null for those that are kept.
    """

    name = "deduplicate"
    decides = True

    class Params(OperatorParams):
        """What is a copy, and which one stays.

        Attributes:
            by: What makes two images copies: `file`, `pixels` or both.
            keep: Which image of a group is the best: `first` by key, `largest` by width times height, `sharpest`,
                or `labelled`: the one with most labels in the source, any more than none known. Ties: first by key.
        """

        by: Annotated[tuple[By, ...], Field(min_length=1)] = ("file", "pixels")
        keep: Best = "first"

    def reads(self) -> tuple[str, ...]:
        return (*(_HASHES[kind] for kind in _HASHES if kind in self.params.by), *_MEASURES[self.params.keep])

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("group", pa.int64()), pa.field("kind", pa.string())])

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        """Group the new rows with each other and with the old rows that were kept. Linear but for sorting copies."""
        old = old.filter(pc.equal(old.column("decision"), "kept"))
        rows = pa.concat_tables([old.select(new.column_names), new], promote_options="permissive")
        rows = rows.set_column(rows.column_names.index("key"), "key", rows.column("key").cast(pa.large_string()))
        codes = {kind: _codes(rows.column(_HASHES[kind])) for kind in _HASHES if kind in self.params.by}
        widest = codes["pixels" if "pixels" in codes else "file"]
        valid = np.all([code >= 0 for code in codes.values()], axis=0)

        best = self._best_first(rows, widest, valid, old.num_rows)
        first = np.ones(len(best), dtype=bool)
        first[1:] = widest[best[1:]] != widest[best[:-1]]
        kept_by = np.arange(rows.num_rows)
        kept_by[best] = best[first][np.cumsum(first) - 1]
        return self._result(rows, old.num_rows, codes, valid, kept_by)

    def _best_first(
        self, rows: pa.Table, groups: NDArray[np.int64], valid: NDArray[np.bool_], old: int
    ) -> NDArray[np.int64]:
        """Rows of groups of two or more, group by group, the one to keep first: old ones, then by measure, then key."""
        size = np.bincount(groups[valid], minlength=1)
        several = np.flatnonzero(valid & (size[groups] > 1))
        picked = rows.select(["key", *_MEASURES[self.params.keep]]).take(pa.array(several))
        is_new = several >= old
        by_key = pc.sort_indices(picked.column("key")).to_numpy()
        place = np.empty(len(several), dtype=np.int64)
        place[by_key] = np.arange(len(several))
        return several[np.lexsort((place, -self._measure(picked), is_new, groups[several]))]

    def _measure(self, rows: pa.Table) -> NDArray[np.float64]:
        """The larger, the better; what is not known is worst."""
        columns = [rows.column(name) for name in _MEASURES[self.params.keep]]
        if self.params.keep == "first":
            return np.zeros(rows.num_rows)
        if self.params.keep == "labelled":
            columns = [pc.list_value_length(columns[0])]
        figures = [pc.cast(column, pa.float64()).to_numpy() for column in columns]
        return np.nan_to_num(np.prod(figures, axis=0), nan=-np.inf, posinf=np.inf, neginf=-np.inf)

    def _result(
        self,
        rows: pa.Table,
        old: int,
        codes: dict[By, NDArray[np.int64]],
        valid: NDArray[np.bool_],
        kept_by: NDArray[np.int64],
    ) -> TableResult:
        kinds = np.full(rows.num_rows, None, dtype=object)
        decisions = [KEPT] * rows.num_rows
        copies = np.flatnonzero(valid & (kept_by != np.arange(rows.num_rows)))
        copies = copies[copies >= old]
        keys = rows.column("key").take(pa.array(kept_by[copies])).to_pylist()
        for copy, key in zip(copies.tolist(), keys, strict=True):
            kinds[copy] = next(kind for kind, code in codes.items() if code[copy] == code[kept_by[copy]])
            decisions[copy] = Decision("duplicate", f"same {kinds[copy]} as {key}")
        for row in np.flatnonzero(~valid).tolist():
            lacking = " and ".join(_HASHES[kind] for kind, code in codes.items() if code[row] < 0)
            decisions[row] = Decision("failed", f"no hash: {lacking} is null")
        ids = rows.column("image_id").to_numpy()
        columns = {
            "group": pa.array(ids[kept_by[old:]], pa.int64(), mask=~valid[old:]),
            "kind": pa.array(kinds[old:], pa.string()),
        }
        return TableResult(pa.table(columns, schema=self.writes()), decisions[old:])


def _codes(hashes: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number per distinct hash, -1 for null."""
    kind = hashes.type.value_type if pa.types.is_dictionary(hashes.type) else hashes.type
    encoded = hashes.cast(_large(kind)).dictionary_encode().combine_chunks()
    return pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)


def _large(kind: pa.DataType) -> pa.DataType:
    """The type whose offsets do not overflow when all shards stand in one array."""
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary(kind) else kind

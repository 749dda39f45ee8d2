"""Find images whose size is unlike that of the rest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelmill.operators.base import DatasetOperator, TableResult

_REACH = 3.0


class OddSize(DatasetOperator):
    """Score how usual an image's size is in this dataset, as CleanVision does: in [0, 1], below 0.5 it is odd.

    With q1 and q3 the quartiles of ``√(width · height)``, sizes within three times q3 − q1 of them are usual. The score
    is 1 in the middle of that range, 0.5 at its ends and 0 half its length beyond them. If half of the images or more
    have one size, so that q1 = q3, the score is ``1 − |size − q1| / q1``, and below 1 it is odd.

    The quartiles are those of all images in play, the new ones and those of earlier runs. Scores that were given in
    earlier runs stay.

    Column: `odd_size`, float32; null for an image without a size.
    """

    name = "odd_size"

    def reads(self) -> tuple[str, ...]:
        return ("size",)

    def expects(self) -> dict[str, pa.DataType]:
        return {"size": pa.float32()}

    def writes(self) -> pa.Schema:
        return pa.schema([("odd_size", pa.float32())])

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        sizes = _values(new)
        known = np.concatenate([sizes, _values(old)])
        known = known[~np.isnan(known)]
        scores = _scores(sizes, known) if len(known) else sizes
        column = pa.array(scores.astype(np.float32), pa.float32(), from_pandas=True)
        return TableResult(pa.table([column], schema=self.writes()))


def _values(table: pa.Table) -> NDArray[np.float64]:
    """The sizes; NaN where there is none."""
    values: NDArray[np.float64] = table.column("size").cast(pa.float64()).to_numpy()
    return values


def _scores(sizes: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.percentile(known, [25, 75])
    spread = high - low
    middle = (low + high) / 2
    length = spread * (1 + 2 * _REACH)
    return 1 - np.clip(np.abs(sizes - middle) / (length if length > 0 else middle), 0, 1)

"""The data of `tests.benchmarks.compare`, and how right an answer is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelmill.operators.miniatures.write import write_world
from tests.benchmarks.near_duplicates import draw_hashes, write_vectors

ISSUES = ("dark", "light", "blurry", "low_information", "grayscale", "odd_aspect_ratio", "odd_size")
BROKEN = ("truncated", "empty", "not_an_image")
Answer = Mapping[str, Any]


class Pictures:
    """A drawn world, a third of it copies and a tenth spoilt.

    Files that cannot be read are taken out, as some who are compared stop at them.
    """

    def __init__(self, folder: Path, count: int, side: int, seed: int) -> None:
        write_world(folder, count, seed=seed, size=side, duplicates=0.35, bad=0.12)
        self.folder = folder / "images"
        self.copies = pq.read_table(folder / "truth" / "duplicates.parquet").to_pylist()
        spoilt = pq.read_table(folder / "truth" / "defects.parquet").to_pylist()
        self.spoilt = {issue: {row["key"] for row in spoilt if row["defect"] == issue} for issue in ISSUES}
        for row in spoilt:
            if row["defect"] in BROKEN:
                (self.folder / row["key"]).unlink()

    def copies_found(self, answer: Answer) -> dict[str, float]:
        """Recall by kind: of the copies, how many are connected with another picture of the same; and precision: of the
        pairs, how many show the same; also of those without a spoilt picture, as all that are dark look the same."""
        group = {row["key"]: row["group"] for row in self.copies}
        pairs = {tuple(sorted(pair)) for pair in answer["pairs"]}
        right = {(one, other) for one, other in pairs if one in group and group[one] == group.get(other)}
        connected = {key for pair in right for key in pair}
        spoilt = set().union(*self.spoilt.values())
        clean = [pair for pair in pairs if spoilt.isdisjoint(pair)]
        found = {
            "precision": len(right) / max(1, len(pairs)),
            "unspoilt": sum(pair in right for pair in clean) / max(1, len(clean)),
        }
        for kind in dict.fromkeys(row["kind"] for row in self.copies if row["of"] is not None):
            keys = [row["key"] for row in self.copies if row["kind"] == kind]
            found[kind] = sum(key in connected for key in keys) / len(keys)
        return found

    def issues_found(self, answer: Answer) -> dict[str, float]:
        """F1 by issue, of the pictures that were spoilt in that way."""
        return {issue: _f1(set(answer["issues"].get(issue, ())), self.spoilt[issue]) for issue in ISSUES}


class Planted:
    """Rows of which some are near others, and all pairs that are, found by comparing all with all.

    Args:
        path: A .npy with one row each.
        near: int64 (2, pairs): both ways round.
    """

    def __init__(self, path: Path, near: NDArray[np.int64]) -> None:
        self.path = path
        self.near = near[:, near[0] != near[1]]

    @classmethod
    def hashes(cls, folder: Path, count: int, distance: int) -> Planted:
        """Those of `tests.benchmarks.near_duplicates`."""
        rows, _, _ = draw_hashes(count)
        np.save(folder / "hashes.npy", rows)
        found = []
        for start in range(0, count, 1024):
            apart = np.bitwise_count(rows[start : start + 1024, None] ^ rows)
            one, other = np.nonzero(apart <= distance)
            found.append(np.stack([start + one, other]))
        return cls(folder / "hashes.npy", np.concatenate(found, axis=1))

    @classmethod
    def vectors(cls, folder: Path, count: int, threshold: float) -> Planted:
        """Those of `tests.benchmarks.near_duplicates`."""
        import pyarrow as pa

        write_vectors(folder / "vectors.arrow", count)
        column = pa.ipc.open_file(folder / "vectors.arrow").read_all().column(0).combine_chunks()
        rows = column.values.to_numpy().astype(np.float32).reshape(count, -1)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.save(folder / "vectors.npy", rows)
        found = []
        for start in range(0, count, 4096):
            cosines = rows[start : start + 4096] @ rows.T
            one, other = np.nonzero(cosines >= threshold - 1e-6)
            found.append(np.stack([start + one, other]))
        return cls(folder / "vectors.npy", np.concatenate(found, axis=1))

    def removed_well(self, answer: Answer) -> dict[str, float]:
        """Pairs of which both were kept, as a share; and how many were removed that resemble none that was kept."""
        kept = np.ones(len(np.load(self.path, mmap_mode="r")), dtype=bool)
        kept[answer["removed"]] = False
        one, other = self.near
        missed = kept[one] & kept[other]
        resembles = np.zeros(len(kept), dtype=bool)
        resembles[one[kept[other]]] = True
        return {
            "recall": 1 - float(missed.mean()) if len(one) else 1.0,
            "removed": int((~kept).sum()),
            "wrongly": int((~kept & ~resembles).sum()),
        }


def _f1(found: set[str], truth: set[str]) -> float:
    return 2 * len(found & truth) / max(1, len(found) + len(truth))

"""Voronoi cells of k-means centres, each with what is near its borders: every pair of near vectors shares a cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.clustering.centres import train

if TYPE_CHECKING:
    import torch

CELL, CELLS = 64, 2.0
"""Fewest vectors in a cell, on average and without copies; and most cells, in times of √n: more never pay."""
SAMPLE, ROUNDS = 32, 5
"""Vectors per cell that centres are found from, and in how many rounds."""
JUDGES = 16_384
"""Vectors, at most, by which numbers of cells are judged."""
FINDING, TAKING = 6, 1500
"""What it takes to compare a vector with a centre, and to read one, in comparisons of two vectors, as measured."""
SEED = 0
HALF_ROUNDING = 2.0**-7
"""By how much a score is wrong in bfloat16, at most: both factors, the sum of up to 1.5 and the 0.5 that is added to
the product are each rounded to 2^-9 of themselves."""
IN_CACHE, ON_GPU = 2**20, 2**25
"""Products of vectors and centres that are looked at together: what a processor's cache holds, what fills a GPU."""


class Borders:
    """k-means cells, and which vectors are near which border.

    Args:
        sample: float32 (n, d), unit vectors.
        count: How many cells.
        threshold: Least cosine of the pairs that must meet.
    """

    def __init__(self, sample: NDArray[np.float32], count: int, threshold: float) -> None:
        import torch

        self._centres = train(sample, count, SEED, ROUNDS, threads=torch.get_num_threads())
        # What is added to the product with a centre, so that the nearest has the highest score.
        self._offset = -(self._centres**2).sum(axis=1) / 2
        # Widened for float32: a vector that is copied once too often costs little, a missed pair is missed.
        width = float(np.sqrt(2 * (1 - threshold)) + 1e-3) / 2
        centres = on_device(self._centres)
        self._reach: NDArray[np.float32] = (width * torch.cdist(centres, centres)).cpu().numpy()

    def __len__(self) -> int:
        return len(self._centres)

    def cells_of(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a row and a cell, by row: the row's own cell, and those whose border it is near.

        A row's own cell may be one whose centre is almost the nearest: of near vectors x and y with any own cells i and
        j, x is in j or y in i all the same.
        """
        import torch

        rows, cells = [], []
        centres, offset, reach = (on_device(each) for each in (self._centres, self._offset, self._reach))
        quick = as_multiplied(centres).T
        offset = offset.to(quick.dtype)
        # Two products are compared, each with its error.
        error = 2 * HALF_ROUNDING if quick.dtype != centres.dtype else 0.0
        step = max(1, (ON_GPU if centres.is_cuda else IN_CACHE) // len(centres))
        for start in range(0, len(vectors), step):
            some = on_device(vectors[start : start + step])
            score = torch.addmm(offset, some.to(quick.dtype), quick).float()
            most, home = score.max(dim=1)
            near = score.add_(reach.index_select(0, home)) >= (most - error)[:, None]
            # NumPy looks for the few in a mask ten times as fast as torch does on a CPU.
            places = near.view(-1).nonzero()[:, 0].cpu().numpy() if near.is_cuda else np.flatnonzero(near.numpy())
            row, cell = np.divmod(places, len(centres))
            rows.append(row + start)
            cells.append(cell)
        return np.concatenate(rows), np.concatenate(cells)


def best_borders(
    take: Callable[[NDArray[np.int64]], NDArray[np.float32]], count: int, threshold: float, most: int
) -> tuple[Borders | None, NDArray[np.float64]]:
    """As many cells as make comparing within them cheapest, judged on a sample.

    Args:
        take: Gives unit vectors by number, float32 (n, d).
        count: How many vectors there are.
        threshold: Least cosine of the pairs that must meet.
        most: Most cells.

    Returns:
        The borders, None where one cell is best; and how many vectors to expect in each cell, float64 (cells,).
    """
    best: tuple[float, Borders | None, NDArray[np.float64]] = (float(count) ** 2, None, np.array([float(count)]))
    largest = min(count // CELL, int(CELLS * count**0.5), most)
    drawn = np.linspace(0, count - 1, min(count // 2, SAMPLE * largest)).astype(np.int64)
    # Centres are nearer to what they were found from than to the rest, so how good they are the rest tells.
    rest = np.setdiff1d(np.linspace(0, count - 1, min(count, JUDGES)).astype(np.int64) + 1, np.append(drawn, count))
    sample, judges = take(drawn), take(rest)

    def judge(cells: int) -> bool:
        """Whether so many are better than the best so far."""
        nonlocal best
        borders = Borders(sample[:: max(1, len(sample) // (SAMPLE * cells))], cells, threshold)
        sizes = count * np.bincount(borders.cells_of(judges)[1], minlength=cells) / len(judges)
        cost = float(FINDING * count * cells + (sizes**2).sum() + TAKING * sizes.sum())
        better = cost < best[0]
        best = (cost, borders, sizes) if better else best
        return better

    cells = largest // 2
    while cells >= 2 and (judge(cells) or best[1] is None):
        cells //= 2
    # To find so many centres takes long itself, so they must promise something.
    if largest >= 2 and 2 * FINDING * count * largest < best[0]:
        judge(largest)
    return best[1], best[2]


def by_cell(cells: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Places in an array (n,) of cells, one array for each cell that occurs, rising."""
    order = np.argsort(cells, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(cells[order])) + 1) if len(order) else []


def on_device(array: NDArray[np.float32]) -> torch.Tensor:
    """A tensor where there is a GPU on it, else of the array's own memory."""
    import torch

    from labelmill.operators.models.device import pick_device

    with warnings.catch_warnings():
        # Arrays that a task was sent are read-only, and nothing is written here.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array).to(pick_device())


def as_multiplied(tensor: torch.Tensor) -> torch.Tensor:
    """In half precision where the machine multiplies that several times as fast."""
    import torch

    if tensor.is_cuda:
        return tensor.half()
    return tensor.bfloat16() if torch.cpu.get_capabilities().get("amx_bf16") else tensor

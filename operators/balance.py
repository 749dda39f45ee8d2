"""Keep a set of a wanted size in which every class or cluster is seen as evenly as can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator

from labelmill.operators.base import KEPT, DatasetOperator, Decision, OperatorParams, TableResult, tuning
from labelmill.operators.columns.image_classes import ImageClasses, check_classes, read_classes
from labelmill.operators.columns.rows import old_then_new, spans
from labelmill.operators.columns.vectors import Vectors, check_vectors
from labelmill.operators.errors import OperatorError
from labelmill.operators.expressions.number import Figure
from labelmill.operators.sampling.class_balance import UNLIMITED, MakeFarthest, choose_evenly
from labelmill.operators.sampling.farthest_point import FarthestPoints
from labelmill.operators.sampling.seeded import key_bytes, seeded_hashes

Pick = Literal["random", "hardest", "typical", "diverse"]

DEFAULT = "default"
EVERYTHING = "everything"


class Balance(DatasetOperator):
    """Keep as many images as wanted, evenly over classes or clusters, and drop the others.

    ``balance: {by: cluster, size: 5000}`` keeps 5,000 images, as many of each cluster as of any other; a cluster that
    has fewer gives all, and the others make up for it. ``balance: 5000`` alone keeps 5,000 of all images.

    One image after the other is kept: always one of the class that has the fewest kept so far (of equals, by a seeded
    hash of the class) and has more. An image with several classes counts for each of them. So without a budget the
    size is met to the image whenever there are that many; where there are fewer, all are kept, and their decisions
    say so. An image without a class (null, or an empty list) is of class ``none``. A `budget` ends a class: no image is
    kept that shows a class whose budget is spent. With budgets and several classes an image the size may be missed
    although another choice would have met it: finding that one is NP-hard.

    Which image of a class is kept: `random`, by a seeded hash of its key; `hardest` or `typical`, the one with the
    greatest or least `hardness`, those whose hardness is not known last; or `diverse`, the one whose embedding is
    farthest from those of the class that are kept (k-center greedy, Gonzalez 1985;
    operators/sampling/farthest_point.py), so that even a few show all there is. The hash settles what is equal. The
    order of images never matters.

    With `diverse` an image without a usable embedding fails. Time grows with candidates × kept × dimensions: 5,000 of
    100,000 candidates with 512 numbers take some seconds.

    Images that arrive later: earlier decisions stand. A share is one of all images so far, and a number is filled up.

    A dropped image that was compared has its hardness as the decision's score; the threshold is that of the last image
    kept of its class, where it has one class.
    """

    name = "balance"
    decides = True

    class Params(OperatorParams):
        """How many, of what, and which. ``balance: 5000`` is ``balance: {size: 5000}``.

        Attributes:
            by: Column to balance: one class an image such as ``cluster`` or ``classify.class``, a list of classes, or
                detections such as ``source.labels``. Null: all images are alike.
            size: How many images to keep: a number from 1, or a share of them above 0 and up to 1.0. Null: as many as
                the budget lets through.
            pick: Which images of a class to keep: random, hardest, typical or diverse.
            hardness: For hardest and typical: a column or expression that is greater the harder, or odder, an image
                is, such as ``cluster.distance`` or ``1 - classify.probability``.
            embedding: For diverse: the column of the vectors.
            budget: The most images to keep of each class: one number for all, or numbers by class such as
                ``{car: 500, none: 100, default: 1000}``. Classes that are not named use `default`; without it they
                have no limit. Images are counted, not objects.
            seed: Another seed gives another choice.
            candidates: For diverse: how many images of a class, drawn by the hash, are looked at together; when half
                of them are kept, as many others join. Bounds the time. Null: all.
            memory_gb: For diverse: memory for candidates; those that do not fit are read from the disk again and again.
        """

        shorthand: ClassVar[str] = "size"
        by: str | None = Field(None, min_length=1)
        size: int | float | None = None
        pick: Pick = "random"
        hardness: str | None = None
        embedding: str = Field("embedding", min_length=1)
        budget: Annotated[int, Field(ge=0)] | dict[str, Annotated[int, Field(ge=0)]] | None = None
        seed: int = 0
        candidates: Annotated[int, Field(ge=2)] | None = 100_000
        memory_gb: float = tuning(2.0, gt=0, allow_inf_nan=False)

        @field_validator("size", mode="before")
        @classmethod
        def _size(cls, value: Any) -> Any:
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if value is None or whole or (isinstance(value, float) and 0 < value <= 1):
                return value
            raise ValueError(f"must be a number of images from 1 or a share above 0 up to 1.0 but is {value!r}")

        @field_validator("budget", mode="before")
        @classmethod
        def _class_names(cls, value: Any) -> Any:
            return {str(name): most for name, most in value.items()} if isinstance(value, dict) else value

    params: Params

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        if params.size is None and params.budget is None:
            raise OperatorError("size or budget must be given: how many images to keep", ("size",))
        if params.by is None and isinstance(params.budget, dict):
            raise OperatorError("by must be given for a budget by class: the column of the classes", ("budget",))
        compares = params.pick in ("hardest", "typical")
        if compares and params.hardness is None:
            example = 'such as cluster.distance or "1 - classify.probability"'
            message = (
                f"hardness must be given for pick: {params.pick}: what is greater the harder an image is, {example}"
            )
            raise OperatorError(message, ("pick",))
        if not compares and params.hardness is not None:
            message = f"hardness must stand with pick: hardest or typical but pick is {params.pick}"
            raise OperatorError(message, ("hardness",))
        self._hardness = Figure(params.hardness, ("hardness",)) if compares else None

    def reads(self) -> tuple[str, ...]:
        columns = [] if self.params.by is None else [self.params.by]
        columns += [] if self._hardness is None else self._hardness.reads
        columns += [self.params.embedding] if self.params.pick == "diverse" else []
        return tuple(dict.fromkeys(columns))

    def writes(self) -> pa.Schema:
        return pa.schema([])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        """Refuse a column that holds no classes or no vectors, and a hardness that is no number."""
        super().check(columns)
        if self.params.by is not None:
            check_classes(self.params.by, columns[self.params.by], "by")
        if self.params.pick == "diverse":
            check_vectors(self.params.embedding, columns[self.params.embedding])
        if self._hardness is not None:
            self._hardness.check({name: columns[name] for name in self._hardness.reads})

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        first = old.num_rows
        classes = self._classes(new, old)
        kept_before = np.flatnonzero(pc.equal(old.column("decision"), "kept").to_numpy())
        usable = np.ones(first + new.num_rows, dtype=bool)
        usable[:first] = pc.not_equal(old.column("decision"), "failed").to_numpy()
        problems: dict[int, str] = {}
        farthest: MakeFarthest | None = None
        if self.params.pick == "diverse":
            vectors = Vectors(old_then_new(self.params.embedding, new, old))
            usable &= vectors.usable
            problems = {row - first: problem for row, problem in vectors.problems.items() if row >= first}
            farthest = self._farthest(vectors)
        hardness = None if self._hardness is None else self._hardness.compute(new)

        rows = np.flatnonzero(usable[first:])
        candidates = first + rows[self._order(new, rows, hardness)]
        limits = self._limits(classes.names)
        size = self._size(int(usable.sum()))
        ties = seeded_hashes([name.encode() for name in classes.names], self._chance)[:, 0]
        wanted = max(0, size - len(kept_before))
        chosen = choose_evenly(classes, kept_before, candidates, wanted, limits, ties, farthest)

        kept = np.concatenate([kept_before, chosen])
        decisions = np.full(new.num_rows, KEPT, dtype=object)
        if self.params.size is not None and len(kept) < size:
            decisions[:] = Decision("kept", f"fewer than wanted ({len(kept)} of {size} images)")
        is_chosen = np.zeros(len(usable), dtype=bool)
        is_chosen[chosen] = True
        dropped = np.sort(candidates[~is_chosen[candidates]])
        owners, reasons = _reasons(classes, usable, kept, limits, dropped)
        if hardness is None:
            shared = np.array([Decision("dropped", reason) for reason in reasons], dtype=object)
            decisions[dropped - first] = shared[owners]
        else:
            last = self._last(classes, chosen, hardness[chosen - first])
            thresholds = last[_only_class(classes, dropped)]
            scores = hardness[dropped - first]
            told = zip((dropped - first).tolist(), owners.tolist(), scores.tolist(), thresholds.tolist(), strict=True)
            for row, owner, score, threshold in told:
                decisions[row] = Decision("dropped", reasons[owner], _known(score), _known(threshold))
        for row, problem in problems.items():
            decisions[row] = Decision("failed", problem)
        return TableResult(None, decisions.tolist())

    @property
    def _chance(self) -> str:
        """What seeded hashes begin with."""
        return f"balance\0{self.params.seed}\0"

    def _classes(self, new: pa.Table, old: pa.Table) -> ImageClasses:
        """Of the old rows, then the new ones."""
        if self.params.by is not None:
            return read_classes(old_then_new(self.params.by, new, old))
        rows = old.num_rows + new.num_rows
        return ImageClasses([EVERYTHING], np.arange(rows), np.zeros(rows, dtype=np.int64), np.arange(rows + 1))

    def _order(self, new: pa.Table, rows: NDArray[np.int64], hardness: NDArray[np.float64] | None) -> NDArray[np.int64]:
        """The order in which images of one class are chosen, as places in `rows`; at random for diverse."""
        hashes = seeded_hashes(key_bytes(new.column("key").take(pa.array(rows))), self._chance)
        if hardness is None:
            return np.lexsort((hashes[:, 1], hashes[:, 0]))
        first = -hardness[rows] if self.params.pick == "hardest" else hardness[rows]
        return np.lexsort((hashes[:, 1], hashes[:, 0], first))  # NaN comes last

    def _limits(self, names: list[str]) -> NDArray[np.int64]:
        """The most images of each class."""
        budget = self.params.budget
        if not isinstance(budget, dict):
            return np.full(len(names), UNLIMITED if budget is None else budget, dtype=np.int64)
        return np.array([budget.get(name, budget.get(DEFAULT, UNLIMITED)) for name in names], dtype=np.int64)

    def _size(self, there: int) -> int:
        """How many of all images are to be kept."""
        if self.params.size is None:
            return there
        if isinstance(self.params.size, int):
            return self.params.size
        return math.floor(self.params.size * there + 0.5)

    def _farthest(self, vectors: Vectors) -> MakeFarthest:
        def make(candidates: NDArray[np.int64], kept: NDArray[np.int64], sharing: int) -> FarthestPoints:
            at_once = self.params.candidates or len(candidates)
            return FarthestPoints(vectors, candidates, kept, at_once, int(self.params.memory_gb * 2**30 / sharing))

        return make

    def _last(
        self, classes: ImageClasses, chosen: NDArray[np.int64], hardness: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """For each class the hardness of the last of its chosen images that have one class; NaN where there is none.

        The place after the last class is for images with several, which have no such figure.
        """
        last = np.full(len(classes.names) + 1, np.nan)
        later = np.fmin if self.params.pick == "hardest" else np.fmax
        later.at(last, _only_class(classes, chosen), hardness)
        last[-1] = np.nan
        return last


def _only_class(classes: ImageClasses, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each row that has one; the number of classes for a row that has several."""
    several = np.diff(classes.starts)[rows] > 1
    return np.where(several, len(classes.names), classes.classes[classes.starts[rows]])


def _reasons(
    classes: ImageClasses,
    usable: NDArray[np.bool_],
    kept: NDArray[np.int64],
    limits: NDArray[np.int64],
    dropped: NDArray[np.int64],
) -> tuple[NDArray[np.int64], list[str]]:
    """Which class is why an image was dropped: one whose budget is spent, else the one that most kept images show.

    Returns:
        int64 (dropped,): that class; and what is said of each class.
    """
    total = len(classes.names)
    counts = np.bincount(classes.classes[spans(classes.starts, kept)], minlength=total)
    there = np.bincount(classes.classes[usable[classes.images]], minlength=total)
    spent = counts >= limits
    # Of equals the first by name.
    rank = np.empty(total, dtype=np.int64)
    rank[np.lexsort((-np.arange(total), counts, spent))] = np.arange(total)
    pairs = spans(classes.starts, dropped)
    starts = np.cumsum(np.diff(classes.starts)[dropped]) - np.diff(classes.starts)[dropped]
    highest = np.maximum.reduceat(rank[classes.classes[pairs]], starts) if len(dropped) else np.zeros(0, dtype=np.int64)
    reasons = []
    for number, name in enumerate(classes.names):
        shown = f"{counts[number]} of {there[number]} images kept"
        if name == EVERYTHING and total == 1:
            reasons.append(f"over the size wanted ({shown})")
        else:
            reasons.append(f"over the {'budget' if spent[number] else 'share'} of {name} ({shown})")
    return np.argsort(rank)[highest], reasons


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value

"""Images that may not be worth keeping, whatever the pipeline decided: galleries of the worst by each quality score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from labelmill.pipelines.report.limits import GALLERY_IMAGES
from labelmill.pipelines.report.picking import Lowest
from labelmill.pipelines.report.run_reader import Figures, RunReader, ShardView
from labelmill.pipelines.steps import Input

LOW = {
    "dark": (0.32, "Dark"),
    "light": (0.05, "Overexposed"),
    "blurry": (0.29, "Blurry"),
    "low_information": (0.3, "Little to see"),
    "odd_aspect_ratio": (0.35, "Very long or high"),
    "grayscale": (0.5, "Without colour"),
    "odd_size": (0.5, "Unusual size"),
}
"""Scores that are low for a bad image: CleanVision's thresholds, and what the issue is called."""

HIGH = {"nsfw": (0.5, "Possibly unsafe"), "outlier": (2.0, "Unlike any other")}
"""Scores that are high for an image to look at."""


class Issues:
    """Counts the images on the bad side of each score, whatever became of them, and picks the worst."""

    def __init__(self, run: RunReader) -> None:
        self._run = run
        self._columns = run.columns(lambda _, field: field.name in LOW or field.name in HIGH)
        self._worst = [Lowest(GALLERY_IMAGES) for _ in self._columns]
        self._measured = [0 for _ in self._columns]

    def reads(self) -> Sequence[Input]:
        return self._columns

    def see(self, shard: ShardView) -> None:
        for number, column in enumerate(self._columns):
            values = shard.column(column)
            there = np.flatnonzero(pc.is_valid(values).to_numpy())
            figures = values.take(there).to_numpy().astype(np.float64)
            if column.column in LOW:
                bad = figures < LOW[column.column][0]
            else:
                bad, figures = figures >= HIGH[column.column][0], -figures
            self._measured[number] += len(there)
            self._worst[number].add(shard.ids[there[bad]], figures[bad])

    def finish(self) -> list[Figures]:
        """Of each score that was measured: the threshold, how many images are on its bad side, and the worst."""
        return [
            {"score": self._run.name(column), "title": (LOW | HIGH)[column.column][1],
             "threshold": (LOW | HIGH)[column.column][0], "low": column.column in LOW, "count": worst.seen,
             "measured": measured,
             "images": [{"image": image_id, "value": abs(figure)}
                        for image_id, figure in zip(worst.ids.tolist(), worst.figures.tolist(), strict=True)]}
            for column, worst, measured in zip(self._columns, self._worst, self._measured, strict=True) if measured
        ]  # fmt: skip

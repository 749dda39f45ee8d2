"""Where images were lost: how many at which step, and for each reason those that are furthest from passing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.pipelines.report.limits import FAILURES, GALLERIES, GALLERY_IMAGES
from labelmill.pipelines.report.picking import Lowest, draw
from labelmill.pipelines.report.run_reader import Figures, RunReader, ShardView
from labelmill.pipelines.run_folder.outcomes import reason_kind
from labelmill.pipelines.steps import Input

KINDS = ("dropped", "duplicate", "failed", "undone")
NAMES = (Input(None, "key", pa.string()), Input(None, "uri", pa.string()))


class Funnel:
    """Counts the first decision against each image, as `pipelines.run_folder.outcomes` does, and picks examples."""

    def __init__(self, run: RunReader) -> None:
        self._run = run
        self._lost: Counter[tuple[int, str]] = Counter()
        self._examples: dict[tuple[int, str], Lowest] = {}
        self._told: dict[int, dict[str, Any]] = {}
        self._failed: list[dict[str, Any]] = []
        self._failures: Counter[tuple[int, str]] = Counter()

    def reads(self) -> Sequence[Input]:
        return NAMES

    def see(self, shard: ShardView) -> None:
        for row in np.flatnonzero(~shard.kept).tolist():
            position, kind = shard.outcome.step[row], shard.outcome.final[row]
            self._lost[position, kind] += 1
            if kind == "duplicate":
                continue
            _, reason, score, threshold = (column[row].as_py() for column in shard.outcome.decisions[position].columns)
            told = {"image": int(shard.ids[row]), "step": self._run.steps[position].name, "reason": reason or "",
                    "score": score, "threshold": threshold}  # fmt: skip
            names = [shard.column(name)[row].as_py() for name in NAMES]
            key = (position, reason_kind(kind, reason or "", *names))
            if kind in ("failed", "undone"):
                self._failures[key] += 1
                if len(self._failed) < FAILURES:
                    self._failed.append(told)
            else:
                self._pick(key, told)

    def _pick(self, key: tuple[int, str], told: dict[str, Any]) -> None:
        picked = self._examples.setdefault(key, Lowest(GALLERY_IMAGES))
        image_id = told["image"]
        known = told["score"] is not None and told["threshold"] is not None
        ids = np.array([image_id])
        figure = np.array([-abs(told["score"] - told["threshold"])]) if known else draw(ids)
        before = set(picked.ids.tolist())
        picked.add(ids, figure)
        after = set(picked.ids.tolist())
        if image_id in after:
            self._told[image_id] = told
        for gone in before - after:
            self._told.pop(gone, None)

    def finish(self) -> Figures:
        """``steps``: what each step lost and how many images were left after it; ``dropped``: examples by reason;
        ``failures``: how many by reason, and the first by name."""
        left = images = self._run.summary["images"]
        steps = []
        for step in self._run.steps:
            lost = {kind: self._lost[step.position, kind] for kind in KINDS}
            left -= sum(lost.values())
            steps.append({"step": step.name, "operator": step.operator_name, **lost, "left": left})
        reasons = sorted(self._examples.items(), key=lambda item: (-item[1].seen, item[0]))
        return {
            "images": images,
            "outcome": self._run.summary["outcome"],
            "steps": steps,
            "dropped": [
                {"step": self._run.steps[position].name, "reason": reason, "count": picked.seen,
                 "images": [self._told[image_id] for image_id in picked.ids.tolist()]}
                for (position, reason), picked in reasons[:GALLERIES]
            ],
            "more_reasons": max(0, len(reasons) - GALLERIES),
            "failed": self._failed,
            "failures": [
                {"step": self._run.steps[position].name, "reason": reason, "count": count}
                for (position, reason), count in sorted(self._failures.items(), key=lambda item: (-item[1], item[0]))
            ][:FAILURES],
            "more_failures": max(0, len(self._failures) - FAILURES),
        }  # fmt: skip

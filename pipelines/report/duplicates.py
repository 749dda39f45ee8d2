"""Groups of copies, side by side: the least alike first, since these are the ones to check."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labelmill.pipelines.report.limits import DUPLICATE_GROUPS, DUPLICATE_MEMBERS
from labelmill.pipelines.report.run_reader import Figures, RunReader, ShardView
from labelmill.pipelines.steps import Input, Step

SURE = {"file": 0, "pixels": 1}
"""Kinds of copies that are exact. They come last."""


class DuplicateGroups:
    """The copies that one step found: `deduplicate`, or whatever writes its columns. Holds 21 bytes for each."""

    def __init__(self, run: RunReader, step: Step) -> None:
        self._run, self._step = run, step
        schema = step.operator.writes()
        self._group, self._kind = (Input(step.position, name, schema.field(name).type) for name in ("group", "kind"))
        self._kinds: Counter[str] = Counter()
        self._names: list[str] = []
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8], NDArray[np.float32]]] = []

    @classmethod
    def all_of(cls, run: RunReader) -> list[DuplicateGroups]:
        return [cls(run, step) for step in run.steps if {"group", "kind"} <= set(step.operator.writes().names)]

    def reads(self) -> Sequence[Input]:
        return self._group, self._kind

    def see(self, shard: ShardView) -> None:
        decided = shard.outcome.decisions[self._step.position]
        copies = np.flatnonzero(np.array([kind == "duplicate" for kind in decided.column(0).to_pylist()], dtype=bool))
        if not len(copies):
            return
        groups = shard.column(self._group).take(copies).to_numpy().astype(np.int64)
        kinds = shard.column(self._kind).take(copies).to_pylist()
        self._kinds.update(kinds)
        for kind in sorted(set(kinds) - set(self._names)):
            self._names.append(kind)
        codes = np.array([self._names.index(kind) for kind in kinds], dtype=np.int8)
        _, _, score, threshold = (column.take(copies).to_pylist() for column in decided.columns)
        doubt = [_doubt(kind, *each) for kind, *each in zip(kinds, score, threshold, strict=True)]
        self._parts.append((groups, shard.ids[copies], codes, np.array(doubt, dtype=np.float32)))

    def finish(self) -> Figures:
        """Counts by kind, and groups: the kept image, and its copies with how each is one and by what figure."""
        empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0, np.float32))
        groups, ids, codes, doubt = (np.concatenate(part) for part in zip(empty, *self._parts, strict=True))
        order = np.lexsort((ids, -doubt))
        first = list(dict.fromkeys(groups[order].tolist()))
        chosen = first[:DUPLICATE_GROUPS]
        members: dict[int, list[int]] = defaultdict(list)
        for place in order[np.isin(groups[order], chosen)].tolist():
            members[int(groups[place])].append(place)
        told = self._figures([int(ids[place]) for places in members.values() for place in places[:DUPLICATE_MEMBERS]])
        return {
            "step": self._step.name,
            "copies": len(ids),
            "groups_in_all": len(first),
            "kinds": sorted(self._kinds.items()),
            "groups": [
                {"kept": group, "size": len(members[group]) + 1,
                 "copies": [{"image": int(ids[place]), "kind": self._names[codes[place]], **told[int(ids[place])]}
                            for place in members[group][:DUPLICATE_MEMBERS]]}
                for group in chosen
            ],
        }  # fmt: skip

    def _figures(self, ids: list[int]) -> dict[int, Figures]:
        columns = {
            name: self._run.values(ids, Input(self._step.position, f"decision.{name}", self._group.type))
            for name in ("reason", "score", "threshold")
        }
        return {image_id: {name: values[image_id] for name, values in columns.items()} for image_id in ids}


def _doubt(kind: str, score: float | None, threshold: float | None) -> float:
    """How near a copy is to not being one, 0…1; below 0 for an exact one.

    The score of a perceptual copy is the number of bits that differ, at most the threshold; that of a semantic one is a
    cosine, at least the threshold.
    """
    if kind in SURE or score is None or threshold is None:
        return -1.0 - SURE.get(kind, 0)
    if kind == "perceptual":
        return score / threshold if threshold else 0.0
    return 1 - (score - threshold) / (1 - threshold) if threshold < 1 else 0.0

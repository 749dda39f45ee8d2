"""A run against truth: the figures of `labelmill evaluate`, and which labels are wrong or missing on which image."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelmill.operators.measures.detections import compare, corners, is_crowd
from labelmill.pipelines.evaluation.evaluate import evaluate_run
from labelmill.pipelines.evaluation.labels import as_label
from labelmill.pipelines.evaluation.truth import Truth, read_truth
from labelmill.pipelines.report.run_reader import Figures, RunReader, ShardView
from labelmill.pipelines.run_folder.finished_run import FinishedRun
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.steps import Input


@dataclass
class Mistakes:
    """What is wrong with the labels of one image.

    Attributes:
        wrong: Places, from 0, of labels that no object of their class overlaps with an IoU of at least 0.5.
        missed: Class and box (xyxy, pixels) of objects that no label found.
    """

    wrong: list[int] = field(default_factory=list)
    missed: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.wrong) + len(self.missed)


class Quality:
    """Compares the labels of kept images with truth, shard by shard."""

    def __init__(self, run: RunReader, where: str | Path) -> None:
        self.figures = evaluate_run(run.folder, where)
        finished = FinishedRun(run.folder)
        self._run, self._truth = run, read_truth(where, finished)
        self._column = finished.labels_column()
        self._judged = set(finished.labels(self._truth.images))
        ontology = run.pipeline.settings.ontology
        self._asked = set(self._truth.classes) if ontology is None else set(ontology.classes)
        self._objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for each in self._truth.objects:
            if self._truth.classes[each["category_id"] - 1] in self._asked:
                self._objects[each["image_id"]].append(each)
        self.by_image: dict[int, Mistakes] = {}
        self._classes: Counter[tuple[str, str]] = Counter()

    def reads(self) -> tuple[Input, ...]:
        return (self._column,)

    def see(self, shard: ShardView) -> None:
        keys = read_shard(self._run.layout.store, shard.outcome.shard, ["key"]).column(0).to_pylist()
        labels = shard.column(self._column)
        for row, key in enumerate(keys):
            number = self._truth.images.get(key)
            if number is None or key not in self._judged:
                continue
            mistakes = self._compare(self._truth, number, labels[row].as_py())
            if mistakes:
                self.by_image[int(shard.ids[row])] = mistakes

    def finish(self) -> Figures:
        """The figures of `labelmill evaluate`, and counts by class."""
        names = sorted({name for name, _ in self._classes})
        classes = [
            {"name": name, **{kind: self._classes[name, kind] for kind in ("right", "wrong", "missed")}}
            for name in names
        ]
        return {**self.figures, "classes": classes}

    def _compare(self, truth: Truth, number: int, labels: list[dict[str, Any]]) -> Mistakes:
        numbers = {name: place for place, name in enumerate(truth.classes, 1)}
        judged = [place for place, label in enumerate(labels) if label["class"] in numbers and not label.get("crowd")]
        found = [as_label(labels[place], number, numbers[labels[place]["class"]]) for place in judged]
        there = self._objects.get(number, [])
        compared = compare(there, found)
        right, seen = {pair.found for pair in compared.pairs}, {pair.truth for pair in compared.pairs}
        mistakes = Mistakes()
        for index, place in enumerate(judged):
            if index in compared.ignored:
                continue
            self._classes[labels[place]["class"], "right" if index in right else "wrong"] += 1
            if index not in right:
                mistakes.wrong.append(place)
        for index, each in enumerate(there):
            name = truth.classes[each["category_id"] - 1]
            if index not in seen and not is_crowd(each):
                self._classes[name, "missed"] += 1
                mistakes.missed.append((name, corners(each["bbox"])))
        return mistakes

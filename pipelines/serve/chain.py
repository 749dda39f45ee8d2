"""A pipeline's steps, image by image: its image and table steps, in the order and by the rules of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import ImageOperator
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.card import ModelCard
from labelmill.pipelines.engine.work import load, waves
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.serve.batcher import Batcher
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import RequestImage
from labelmill.pipelines.serve.metrics import Metrics
from labelmill.pipelines.serve.models import Model
from labelmill.pipelines.serve.settings import Settings
from labelmill.pipelines.serve.work import OperatorWork
from labelmill.pipelines.steps import Step

if TYPE_CHECKING:
    from labelmill.pipelines.config.pipeline import Pipeline


class Serving(Protocol):
    """What a chain asks of the server."""

    settings: Settings
    metrics: Metrics

    async def see(
        self,
        model: Model,
        work: Any,
        images: Sequence[RequestImage],
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Any]:
        """See `Server.see`."""
        ...


@dataclass(frozen=True)
class Told:
    """What one step says of one image.

    Attributes:
        decision: As in a run; None where a step above it took the image out.
        reason: Why.
        score: The figure that was compared, if there is one.
        threshold: What it was compared with.
        values: One row (`pyarrow.Table`), the columns of `writes()`; None where there are none.
    """

    decision: str | None
    reason: str | None = None
    score: float | None = None
    threshold: float | None = None
    values: pa.Table | None = None


NOT_SEEN = Told(None)


class Chain:
    """The steps of a pipeline that need one image alone.

    Steps that see all images of a run (`deduplicate`, `cluster`, `split`, …) are left out, and with them the steps that
    read what those write, or what a source knew. Deciding ones among them take no image out.

    Attributes:
        pipeline: What the steps are of.
        steps: Those that run.
        left_out: The names of the others.
    """

    def __init__(self, pipeline: Pipeline, server: Serving) -> None:
        """Load the models of all steps.

        Raises:
            UserError: No step is left, or one's model cannot be built.
        """
        self.pipeline, self._server = pipeline, server
        self.steps, self.left_out = _alone(pipeline.steps)
        if not self.steps:
            raise UserError("the pipeline has no step for single images: every step needs the others of a run")
        self._models: dict[int, Model] = {}
        self._works: dict[int, Any] = {}
        for step in self.steps:
            try:
                step.operator.ready()
            except OperatorError as error:
                raise UserError(f"step {step.name!r}: {error}") from error
            load(step)
            operator = step.operator
            if isinstance(operator, ImageOperator):
                self._works[step.position] = OperatorWork(operator, server.settings.batch)
            batcher = Batcher(f"{pipeline.settings.name}.{step.name}", server.settings.wait, server.metrics)
            self._models[step.position] = Model(_card(step), batcher, operator, 0.0)

    def close(self) -> None:
        """Do what waits and end the threads."""
        for model in self._models.values():
            model.batcher.close()

    def lost(self) -> str | None:
        """Why its models can answer nothing any more, if so."""
        return next((model.batcher.lost for model in self._models.values() if model.batcher.lost), None)

    async def run(self, image: RequestImage, key: str) -> dict[str, Told]:
        """What each step says of an image, by the step's name.

        Raises:
            ApiError: 503, what is in the way passes.
        """
        told: dict[int, Told] = {}
        for wave in waves(self.steps):
            found = await asyncio.gather(*(self._one(step, image, key, told) for step in wave))
            told.update(zip((step.position for step in wave), found, strict=True))
        return {step.name: told[step.position] for step in self.steps}

    async def _one(self, step: Step, image: RequestImage, key: str, above: dict[int, Told]) -> Told:
        known = {each.position for each in self.steps}
        if any(above[position].decision != "kept" for position in step.depends if position in known):
            return NOT_SEEN
        model = self._models[step.position]
        columns = self._read(step, above)
        if not step.is_image:
            rows = pa.table({"image_id": pa.array([1], pa.int64()), "key": [key], **columns})
            told: Told = await asyncio.wrap_future(model.batcher.call(lambda: _decided(step, rows)))
            return told
        row = {"image_id": 1, "key": key, **{name: column[0].as_py() for name, column in columns.items()}}
        try:
            (values,) = await self._server.see(model, self._works[step.position], [image], [row])
        except ApiError as error:
            if error.status != 400:
                raise
            return Told("failed", error.message)
        return Told("kept", values=values)

    def _read(self, step: Step, above: dict[int, Told]) -> dict[str, pa.ChunkedArray]:
        """The columns that a step reads, one row each."""
        columns: dict[str, pa.ChunkedArray] = {}
        for reference, source in step.inputs.items():
            values = above[source.step].values if source.step is not None else None
            columns[reference] = (
                values.column(source.column) if values is not None else pa.chunked_array([pa.nulls(1, source.type)])
            )
        return columns


def _decided(step: Step, rows: pa.Table) -> Told:
    """What a table step says of one image, through the code that runs apply it with."""
    table, _ = apply(Job(Worker(step.operator), rows, np.ones(1, dtype=bool)))
    row = table.select([name for name in table.column_names if name.startswith("decision")]).to_pylist()[0]
    values = table.select(step.operator.writes().names) if row["decision"] != "failed" else None
    return Told(row["decision"], row["decision.reason"], row["decision.score"], row["decision.threshold"], values)


def _alone(steps: Sequence[Step]) -> tuple[list[Step], list[str]]:
    """The steps that need one image alone, and the names of the others."""
    kept: list[Step] = []
    for step in steps:
        positions = {each.position for each in kept}
        sources = [source.step for source in step.inputs.values()]
        if not step.is_dataset and all(source in positions for source in sources):
            kept.append(step)
    names = {step.name for step in kept}
    return kept, [step.name for step in steps if step.name not in names]


def _card(step: Step) -> ModelCard:
    """The card of a step's model; for one without, what stands for it."""
    card = getattr(step.operator.params, "model", None)
    if isinstance(card, ModelCard):
        return card
    needs = step.operator.needs()
    given = {"task": step.operator_name, "engine": "none", "architecture": "none", "weights": {"random": 0}}
    return ModelCard.model_validate(
        {"name": step.name, **given, "licence": "none", "memory_gb": max(needs.memory_gb, 0.001)}
    )

"""What routes ask models: the operators of a run, one for each question, over weights that are loaded once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import TableOperator
from labelmill.operators.ontology import Ontology
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import RequestImage
from labelmill.pipelines.serve.models import Model
from labelmill.pipelines.serve.work import OperatorWork, TextWork, Work, refusal

if TYPE_CHECKING:
    from labelmill.pipelines.serve.server import Server


async def image_vectors(server: Server, model: Model, images: Sequence[RequestImage]) -> list[Any]:
    """The embedding of each image, float16 (dimensions,), L2-normalised: what `embed` writes."""
    rows = await server.see(model, model.part.images, images)
    return [row["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for row in rows]


async def text_vectors(server: Server, model: Model, texts: Sequence[str]) -> list[Any]:
    """The embedding of each text, float32 (dimensions,), L2-normalised."""
    server.check_count(len(texts), "texts")
    work: TextWork = await server.blocking(lambda: model.batcher.call(model.part.texts).result())
    return await server.run(model, work, texts)


def ontology_of(classes: Any) -> Ontology:
    """The classes of a request: names, or names with their prompts.

    Raises:
        ApiError: 422.
    """
    try:
        return Ontology.model_validate(classes)
    except ValidationError as error:
        raise ApiError(422, f"classes: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def wanted_classes(server: Server, asked: Sequence[str] | None) -> Ontology:
    """The classes that a request asks for, with the prompts of the server's ontology where it knows them.

    Raises:
        ApiError: 400, neither the request nor the server names any.
    """
    known = server.ontology
    if not asked:
        if known is None:
            raise ApiError(
                400,
                "which classes to look for must be said: send class_filter, a list of names; or start the server with "
                "--ontology FILE or --pipeline FILE",
            )
        return known
    return ontology_of({name: known.root.get(name, (name,)) if known is not None else (name,) for name in asked})


async def detections(
    server: Server, model: Model, images: Sequence[RequestImage], ontology: Ontology, floor: float
) -> list[list[dict[str, Any]]]:
    """Raw detections of each image: what `detect` writes with this ontology and floor."""
    from labelmill.operators.detect import Detect

    def make(engine: Any) -> Work:
        given = {"model": model.card, "ontology": ontology, "floor": floor, "dtype": server.settings.dtype}
        params = Detect.Params.model_validate(given)
        operator = Detect(params)
        operator.use(engine)
        return OperatorWork(operator, server.settings.batch)

    work = await server.work(model, ("detect", tuple(ontology.root.items()), floor), make)
    assert isinstance(work, OperatorWork)
    return [row["detections"][0].as_py() for row in await server.see(model, work, images)]


def selected(found: Sequence[list[dict[str, Any]]], **params: Any) -> list[list[dict[str, Any]]]:
    """The labels among raw detections of each image: what `select` makes of them."""
    from labelmill.operators.columns.schemas import DETECTIONS
    from labelmill.operators.select import Select

    rows = compute(Select(Select.Params(**params)), {"detections": pa.array(found, DETECTIONS)}, len(found))
    return [row["detections"] for row in rows]


async def masks(
    server: Server, model: Model, images: Sequence[RequestImage], found: Sequence[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What `segment` writes for the detections of each image."""

    def make(operator: Any) -> Work:
        return OperatorWork(copy.copy(operator), server.settings.batch)

    work = await server.work(model, "segment", make)
    assert isinstance(work, OperatorWork)
    rows = await server.see(model, work, images, [{"detections": each} for each in found])
    return [row.to_pylist()[0] for row in rows]


def compute(operator: TableOperator, columns: Mapping[str, pa.Array], count: int) -> list[dict[str, Any]]:
    """What a table operator writes for some rows, through the code that runs apply it with.

    Raises:
        ApiError: 400, one of them failed.
    """
    from labelmill.operators.base import Decision

    ids = pa.array(range(count), pa.int64())
    rows = pa.table({"image_id": ids, "key": pa.array([str(place) for place in range(count)]), **columns})
    table, _ = apply(Job(Worker(operator), rows, np.ones(count, dtype=bool)))
    written = table.to_pylist()
    for row in written:
        if row["decision"] in ("failed", "undone"):
            raise refusal(Decision(row["decision"], row["decision.reason"] or ""))
    return written

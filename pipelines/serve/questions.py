"""What routes ask models: the operators of a run, one for each question, over weights that are loaded once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import ValidationError

from labelmill.operators.ontology import Ontology
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import RequestImage
from labelmill.pipelines.serve.models import Model
from labelmill.pipelines.serve.work import OperatorWork, TableWork, TextWork, Work, compute

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

    rows = compute(Select(Select.Params(**params)), pa.table({"detections": pa.array(found, DETECTIONS)}))
    return [row["detections"][0].as_py() for row in read_rows(rows)]


def read_rows(outcomes: Sequence[Any]) -> list[Any]:
    """Outcomes without those that are errors.

    Raises:
        ApiError: The first of them.
    """
    for each in outcomes:
        if isinstance(each, ApiError):
            raise each
    return list(outcomes)


async def masks(
    server: Server, model: Model, images: Sequence[RequestImage], found: Sequence[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What `segment` writes for the detections of each image."""
    return await _same_for_all(server, model, "segment", images, [{"detections": each} for each in found])


async def words(server: Server, model: Model, images: Sequence[RequestImage]) -> list[dict[str, Any]]:
    """What `read` writes of each image."""
    return await _same_for_all(server, model, "read", images)


async def gazes(
    server: Server, model: Model, images: Sequence[RequestImage], faces: Sequence[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What `gaze` writes for the faces of each image, detections of class "face"."""
    return await _same_for_all(server, model, "gaze", images, [{"detections": each} for each in faces])


async def answers(
    server: Server,
    model: Model,
    images: Sequence[RequestImage],
    prompt: str,
    max_tokens: int,
    schema: dict[str, Any] | None = None,
) -> list[str]:
    """What `ask` writes of each image; with a schema JSON."""
    from labelmill.operators.ask import Ask

    def make(engine: Any) -> Work:
        given = {"model": model.card, "prompt": prompt, "max_tokens": max_tokens, "dtype": server.settings.dtype}
        try:
            operator = Ask(Ask.Params.model_validate({**given, "schema": schema}))
        except ValidationError as error:
            raise ApiError(422, error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        operator.check({})
        operator.use(engine)
        return OperatorWork(operator, server.settings.batch)

    work = await server.work(model, ("ask", prompt, max_tokens, json.dumps(schema, sort_keys=True)), make)
    assert isinstance(work, OperatorWork)
    return [row["answer"][0].as_py() for row in await server.see(model, work, images)]


async def classes(
    server: Server, model: Model, images: Sequence[RequestImage], ontology: Ontology
) -> list[dict[str, Any]]:
    """What `classify` writes of each image after `embed`."""
    from labelmill.operators.classify import Classify

    def make(part: Any) -> Work:
        texts = part.texts().encoder
        operator = Classify(Classify.Params.model_validate({"model": model.card, "ontology": ontology}))
        operator.use(texts)
        return TableWork(operator)

    work = await server.work(model, ("classify", tuple(ontology.root.items())), make)
    seen = await server.see(model, model.part.images, images)
    return [row.to_pylist()[0] for row in await server.run(model, work, seen)]


async def _same_for_all(
    server: Server, model: Model, key: str, images: Sequence[RequestImage], rows: Sequence[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """What the loaded operator of a card writes, which needs no question."""

    def make(operator: Any) -> Work:
        return OperatorWork(operator, server.settings.batch)

    work = await server.work(model, key, make)
    assert isinstance(work, OperatorWork)
    return [row.to_pylist()[0] for row in await server.see(model, work, images, rows)]

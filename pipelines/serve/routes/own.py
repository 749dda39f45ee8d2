"""Routes of our own: a pipeline's steps on images, and a search in a run."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from labelmill.pipelines.errors import UserError
from labelmill.pipelines.serve.bodies import RequestBody, answer, read_body, takes
from labelmill.pipelines.serve.chain import Chain, Told
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import Images
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["labelmill"])

ARROW = "application/vnd.apache.arrow.stream"


class RunBody(RequestBody):
    """Images for the server's pipeline. `columns`: those to answer with, as ``step.column``; all if not given."""

    image: Images
    keys: list[str] | None = Field(None, description="What steps are told the images are called.")
    columns: list[str] | None = None
    format: Literal["json", "arrow"] = "json"


class SearchBody(RequestBody):
    """What to look for: a text, or a key of the run."""

    run: str | None = Field(None, description="One of those that the server was started with; else the first.")
    text: str | None = Field(None, min_length=1, max_length=2000)
    key: str | None = Field(None, min_length=1, max_length=2000)
    top: int = Field(20, ge=1, le=1000)
    everything: bool = False
    step: str | None = None


@router.post("/v1/run", openapi_extra=takes(RunBody))
async def run(request: Request) -> Response:
    """What the image and table steps of the server's pipeline say of images: the values of a run.

    Steps that need the other images of a run are left out; `left_out` names them. As Arrow: an IPC stream, one row an
    image, columns ``step.column``, ``step.decision`` and ``step.decision.reason``.
    """
    started = time.monotonic()
    body = await read_body(request, RunBody)
    server: Server = request.app.state.server
    chain: Chain | None = server.pipeline
    if chain is None:
        raise ApiError(404, "this server has no pipeline: start it with --pipeline FILE")
    types = {f"{step.name}.{field.name}": field.type for step in chain.steps for field in step.operator.writes()}
    wanted = list(types) if body.columns is None else body.columns
    unknown = [name for name in wanted if name not in types]
    if unknown:
        raise ApiError(422, f"columns must be among {', '.join(types)} but one is {unknown[0][:80]!r}")
    async with server.opened(body.image, numbered=False) as images:
        keys = body.keys if body.keys is not None else [f"image-{place}" for place in range(1, len(images) + 1)]
        if len(keys) != len(images):
            raise ApiError(422, f"keys must be one for each of {len(images)} images but are {len(keys)}")
        outcomes = await asyncio.gather(
            *(chain.run(image, key) for image, key in zip(images, keys, strict=True)), return_exceptions=True
        )
    told: list[dict[str, Told]] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        told.append(outcome)
    if body.format == "arrow":
        return await server.blocking(_arrow, keys, told, {name: types[name] for name in wanted})
    rows = await server.blocking(
        lambda: [_row(key, each, wanted) for key, each in zip(keys, told, strict=True)],
    )
    content = {
        "pipeline": chain.pipeline.settings.name,
        "left_out": chain.left_out,
        "images": rows,
        "time": time.monotonic() - started,
    }
    return answer(content)


def _value(told: dict[str, Told], name: str) -> pa.ChunkedArray | None:
    step, _, column = name.partition(".")
    values = told[step].values
    return None if values is None else values.column(column)


def _row(key: str, told: dict[str, Told], wanted: list[str]) -> dict[str, Any]:
    """One image in JSON."""
    columns = {name: _value(told, name) for name in wanted}
    against = next((each.decision for each in told.values() if each.decision not in ("kept", None)), "kept")
    return {
        "key": key,
        "outcome": against,
        "decisions": {
            name: {
                "decision": each.decision,
                "reason": each.reason or "",
                "score": each.score,
                "threshold": each.threshold,
            }
            for name, each in told.items()
        },
        "columns": {name: _plain(value) for name, value in columns.items()},
    }


def _plain(value: pa.ChunkedArray | None) -> Any:
    return None if value is None else value[0].as_py()


def _arrow(keys: list[str], told: list[dict[str, Told]], types: dict[str, pa.DataType]) -> Response:
    """All images as an Arrow IPC stream."""
    arrays: dict[str, Any] = {"key": pa.array(keys, pa.string())}
    for step in told[0]:
        arrays[f"{step}.decision"] = pa.array([each[step].decision for each in told], pa.string())
        arrays[f"{step}.decision.reason"] = pa.array([each[step].reason for each in told], pa.string())
    for name, kind in types.items():
        parts = [_value(each, name) for each in told]
        arrays[name] = pa.concat_arrays(
            [pa.nulls(1, kind) if part is None else part.combine_chunks() for part in parts]
        )
    table = pa.table(arrays)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return Response(buffer.getvalue(), media_type=ARROW)


@router.post("/v1/search", openapi_extra=takes(SearchBody))
async def search(request: Request) -> Response:
    """The images of a run that are most similar to a text, or to one of its own: as `labelmill search --json`."""
    body = await read_body(request, SearchBody)
    server: Server = request.app.state.server
    runs = server.settings.runs
    if not runs:
        raise ApiError(404, "this server has no run to search: start it with --run RUN")
    folder = body.run if body.run is not None else runs[0]
    if folder not in runs:
        raise ApiError(404, f"run must be one of {', '.join(runs)}")
    if (body.text is None) == (body.key is None):
        raise ApiError(422, "there must be a text or a key, one of the two")
    try:
        found = await server.blocking(_search, folder, body)
    except UserError as error:
        raise ApiError(400, str(error)) from error
    return answer(found)


def _search(folder: str, body: SearchBody) -> dict[str, Any]:
    from labelmill.pipelines.search.search import Query, search_run

    return search_run(folder, Query(text=body.text, key=body.key), body.top, body.everything, body.step)

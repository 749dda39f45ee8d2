"""Inference's routes of SAM and SAM 2."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from labelmill.operators.engines.segmentation import segment_anything, transformers
from labelmill.operators.engines.segmentation.masks import Mask
from labelmill.pipelines.serve.bodies import RequestBody, answer, read_body, takes
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import ImageIn
from labelmill.pipelines.serve.models import Model
from labelmill.pipelines.serve.routes.labels import polygons
from labelmill.pipelines.serve.sam import Embedded, Item, Prompt, SamWork
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["segmentation"])

CHUNK = 16
PROMPTS = 256

ImageId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,200}$")]
"""It also goes into a header."""

Number = Annotated[float, Field(ge=-1e6, le=1e6)]


class Point(BaseModel):
    """A point on the object, or beside it."""

    x: Number
    y: Number
    positive: bool = True


class CentredBox(BaseModel):
    """A box by its centre."""

    x: Number
    y: Number
    width: float = Field(gt=0, le=1e6)
    height: float = Field(gt=0, le=1e6)


class Sam2Prompt(BaseModel):
    """A box, or points."""

    model_config = ConfigDict(extra="ignore")

    box: CentredBox | None = None
    points: list[Point] | None = Field(None, max_length=64)

    @model_validator(mode="after")
    def _one_kind(self) -> Sam2Prompt:
        if (self.box is None) == (not self.points):
            raise ValueError("a prompt must have a box, or points, one of the two")
        return self

    def prompt(self) -> Prompt:
        """The same in pixels, the box by its corners."""
        box = self.box
        corners = None
        if box is not None:
            corners = (
                box.x - box.width / 2,
                box.y - box.height / 2,
                box.x + box.width / 2,
                box.y + box.height / 2,
            )
        points = self.points or []
        return Prompt(
            corners,
            np.array([[each.x, each.y] for each in points], np.float32).reshape(-1, 2),
            np.array([each.positive for each in points], np.int64),
        )


class Sam2Prompts(BaseModel):
    """Prompts of one image."""

    prompts: list[Sam2Prompt] = Field([], max_length=PROMPTS)


class Sam2Image(RequestBody):
    """An image to embed. `image_id`: under which it can be asked again; drawn if not given."""

    image: ImageIn
    image_id: ImageId | None = None
    sam2_version_id: str | None = None


class Sam2Segment(RequestBody):
    """One image, or the id of one that was embedded, and prompts: an object of them, a list, or one."""

    image: ImageIn | None = None
    image_id: ImageId | None = None
    sam2_version_id: str | None = None
    prompts: Sam2Prompts | list[Sam2Prompt] | Sam2Prompt = Sam2Prompts(prompts=[])
    format: Literal["json", "rle", "polygon"] = "json"
    multimask_output: bool = True

    def all_prompts(self) -> list[Prompt]:
        """All of them."""
        given = self.prompts
        if isinstance(given, Sam2Prompts):
            given = given.prompts
        return [each.prompt() for each in (given if isinstance(given, list) else [given])]


class SamImage(RequestBody):
    """An image to embed. `image_id`: under which it can be asked again; drawn if not given."""

    image: ImageIn
    image_id: ImageId | None = None
    sam_version_id: str | None = None
    format: Literal["json", "binary"] = "json"


class SamSegment(RequestBody):
    """One image, or the id of one that was embedded, and points. A label: 1 on the object, 0 beside it, -1 padding."""

    image: ImageIn | None = None
    image_id: ImageId | None = None
    sam_version_id: str | None = None
    point_coords: list[tuple[Number, Number]] = Field([(0.0, 0.0)], min_length=1, max_length=64)
    point_labels: list[Literal[-1, 0, 1]] = Field([-1], min_length=1, max_length=64)
    format: Literal["json"] = "json"

    def prompt(self) -> Prompt:
        """The points that are no padding.

        Raises:
            ApiError: 422, there are none, or not a label for each.
        """
        if len(self.point_coords) != len(self.point_labels):
            raise ApiError(422, "point_labels must have one label for each of point_coords")
        kept = [place for place, label in enumerate(self.point_labels) if label >= 0]
        if not kept:
            raise ApiError(422, "there must be a point with a label of 1 or 0; boxes are for /sam2/segment_image")
        points = np.array([self.point_coords[place] for place in kept], np.float32)
        return Prompt(None, points, np.array([self.point_labels[place] for place in kept], np.int64))


@router.post("/sam2/embed_image", openapi_extra=takes(Sam2Image))
async def sam2_embed(request: Request) -> Response:
    """See an image; `/sam2/segment_image` then takes its `image_id`, as long as it is remembered."""
    started = time.monotonic()
    body = await read_body(request, Sam2Image)
    server: Server = request.app.state.server
    image_id = body.image_id or uuid.uuid4().hex
    name = server.models.resolve("segmentation", body.sam2_version_id)
    async with server.using(name) as model:
        await _segment(server, model, body.image, image_id, [], keep=True)
    return answer({"image_id": image_id, "time": time.monotonic() - started}, {"X-Model-Id": name})


@router.post("/sam2/segment_image", openapi_extra=takes(Sam2Segment))
async def sam2_segment(request: Request) -> Response:
    """A mask for each prompt, the best that the model gives: as polygons, or as COCO's RLE."""
    started = time.monotonic()
    body = await read_body(request, Sam2Segment)
    server: Server = request.app.state.server
    name = server.models.resolve("segmentation", body.sam2_version_id)
    async with server.using(name) as model:
        prompts = body.all_prompts()
        embedded, found = await _segment(server, model, body.image, body.image_id, prompts, keep=False)
    size = embedded.width, embedded.height

    def write() -> list[dict[str, Any]]:
        return [_written(masks[0], size, body.format) for masks in found]

    predictions = await server.blocking(write)
    return answer({"predictions": predictions, "time": time.monotonic() - started}, {"X-Model-Id": name})


@router.post("/sam/embed_image", openapi_extra=takes(SamImage))
async def sam_embed(request: Request) -> Response:
    """See an image: its embedding (1, channels, rows, columns), and `/sam/segment_image` then takes its `image_id`."""
    started = time.monotonic()
    body = await read_body(request, SamImage)
    server: Server = request.app.state.server
    image_id = body.image_id or uuid.uuid4().hex
    name = server.models.resolve("segmentation", body.sam_version_id)
    async with server.using(name) as model:
        embedded, _ = await _segment(server, model, body.image, image_id, [], keep=True)
        coarsest = embedded.maps[-1] if isinstance(embedded.maps, list) else embedded.maps
        values = coarsest.cpu().numpy().reshape(1, *coarsest.shape[-3:])
    headers = {"X-Model-Id": name, "X-Image-Id": image_id}
    if body.format == "binary":
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        return Response(buffer.getvalue(), media_type="application/octet-stream", headers=headers)
    return answer({"embeddings": values, "image_id": image_id, "time": time.monotonic() - started}, headers)


@router.post("/sam/segment_image", openapi_extra=takes(SamSegment))
async def sam_segment(request: Request) -> Response:
    """The masks that the points could mean, best first: the largest outline of each."""
    started = time.monotonic()
    body = await read_body(request, SamSegment)
    server: Server = request.app.state.server
    name = server.models.resolve("segmentation", body.sam_version_id)
    async with server.using(name) as model:
        embedded, found = await _segment(server, model, body.image, body.image_id, [body.prompt()], keep=False)
    size = embedded.width, embedded.height

    def write() -> list[Any]:
        return [next(iter(polygons(mask.counts, size)), []) for mask in found[0]]

    content = {
        "masks": await server.blocking(write),
        "scores": [mask.predicted_iou for mask in found[0]],
        "time": time.monotonic() - started,
    }
    return answer(content, {"X-Model-Id": name})


async def _segment(
    server: Server, model: Model, image: ImageIn | None, image_id: str | None, prompts: list[Prompt], keep: bool
) -> tuple[Embedded, list[list[Mask]]]:
    """The embedded image and the masks of each prompt, best first.

    Raises:
        ApiError: 404, an id that is not remembered; 422, neither image nor id; 400, a card that knows no points.
    """
    if any(each.box is None for each in prompts) and not _takes_points(model):
        raise ApiError(
            400, f"the model {model.card.name} knows boxes only: send a box, or name a card such as sam-vit-b"
        )

    def make(operator: Any) -> SamWork:
        return SamWork(operator._engine, server.settings.batch, CHUNK)

    work = await server.work(model, "prompts", make)
    assert isinstance(work, SamWork)
    if image is None:
        if image_id is None:
            raise ApiError(422, "there must be an image, or the image_id of one that was embedded")
        known = work.known(image_id)
        if known is None:
            raise ApiError(404, "the image_id is not known, or not any more: send the image again")
        item = Item(None, known, prompts, known.height, known.width)
        embedded, found = await asyncio.wrap_future(model.batcher.submit(work, item))
    else:
        async with server.opened(image) as images:
            ((embedded, found),) = await server.see(model, work, images, [{"prompts": prompts}])
        if keep and image_id is not None:
            work.remember(image_id, embedded)
    return embedded, found


def _takes_points(model: Model) -> bool:
    engine = transformers if model.card.engine == "transformers" else segment_anything
    return engine.masks_of_point(model.card) > 0


def _written(mask: Mask, size: tuple[int, int], kind: str) -> dict[str, Any]:
    width, height = size
    if kind == "rle":
        return {
            "masks": {"size": [height, width], "counts": mask.counts},
            "confidence": mask.predicted_iou,
            "format": "rle",
        }
    return {"masks": polygons(mask.counts, size), "confidence": mask.predicted_iou, "format": "polygon"}

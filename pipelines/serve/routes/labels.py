"""Inference's routes of classification and instance segmentation."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from labelmill.pipelines.exports.masks import read_mask
from labelmill.pipelines.exports.outlines import outlines
from labelmill.pipelines.serve.bodies import answer, read_body, takes
from labelmill.pipelines.serve.questions import classes, masks, wanted_classes
from labelmill.pipelines.serve.routes.detection import Wanted, image_answer, labels, one_or_many, prediction
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["labels"])


class Segments(Wanted):
    """What Inference's instance segmentation takes. `model_id` finds the boxes."""

    response_mask_format: Literal["polygon", "rle"] = "polygon"
    segmentation_model_id: str | None = Field(None, description="The card that makes the masks.")


@router.post("/infer/instance_segmentation", openapi_extra=takes(Segments))
async def instance_segmentation(request: Request) -> Response:
    """Boxes of the classes with their masks: a run's `detect`, `select`, then `segment`.

    A polygon is the largest part of its mask, a hole in it cut in by a seam; RLE is COCO's and exact.
    """
    started = time.monotonic()
    body = await read_body(request, Segments)
    server: Server = request.app.state.server
    name = server.models.resolve("detection", body.model_id)
    second = server.models.resolve("segmentation", body.segmentation_model_id)
    ontology = wanted_classes(server, body.class_filter)
    async with server.opened(body.image) as images:
        async with server.using(name) as model:
            found = await labels(server, model, images, ontology, body)
        async with server.using(second) as model:
            segmented = await masks(server, model, images, found)

        def write() -> list[dict[str, Any]]:
            return [
                image_answer(
                    image,
                    [
                        {**prediction(each, ontology), **shape(each["mask"], image.size, body.response_mask_format)}
                        for each in own["detections"]
                    ],
                    started,
                )
                for image, own in zip(images, segmented, strict=True)
            ]

        content = await server.blocking(write)
    return answer(one_or_many(body.image, content), {"X-Model-Id": name})


def shape(counts: str | None, size: tuple[int, int], kind: str) -> dict[str, Any]:
    """A mask as Inference writes it.

    Args:
        counts: COCO compressed RLE; None where there is no mask.
        size: Width and height of the image.
        kind: "polygon" or "rle".
    """
    width, height = size
    if kind == "rle":
        return {"rle": {"size": [height, width], "counts": counts or ""}, "mask_format": "rle"}
    parts = polygons(counts, size)
    return {"points": [{"x": x, "y": y} for x, y in parts[0]] if parts else [], "mask_format": "polygon"}


def polygons(counts: str | None, size: tuple[int, int]) -> list[list[list[float]]]:
    """The parts of a mask as polygons, [x, y] in pixels, the largest first; none for an empty mask."""
    width, height = size
    if counts is None:
        return []
    mask = read_mask(counts, height, width)
    if not mask.area:
        return []
    return [[[float(x), float(y)] for x, y in part] for part in outlines(mask)]


@router.post("/infer/classification", openapi_extra=takes(Wanted))
async def classification(request: Request) -> Response:
    """Which of the classes an image shows: a run's `embed`, then its `classify`. All with their probabilities."""
    started = time.monotonic()
    body = await read_body(request, Wanted)
    server: Server = request.app.state.server
    name = server.models.resolve("embedding", body.model_id)
    ontology = wanted_classes(server, body.class_filter)
    async with server.opened(body.image) as images, server.using(name) as model:
        found = await classes(server, model, images, ontology)
        content = []
        for image, own in zip(images, found, strict=True):
            told = [
                {"class": each, "class_id": place, "confidence": probability}
                for place, (each, probability) in enumerate(zip(ontology.classes, own["probabilities"], strict=True))
            ]
            content.append(
                {
                    "inference_id": str(uuid.uuid4()),
                    "frame_id": None,
                    "time": time.monotonic() - started,
                    "image": dict(zip(("width", "height"), image.size, strict=True)),
                    "predictions": sorted(told, key=lambda each: -float(str(each["confidence"]))),
                    "top": own["class"],
                    "confidence": own["probability"],
                }
            )
    return answer(one_or_many(body.image, content), {"X-Model-Id": name})

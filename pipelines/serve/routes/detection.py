"""Inference's routes of detection: classes that a request names, found by an open-vocabulary detector."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from labelmill.operators.ontology import Ontology, normalise
from labelmill.pipelines.serve.bodies import RequestBody, answer, read_body, takes
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import ImageIn, Images, RequestImage
from labelmill.pipelines.serve.models import Model
from labelmill.pipelines.serve.questions import detections, ontology_of, selected, wanted_classes
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["detection"])

FLOOR = 0.1
"""Of `detect`, unless less is asked for: requests that differ in `confidence` are then one question."""


class Wanted(RequestBody):
    """What Inference's detection routes take.

    Attributes:
        model_id: The name of a card.
        confidence: The least score; "best" and "default" stand for 0.4.
        iou_threshold: Of two boxes of a class with a larger IoU the better one stays.
        class_filter: The classes to look for; the server's own ontology if not given.
        class_agnostic_nms: Whether boxes of different classes count as overlapping too.
    """

    image: Images
    model_id: str | None = None
    confidence: float | Literal["best", "default"] | None = Field(None)
    iou_threshold: float = Field(0.3, ge=0, le=1)
    max_detections: int = Field(300, ge=1, le=10_000)
    class_filter: list[str] | None = Field(None, max_length=2000)
    class_agnostic_nms: bool = False
    visualize_predictions: bool = False

    def least(self) -> float:
        """The least score.

        Raises:
            ApiError: 422.
        """
        value = self.confidence if isinstance(self.confidence, float) else 0.4
        if not 0 <= value <= 1:
            raise ApiError(422, f"confidence must be 0 to 1 but is {value:g}")
        return value


class Ground(RequestBody):
    """What Inference's Grounding DINO takes. `text`: the phrases to look for."""

    image: Images
    text: str | list[str] = Field(description="Phrases to look for.")
    grounding_dino_version_id: str | None = None
    box_threshold: float = Field(0.5, ge=0, le=1)
    text_threshold: float = Field(0.5, ge=0, le=1, description="Not needed: a phrase's score is that of all its words.")
    class_agnostic_nms: bool = False


@router.post("/infer/object_detection", openapi_extra=takes(Wanted))
async def object_detection(request: Request) -> Response:
    """Boxes of the classes: a run's `detect`, then its `select`."""
    started = time.monotonic()
    body = await read_body(request, Wanted)
    server: Server = request.app.state.server
    name = server.models.resolve("detection", body.model_id)
    ontology = wanted_classes(server, body.class_filter)
    async with server.opened(body.image) as images, server.using(name) as model:
        found = await labels(server, model, images, ontology, body)
        content = [
            image_answer(image, [prediction(each, ontology) for each in own], started)
            for image, own in zip(images, found, strict=True)
        ]
    return answer(one_or_many(body.image, content), {"X-Model-Id": model.card.name})


@router.post("/grounding_dino/infer", openapi_extra=takes(Ground))
async def grounding_dino(request: Request) -> Response:
    """Boxes of phrases. `class_id` is a phrase's place in `text`."""
    started = time.monotonic()
    body = await read_body(request, Ground)
    server: Server = request.app.state.server
    name = server.models.resolve("detection", body.grounding_dino_version_id)
    given = [body.text] if isinstance(body.text, str) else body.text
    server.check_count(len(given), "phrases")
    places: dict[str, int] = {}
    for place, text in enumerate(given):
        places.setdefault(normalise(text), place)
    ontology = ontology_of([given[place] for place in places.values()])
    ids = {given[place].strip(): place for place in places.values()}
    async with server.opened(body.image) as images, server.using(name) as model:
        floor = min(FLOOR, body.box_threshold)
        raw = await detections(server, model, images, ontology, floor)
        across = 0.7 if body.class_agnostic_nms else None
        found = selected(raw, score=body.box_threshold, containment=None, across=across)
        content = [
            image_answer(
                image, [{**prediction(each, ontology), "class_id": ids[each["class"]]} for each in own], started
            )
            for image, own in zip(images, found, strict=True)
        ]
    return answer(one_or_many(body.image, content), {"X-Model-Id": model.card.name})


async def labels(
    server: Server, model: Model, images: Sequence[RequestImage], ontology: Ontology, body: Wanted
) -> list[list[dict[str, Any]]]:
    """The labels of each image, best first."""
    least = body.least()
    raw = await detections(server, model, images, ontology, min(FLOOR, least))
    return selected(
        raw,
        score=least,
        nms=body.iou_threshold,
        containment=None,
        across=body.iou_threshold if body.class_agnostic_nms else None,
        max_per_image=body.max_detections,
    )


def prediction(found: dict[str, Any], ontology: Ontology) -> dict[str, Any]:
    """A detection as Inference writes it: the box by its centre."""
    width, height = found["x2"] - found["x1"], found["y2"] - found["y1"]
    return {
        "x": found["x1"] + width / 2,
        "y": found["y1"] + height / 2,
        "width": width,
        "height": height,
        "confidence": found["score"],
        "class": found["class"],
        "class_id": ontology.classes.index(found["class"]),
        "detection_id": str(uuid.uuid4()),
    }


def image_answer(image: RequestImage, predictions: list[dict[str, Any]], started: float) -> dict[str, Any]:
    """The answer for one image."""
    width, height = image.size
    return {
        "inference_id": str(uuid.uuid4()),
        "frame_id": None,
        "time": time.monotonic() - started,
        "image": {"width": width, "height": height},
        "predictions": predictions,
    }


def one_or_many(given: ImageIn | list[ImageIn], content: list[Any]) -> Any:
    """A list if images came as a list."""
    return content if isinstance(given, list) else content[0]

"""Inference's routes of words and gaze, and of vision-language models."""

from __future__ import annotations

import math
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from labelmill.pipelines.serve.bodies import RequestBody, answer, read_body, takes
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import Images, RequestImage
from labelmill.pipelines.serve.questions import answers, detections, gazes, ontology_of, selected, words
from labelmill.pipelines.serve.routes.detection import FLOOR, one_or_many
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["words, gaze, answers"])

FACES = {"face": ("face", "human face")}
"""What a detector is asked for where the server's ontology has no class "face"."""


class Ocr(RequestBody):
    """Images to read."""

    image: Images
    generate_bounding_boxes: bool = False
    doctr_version_id: str | None = None
    pp_ocr_version_id: str | None = None


class GazeBody(RequestBody):
    """Images with faces. Without `do_run_face_detection` each image is a face."""

    image: Images
    gaze_version_id: str | None = None
    do_run_face_detection: bool = True
    face_detection_version_id: str | None = Field(None, description="The card that finds faces.")


class Lmm(RequestBody):
    """Images, and what to ask of each."""

    image: Images
    model_id: str | None = None
    prompt: str | None = Field(None, max_length=20_000)
    max_new_tokens: int | None = Field(None, ge=1, le=4096)


@router.post("/doctr/ocr", openapi_extra=takes(Ocr))
async def doctr(request: Request) -> Response:
    """Words by docTR: all of them as one text, and on request where they are."""
    body = await read_body(request, Ocr)
    return await _ocr(request.app.state.server, body, "text-detection", body.doctr_version_id)


@router.post("/ocr/pp-ocr", openapi_extra=takes(Ocr))
async def pp_ocr(request: Request) -> Response:
    """Words by PP-OCR; as docTR's route."""
    body = await read_body(request, Ocr)
    return await _ocr(request.app.state.server, body, "ocr", body.pp_ocr_version_id)


async def _ocr(server: Server, body: Ocr, task: str, wanted: str | None) -> Response:
    started = time.monotonic()
    name = server.models.resolve(task, wanted)
    async with server.opened(body.image) as images, server.using(name) as model:
        read = await words(server, model, images)
        content = [
            _text(image, own, body.generate_bounding_boxes, started) for image, own in zip(images, read, strict=True)
        ]
    return answer(one_or_many(body.image, content), {"X-Model-Id": name})


def _text(image: RequestImage, read: dict[str, Any], boxes: bool, started: float) -> dict[str, Any]:
    found = read["words"]
    content: dict[str, Any] = {
        "result": " ".join(word["text"] for word in found),
        "time": time.monotonic() - started,
        "parent_id": None,
    }
    if boxes:
        width, height = image.size
        content["image"] = {"width": width, "height": height}
        content["predictions"] = [
            {**_centred(word), "confidence": word["confidence"], "class": word["text"], "class_id": 0} for word in found
        ]
    return content


@router.post("/gaze/gaze_detection", openapi_extra=takes(GazeBody))
async def gaze(request: Request) -> Response:
    """Where each face looks: yaw (above 0 to the left edge of the image) and pitch (above 0 up), in radians."""
    body = await read_body(request, GazeBody)
    server: Server = request.app.state.server
    name = server.models.resolve("gaze", body.gaze_version_id)
    started = time.monotonic()
    async with server.opened(body.image) as images:
        if body.do_run_face_detection:
            faces = await _faces(server, images, body.face_detection_version_id)
        else:
            await server.decoded(images)
            faces = [[_whole(image)] for image in images]
        found_at = time.monotonic()
        async with server.using(name) as model:
            looks = await gazes(server, model, images, faces)
    content = [
        {
            "predictions": [_look(each, own[each["detection"]]) for each in look["gaze"]],
            "time": time.monotonic() - started,
            "time_face_det": found_at - started,
            "time_gaze_det": time.monotonic() - found_at,
        }
        for look, own in zip(looks, faces, strict=True)
    ]
    return answer(content, {"X-Model-Id": name})


async def _faces(server: Server, images: list[RequestImage], wanted: str | None) -> list[list[dict[str, Any]]]:
    known = server.ontology.root if server.ontology is not None else {}
    ontology = ontology_of({"face": known["face"]} if "face" in known else FACES)
    async with server.using(server.models.resolve("detection", wanted)) as model:
        return selected(await detections(server, model, images, ontology, FLOOR))


def _whole(image: RequestImage) -> dict[str, Any]:
    width, height = image.size
    names = ("prompt", "mask", "models", "crowd", "extra")
    return {
        "x1": 0.0,
        "y1": 0.0,
        "x2": float(width),
        "y2": float(height),
        "class": "face",
        "score": 1.0,
        **dict.fromkeys(names),
    }


def _look(look: dict[str, Any], face: dict[str, Any]) -> dict[str, Any]:
    told = {**_centred(look), "confidence": face["score"], "class": "face", "class_id": 0, "landmarks": []}
    return {"face": told, "yaw": math.radians(look["yaw"]), "pitch": math.radians(look["pitch"])}


def _centred(box: dict[str, Any]) -> dict[str, float]:
    width, height = box["x2"] - box["x1"], box["y2"] - box["y1"]
    return {"x": box["x1"] + width / 2, "y": box["y1"] + height / 2, "width": width, "height": height}


@router.post("/infer/lmm", openapi_extra=takes(Lmm))
async def lmm(request: Request) -> Response:
    """An answer, or a caption, of a vision-language model."""
    return await _lmm(request, None)


@router.post("/infer/lmm/{model_id:path}", openapi_extra=takes(Lmm))
async def lmm_of(request: Request, model_id: str) -> Response:
    """The same with the model in the path."""
    return await _lmm(request, model_id)


async def _lmm(request: Request, in_path: str | None) -> Response:
    started = time.monotonic()
    body = await read_body(request, Lmm)
    server: Server = request.app.state.server
    if in_path is not None and body.model_id not in (None, in_path):
        raise ApiError(422, f"model_id must be the same in path and body but is {in_path!r} and {body.model_id!r}")
    name = server.models.resolve("image-text-to-text", in_path or body.model_id)
    prompt = (body.prompt or "").strip() or "Describe the image."
    async with server.opened(body.image) as images, server.using(name) as model:
        texts = await answers(server, model, images, prompt, body.max_new_tokens or 128)
        content = [
            {
                "response": text,
                "image": dict(zip(("width", "height"), image.size, strict=True)),
                "time": time.monotonic() - started,
            }
            for image, text in zip(images, texts, strict=True)
        ]
    return answer(one_or_many(body.image, content), {"X-Model-Id": name})

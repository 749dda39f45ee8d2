"""Inference's routes of CLIP, for every embedding card."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from labelmill.pipelines.serve.bodies import RequestBody, answer, read_body, takes
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import ImageIn, Images, from_text
from labelmill.pipelines.serve.models import Model
from labelmill.pipelines.serve.questions import image_vectors, text_vectors
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["embeddings"])


class _Clip(RequestBody):
    clip_version_id: str | None = Field(None, description="The name of a card; the server's own if not given.")


class EmbedImage(_Clip):
    """Images to embed."""

    image: Images


class EmbedText(_Clip):
    """Texts to embed."""

    text: str | list[str]


class Compare(_Clip):
    """One image or text, and what to compare it with: one, a list, or names for several."""

    subject: ImageIn | str
    subject_type: Literal["image", "text"] = "image"
    prompt: ImageIn | str | list[ImageIn | str] | dict[str, ImageIn | str]
    prompt_type: Literal["image", "text"] = "text"


@router.post("/clip/embed_image", openapi_extra=takes(EmbedImage))
async def embed_image(request: Request) -> Response:
    """Vectors of images, as a run's `embed` writes them: float16 values, L2-normalised."""
    started = time.monotonic()
    body = await read_body(request, EmbedImage)
    server: Server = request.app.state.server
    name = server.models.resolve("embedding", body.clip_version_id)
    async with server.opened(body.image) as images, server.using(name) as model:
        vectors = np.stack(await image_vectors(server, model, images)).astype(np.float32)
    return _answer(started, model, embeddings=vectors)


@router.post("/clip/embed_text", openapi_extra=takes(EmbedText))
async def embed_text(request: Request) -> Response:
    """Vectors of texts, L2-normalised."""
    started = time.monotonic()
    body = await read_body(request, EmbedText)
    server: Server = request.app.state.server
    texts = [body.text] if isinstance(body.text, str) else body.text
    async with server.using(server.models.resolve("embedding", body.clip_version_id)) as model:
        vectors = np.stack(await text_vectors(server, model, texts))
    return _answer(started, model, embeddings=vectors)


@router.post("/clip/compare", openapi_extra=takes(Compare))
async def compare(request: Request) -> Response:
    """The cosine of a subject with each prompt."""
    started = time.monotonic()
    body = await read_body(request, Compare)
    server: Server = request.app.state.server
    names = list(body.prompt) if isinstance(body.prompt, dict) else None
    prompts = list(body.prompt.values()) if isinstance(body.prompt, dict) else body.prompt
    many = prompts if isinstance(prompts, list) else [prompts]
    async with server.using(server.models.resolve("embedding", body.clip_version_id)) as model:
        subject = await _vectors(server, model, [body.subject], body.subject_type)
        against = await _vectors(server, model, many, body.prompt_type)
    cosines = (against @ subject[0]).tolist()
    similarity = cosines if names is None else dict(zip(names, cosines, strict=True))
    return _answer(started, model, similarity=similarity)


async def _vectors(server: Server, model: Model, given: list[Any], kind: str) -> np.ndarray:
    """float32 (n, dimensions), L2-normalised."""
    if kind == "text":
        if not all(isinstance(each, str) for each in given):
            raise ApiError(422, "a subject or prompt of type text must be a text")
        return np.stack(await text_vectors(server, model, given))
    images = [from_text(each) if isinstance(each, str) else each for each in given]
    async with server.opened(images) as opened:
        vectors = np.stack(await image_vectors(server, model, opened)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _answer(started: float, model: Model, **content: Any) -> Response:
    body = {"frame_id": None, "time": time.monotonic() - started, **content}
    return answer(body, {"X-Model-Id": model.card.name})

"""OpenAI's routes, as its client sends them: embeddings of texts and images, and chats about an image."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from labelmill.pipelines.serve.bodies import RequestBody, answer, read_body, takes
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.images import ImageIn, from_text
from labelmill.pipelines.serve.questions import answers, image_vectors, text_vectors
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["OpenAI"])


class ImageUrl(BaseModel):
    """An image as a data URL, or an address where the server allows it."""

    model_config = ConfigDict(extra="ignore")

    url: str


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[Part] | None = None


class Embeddings(RequestBody):
    """Texts, data URLs of images, or `messages` with one of them each. `model`: the name of a card."""

    model: str | None = None
    input: str | list[str] | None = Field(None)
    messages: list[Message] | None = None
    modality: Literal["text", "image"] | None = Field(None, description="What input is; told by itself for data URLs.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class Chat(RequestBody):
    """One question about one image. The likeliest words, whatever the temperature."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=64)
    max_tokens: int | None = Field(None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=4096)
    n: int | None = 1
    stream: bool | None = False
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None


@router.post("/v1/embeddings", openapi_extra=takes(Embeddings))
async def embeddings(request: Request) -> Response:
    """Vectors of texts and images in one space, L2-normalised."""
    body = await read_body(request, Embeddings)
    server: Server = request.app.state.server
    given = _inputs(body)
    name = server.models.resolve("embedding", body.model)
    server.check_count(len(given), "inputs")
    images = [(place, each) for place, each in enumerate(given) if isinstance(each, ImageIn)]
    texts = [(place, each) for place, each in enumerate(given) if isinstance(each, str)]
    found: dict[int, np.ndarray] = {}
    async with server.using(name) as model:
        if texts:
            vectors = await text_vectors(server, model, [text for _, text in texts])
            found.update(zip((place for place, _ in texts), vectors, strict=True))
        if images:
            async with server.opened([image for _, image in images]) as opened:
                vectors = await image_vectors(server, model, opened)
            found.update(zip((place for place, _ in images), vectors, strict=True))
    length = len(found[0])
    if body.dimensions not in (None, length):
        raise ApiError(400, f"dimensions must be {length}, as this model's vectors have, but is {body.dimensions}")
    data = [
        {"object": "embedding", "index": place, "embedding": _encoded(found[place], body.encoding_format)}
        for place in range(len(given))
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return answer({"object": "list", "data": data, "model": name, "usage": usage}, {"X-Model-Id": name})


def _inputs(body: Embeddings) -> list[str | ImageIn]:
    if (body.input is None) == (body.messages is None):
        raise ApiError(422, "there must be input or messages, one of the two")
    if body.messages is not None:
        parts = [part for message in body.messages for part in _parts(message)]
        return [from_text(part.image_url.url) if part.image_url else part.text or "" for part in parts]
    given = [body.input] if isinstance(body.input, str) else body.input or []
    as_image = [body.modality == "image" or each[:11].lower() == "data:image/" for each in given]
    return [from_text(each) if image else each for each, image in zip(given, as_image, strict=True)]


def _encoded(vector: np.ndarray, kind: str) -> Any:
    values = vector.astype("<f4")
    return base64.b64encode(values.tobytes()).decode() if kind == "base64" else values


@router.post("/v1/chat/completions", openapi_extra=takes(Chat))
async def chat(request: Request) -> Response:
    """What a vision-language model answers to one question about one image."""
    body = await read_body(request, Chat)
    server: Server = request.app.state.server
    image, prompt = _question(body)
    name = server.models.resolve("image-text-to-text", body.model)
    longest = body.max_completion_tokens or body.max_tokens or 128
    async with server.opened(image) as images, server.using(name) as model:
        (text,) = await answers(server, model, images, prompt, longest, _schema(body))
    common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
    if body.stream:
        return StreamingResponse(_events(common, text), media_type="text/event-stream", headers={"X-Model-Id": name})
    said = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": said, "finish_reason": "stop", "logprobs": None}
    return answer({**common, "object": "chat.completion", "choices": [choice]}, {"X-Model-Id": name})


async def _events(common: dict[str, Any], text: str) -> AsyncIterator[bytes]:
    """The answer as server-sent events: all of it at once, because it is there at once."""
    for delta, finish in (({"role": "assistant", "content": text}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        yield b"data: " + orjson.dumps({**common, "object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _parts(message: Message) -> list[Part]:
    if message.content is None:
        return []
    return [Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content


def _question(body: Chat) -> tuple[ImageIn, str]:
    """The image and the words of a chat.

    Raises:
        ApiError: 400, it is more than one question about one image.
    """
    if body.n not in (None, 1):
        raise ApiError(400, f"n must be 1, the likeliest answer, but is {body.n}")
    if body.tools:
        raise ApiError(400, "tools are not offered")
    if any(message.role == "assistant" for message in body.messages):
        raise ApiError(400, "a chat must be one question about one image: send no assistant's messages")
    parts = [part for message in body.messages for part in _parts(message)]
    images = [part.image_url.url for part in parts if part.image_url is not None]
    texts = [part.text.strip() for part in parts if part.text and part.text.strip()]
    if len(images) != 1 or not texts:
        raise ApiError(400, f"a chat must have one image_url and a text but has {len(images)} and {len(texts)}")
    return from_text(images[0]), "\n".join(texts)


def _schema(body: Chat) -> dict[str, Any] | None:
    given = body.response_format
    if given is None or given.get("type") == "text":
        return None
    if given.get("type") == "json_object":
        return {"type": "object"}
    inner = given.get("json_schema")
    if given.get("type") != "json_schema" or not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise ApiError(422, "response_format must be text, json_object, or json_schema with a schema")
    schema: dict[str, Any] = inner["schema"]
    return schema

"""Which models are loaded: Inference's registry, and our own list."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from labelmill.pipelines.serve.bodies import RequestBody, answer, check_key, read_body, takes
from labelmill.pipelines.serve.models import Model
from labelmill.pipelines.serve.server import Server

router = APIRouter(tags=["models"])

TASK_TYPES = {
    "detection": "object-detection",
    "segmentation": "instance-segmentation",
    "embedding": "classification",
    "image-text-to-text": "lmm",
    "text-detection": "ocr",
    "ocr": "ocr",
    "gaze": "gaze-detection",
}
"""What Inference calls a card's task; its client chooses a route by it."""


class ModelBody(RequestBody):
    """Which model.

    Attributes:
        model_id: The name of a card.
    """

    model_id: str = Field(min_length=1, max_length=200)


def _registry(server: Server) -> Response:
    models = [_described(model) for model in server.models.loaded()]
    return answer({"models": models, "total_vram_bytes": sum(each["vram_bytes"] for each in models)})


def _described(model: Model) -> dict[str, Any]:
    return {
        "model_id": model.card.name,
        "task_type": TASK_TYPES[model.card.task],
        "batch_size": None,
        "input_height": None,
        "input_width": None,
        "vram_bytes": int(model.card.memory_gb * 1e9),
    }


@router.get("/model/registry")
async def registry(request: Request) -> Response:
    """The models that are loaded."""
    check_key(request)
    return _registry(request.app.state.server)


@router.post("/model/add", openapi_extra=takes(ModelBody))
async def add(request: Request) -> Response:
    """Load a card, if it is not; the answer is the registry."""
    body = await read_body(request, ModelBody)
    server: Server = request.app.state.server
    async with server.using(server.models.card(body.model_id).name):
        return _registry(server)


@router.post("/model/remove", openapi_extra=takes(ModelBody))
async def remove(request: Request) -> Response:
    """Unload a card; the answer is the registry."""
    body = await read_body(request, ModelBody)
    server: Server = request.app.state.server
    await server.blocking(server.models.unload, body.model_id)
    return _registry(server)


@router.post("/model/clear")
async def clear(request: Request) -> Response:
    """Unload every card that is idle; the answer is the registry."""
    check_key(request)
    server: Server = request.app.state.server
    for model in server.models.loaded():
        await server.blocking(server.models.unload, model.card.name)
    return _registry(server)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The cards that are loaded or were named at the start, in the form of OpenAI's list."""
    check_key(request)
    server: Server = request.app.state.server
    loaded = {model.card.name: model.card for model in server.models.loaded()}
    listed = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "labelmill",
            "task": card.task,
            "licence": card.licence,
            "digest": card.reference(),
            "loaded": name in loaded,
        }
        for name, card in {**server.models.named, **loaded}.items()
    ]
    return answer({"object": "list", "data": listed})

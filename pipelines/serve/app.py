"""The application: all routes around one `Server`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from labelmill.operators.ontology import Ontology
from labelmill.pipelines.config.pipeline import Pipeline
from labelmill.pipelines.serve.bodies import SCHEMAS, answer
from labelmill.pipelines.serve.chain import Chain
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.middleware import Limits
from labelmill.pipelines.serve.routes import (
    basics,
    clip,
    detection,
    faces_words,
    labels,
    not_here,
    openai,
    own,
    registry,
    sam,
)
from labelmill.pipelines.serve.server import Server
from labelmill.pipelines.serve.settings import Settings
from labelmill.pipelines.serve.work import told

log = logging.getLogger("labelmill.serve")

DESCRIPTION = """\
The operators of labelmill over HTTP, batched across requests: routes of Roboflow Inference, of OpenAI, and its own.
Every error is JSON with a `message`. Coordinates are pixels of the upright image."""


def create_app(settings: Settings, ontology: Ontology | None = None, pipeline: Pipeline | None = None) -> ASGIApp:
    """The application, not yet started: its models are loaded when it starts.

    Args:
        settings: How it serves.
        ontology: The classes where a request names none; the pipeline's if not given.
        pipeline: Its steps answer `/v1/run`.

    Raises:
        UserError: A card is not there, or its weights are not.
    """
    if ontology is None and pipeline is not None:
        ontology = pipeline.settings.ontology
    server = Server(settings, ontology)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await server.blocking(server.models.start)
        if pipeline is not None:
            server.pipeline = await server.blocking(Chain, pipeline, server)
        server.ready = True
        yield
        server.ready = False
        await server.blocking(server.models.close)
        if server.pipeline is not None:
            await server.blocking(server.pipeline.close)
        server.close()

    app = FastAPI(title="labelmill", description=DESCRIPTION, lifespan=life)
    app.state.server = server
    for room in (basics, registry, clip, detection, labels, sam, faces_words, openai, own, not_here):
        # Not included one router in another: each level looks for a request's route again.
        app.router.routes.extend(room.router.routes)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _not_there)
    app.add_exception_handler(Exception, _failed)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Limits(app, settings, server.bytes, server.metrics)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    response = answer({**error.body(), "request_id": request.state.request_id}, error.headers())
    response.status_code = error.status
    return response


async def _failed(request: Request, error: Exception) -> Response:
    """Nobody's mistake but ours. It goes on to the outermost layer, which logs it."""
    return await _refused(request, told(error))


async def _not_there(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: an unknown path or method."""
    assert isinstance(error, HTTPException)
    words = {404: "there is no such route; /docs lists them", 405: "not by this method; /docs says which"}
    response = await _refused(request, ApiError(error.status_code, words.get(error.status_code, str(error.detail))))
    response.headers.update(error.headers or {})
    return response


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The routes' description, with the bodies that they read by themselves."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
        found.setdefault("components", {}).setdefault("schemas", {}).update(SCHEMAS)
        app.openapi_schema = found
    return app.openapi_schema

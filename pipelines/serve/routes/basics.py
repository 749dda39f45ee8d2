"""What people expect of a server: health, readiness, figures, who it is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request
from starlette.responses import Response

from labelmill.pipelines.serve.bodies import answer, check_key
from labelmill.pipelines.serve.metrics import CONTENT_TYPE

router = APIRouter(tags=["server"])


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Whether this process can answer at all. Not when a GPU is lost: it must then be started again."""
    server = request.app.state.server
    lost = server.models.lost() or (server.pipeline.lost() if server.pipeline is not None else None)
    if lost is not None:
        return _status(
            503, {"status": "unhealthy", "message": f"the accelerator is lost, start the server again: {lost}"}
        )
    return answer({"status": "healthy"})


@router.get("/readiness")
async def readiness(request: Request) -> Response:
    """Whether the models named at the start are loaded, and no stop has been asked for."""
    if not request.app.state.server.ready:
        return _status(503, {"status": "not ready", "message": "the server is starting or stopping"})
    return answer({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    check_key(request)
    return Response(request.app.state.server.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/info")
async def info(request: Request) -> Response:
    """Name, version and an id of this process, as Inference's client wants them."""
    check_key(request)
    try:
        number = version("labelmill")
    except PackageNotFoundError:
        number = "0"
    return answer({"name": "labelmill", "version": number, "uuid": request.app.state.server.uuid})


def _status(status: int, content: dict[str, str]) -> Response:
    response = answer(content, {"Retry-After": "1"})
    response.status_code = status
    return response

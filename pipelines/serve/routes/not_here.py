"""Routes of Inference that this server has no model for: what to ask in their place."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from labelmill.pipelines.serve.bodies import RequestBody, read_body, takes
from labelmill.pipelines.serve.errors import ApiError

router = APIRouter(tags=["not offered"])

INSTEAD = {
    "/owlv2/infer": "boxes from example images are not offered; /grounding_dino/infer asks an OWLv2 card with words, "
    "with its name as grounding_dino_version_id",
    "/yolo_world/infer": "YOLO-World is not offered; /grounding_dino/infer takes words",
    "/ocr/trocr": "TrOCR is not offered; /doctr/ocr and /ocr/pp-ocr read text",
    "/easy_ocr/ocr": "EasyOCR is not offered; /doctr/ocr and /ocr/pp-ocr read text",
    "/infer/keypoints_detection": "keypoints are not offered",
    "/infer/depth-estimation": "depth is not offered",
    "/sam3/concept_segment": "masks from words come from /infer/instance_segmentation with class_filter",
    "/sam3/visual_segment": "/sam2/segment_image takes the same prompts, with a SAM 3 card as sam2_version_id too",
    "/sam3/embed_image": "/sam2/embed_image does the same, with a SAM 3 card as sam2_version_id too",
    "/workflows/run": "workflows are not offered; /v1/run does a pipeline's steps",
}


async def _refuse(request: Request) -> Response:
    """Not offered; the message says what to ask in its place."""
    await read_body(request, RequestBody)
    raise ApiError(501, INSTEAD[request.scope["route"].path])


for _path in INSTEAD:
    router.add_api_route(_path, _refuse, methods=["POST"], openapi_extra=takes(RequestBody))

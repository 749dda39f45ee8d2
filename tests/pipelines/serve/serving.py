"""Servers for tests, and what runs say of the same images."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import Operator
from labelmill.operators.ontology import Ontology
from labelmill.pipelines.serve.app import create_app
from labelmill.pipelines.serve.settings import Settings

CARDS = (
    "clip-miniature",
    "grounding-dino-miniature",
    "sam-miniature",
    "doctr-detection-miniature",
    "doctr-recognition-miniature",
    "l2cs-miniature",
    "vlm-miniature",
)


def client(ontology: dict[str, Any] | None = None, **settings: Any) -> TestClient:
    """A server that starts when the client is entered."""
    classes = Ontology.model_validate(ontology) if ontology is not None else None
    return TestClient(create_app(Settings(**settings), classes), raise_server_exceptions=False)


def sent(data: bytes) -> dict[str, str]:
    """An image as Inference's client sends it."""
    return {"type": "base64", "value": base64.b64encode(data).decode()}


def as_in_a_run(operator: Operator, files: list[bytes], **columns: pa.Array) -> list[dict[str, Any]]:
    """What a run writes of some files."""
    operator.load()
    ids = pa.array(range(len(files)), pa.int64())
    rows = pa.table({"image_id": ids, "key": [str(place) for place in range(len(files))], **columns})
    images = ShardImages([str(place) for place in range(len(files))], lambda uri: files[int(uri)])
    table, _ = apply(Job(Worker(operator), rows, np.ones(len(files), dtype=bool)), images)
    return table.to_pylist()

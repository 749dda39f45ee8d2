"""How right a gaze model is on the drawn world: the mean angle between the true gaze and the one that `gaze` gives."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from labelmill.operators.gaze import Gaze
from labelmill.operators.images.decoded import decode
from labelmill.operators.measures.gaze import angular_error
from labelmill.operators.miniatures.captions import FACE
from labelmill.operators.miniatures.evaluation import SEED
from labelmill.operators.miniatures.training.scenes import SIDE
from labelmill.operators.miniatures.world import Scene, World
from labelmill.operators.models.card import ModelCard

BOX_ERROR = 0.05
"""How far the sides of inexact boxes are off at most, as a share of the box's width or height."""


def evaluate(card: ModelCard, scenes: int = 1000) -> dict[str, float]:
    """Ask where the faces look, given their true boxes; and again, given boxes as a good detector would draw them.

    Args:
        card: The gaze model.
        scenes: How many scenes of 320 × 320 pixels, of seen and held-out pairs; about every second one has a face.

    Returns:
        In degrees: ``angular_error``, the mean over all faces of the angle between the true and the found direction in
        space, as Gaze360 and L2CS-Net report it; ``yaw_error`` and ``pitch_error``, the mean absolute errors of the two
        angles; ``angular_error_inexact``, the first again with every side of every box off by up to 5 % of the box, as
        a detector may draw it (an IoU of about 0.9). ``faces``: how many there were.
    """
    world = World(SEED, SIDE, words="held_out")
    operator = Gaze(Gaze.Params(model=card))
    operator.load()
    truth: list[tuple[float, float]] = []
    exact: list[tuple[float, float]] = []
    inexact: list[tuple[float, float]] = []
    for index in range(scenes):
        scene = world.scene(index)
        if not scene.faces:
            continue
        boxes = np.array([face.box for face in scene.faces])
        size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        moved = boxes + np.random.default_rng([SEED, index]).uniform(-BOX_ERROR, BOX_ERROR, boxes.shape) * size
        truth += [(face.yaw, face.pitch) for face in scene.faces]
        exact += _look(operator, scene, boxes)
        inexact += _look(operator, scene, np.clip(moved, 0, SIDE))
    off = np.abs(np.array(exact) - np.array(truth))
    return {
        "angular_error": float(angular_error(exact, truth).mean()),
        "yaw_error": float(off[:, 0].mean()),
        "pitch_error": float(off[:, 1].mean()),
        "angular_error_inexact": float(angular_error(inexact, truth).mean()),
        "faces": float(len(truth)),
    }


def _look(operator: Gaze, scene: Scene, boxes: np.ndarray) -> list[tuple[float, float]]:
    """Yaw and pitch of each face, as `gaze` finds them."""
    buffer = io.BytesIO()
    Image.fromarray(scene.pixels).save(buffer, "PNG", compress_level=0)
    sides: list[dict[str, Any]] = [dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in boxes.tolist()]
    row = {"detections": [{**box, "class": FACE} for box in sides]}
    (found,) = operator.infer([operator.prepare(decode(buffer.getvalue()), row)])
    if isinstance(found, Exception):
        raise found
    return [(gaze["yaw"], gaze["pitch"]) for gaze in found["gaze"]]

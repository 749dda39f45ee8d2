"""Moves a scene, picture and truth together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from labelmill.operators.miniatures.canvas import Mask, Pixels, Points, mask_box
from labelmill.operators.miniatures.exact import Matrix, Warp
from labelmill.operators.miniatures.faces import direction
from labelmill.operators.miniatures.world import Box, Face, Scene, SceneObject, Sign, Word, quad_box

LEAST_LEFT = 0.05
"""What keeps less than this share of its visible area is not counted as there any more."""

_Masked = TypeVar("_Masked", SceneObject, Face, Sign)


def scaling(x: float, y: float) -> Matrix:
    """Stretch by `x` across and by `y` down."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0]])


def shifting(x: float, y: float) -> Matrix:
    """Move by (x, y); by negative whole numbers this cuts off the left and the top."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def mirroring(width: int) -> Matrix:
    """Swap left and right."""
    return np.array([[-1.0, 0.0, float(width)], [0.0, 1.0, 0.0]])


def turning(degrees: float, width: int, height: int) -> Matrix:
    """Turn clockwise about the middle."""
    angle = np.radians(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([width / 2, height / 2])
    return np.column_stack([linear, middle - linear @ middle])


def move(scene: Scene, matrix: Matrix, width: int, height: int) -> Scene:
    """The scene as seen through `matrix` in an image of width × height.

    Edges are continued where the old image ends. Masks, boxes, quads, shares hidden and gaze move along. Things that
    have left the picture (all but `LEAST_LEFT` of them) are dropped, and so are words that are less than half inside.
    """
    view = _view(matrix, (scene.pixels.shape[1], scene.pixels.shape[0]), (width, height))
    grown = abs(float(np.linalg.det(matrix[:, :2])))
    return Scene(
        view(scene.pixels, True),
        tuple(
            replace(thing, mask=mask, box=box, hidden=min(1.0, max(0.0, 1 - (1 - thing.hidden) * share)))
            for thing, mask, box, share in _keep(scene.objects, view, grown)
        ),
        tuple(word for old in scene.words if (word := _move_word(old, matrix, width, height)) is not None),
        tuple(Face(box, mask, *_turned_gaze(face, matrix)) for face, mask, box, _ in _keep(scene.faces, view, grown)),
        tuple(Sign(box, mask) for _, mask, box, _ in _keep(scene.signs, view, grown)),
    )


def inside(quad: Points, width: int, height: int) -> float:
    """Share of a convex polygon's area that lies in the image, 0…1."""
    import cv2

    image = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    corners = quad.astype(np.float32)
    area = cv2.contourArea(corners)
    return float(cv2.intersectConvexConvex(corners, image)[0] / area) if area else 0.0


def _view(matrix: Matrix, old: tuple[int, int], new: tuple[int, int]) -> Callable[[Pixels, bool], Pixels]:
    """What warps an image (and whether its edge is continued), without interpolation where none is needed."""
    import cv2

    (a, b, c), (d, e, f) = matrix
    if b == d == 0 and (abs(a), e) == (1, 1) and c % 1 == f % 1 == 0:
        x, y = int(c), int(f)
        left = x - old[0] if a < 0 else x
        within = left <= 0 and y <= 0 and left + old[0] >= new[0] and y + old[1] >= new[1]
        if within:
            window = slice(-y, new[1] - y), slice(-left, new[0] - left)
            return lambda image, _: np.ascontiguousarray((image[:, ::-1] if a < 0 else image)[window])
    if b == c == d == f == 0 and min(a, e) > 0 and max(a, e) < 1:
        return lambda image, _: np.asarray(cv2.resize(image, new, interpolation=cv2.INTER_AREA))
    return Warp(matrix, old, new)


def _keep(
    things: tuple[_Masked, ...], view: Callable[[Pixels, bool], Pixels], grown: float
) -> list[tuple[_Masked, Mask, Box, float]]:
    """What is still there, with its new mask and box and the share of its visible area that is left."""
    kept: list[tuple[_Masked, Mask, Box, float]] = []
    for thing in things:
        solid = thing.mask.astype(np.uint8) * np.uint8(255)
        mask: Mask = view(solid, False) >= 128
        box = mask_box(mask)
        share = np.count_nonzero(mask) / (np.count_nonzero(thing.mask) * grown)
        if box is None or share < LEAST_LEFT:
            continue
        kept.append((thing, mask, box, float(share)))
    return kept


def _move_word(word: Word, matrix: Matrix, width: int, height: int) -> Word | None:
    quad = word.quad @ matrix[:, :2].T + matrix[:, 2]
    if inside(quad, width, height) < 0.5:
        return None
    mirrored = word.mirrored != (np.linalg.det(matrix[:, :2]) < 0)
    return Word(word.text, quad, quad_box(quad, width, height), bool(mirrored))


def _turned_gaze(face: Face, matrix: Matrix) -> tuple[float, float]:
    """A picture that is turned or mirrored shows another gaze; one that is scaled shows the same."""
    linear = matrix[:, :2] / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    x, y, z = direction(face.yaw, face.pitch)
    x, y = linear @ np.array([x, y])
    yaw, pitch = np.degrees(np.arctan2(-x, -z)), np.degrees(np.arcsin(np.clip(-y, -1, 1)))
    return float(yaw), float(pitch)

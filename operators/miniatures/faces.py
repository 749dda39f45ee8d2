"""Cartoon faces that look somewhere: the head turns, and the eyes turn in it.

Angles follow L2CS-Net and Gaze360: with x right, y down and z away from the camera, the direction of gaze is
``(-sin(yaw)·cos(pitch), -sin(pitch), -cos(yaw)·cos(pitch))``. So yaw > 0 looks to the left edge of the image, pitch > 0
looks up, and (0, 0) looks into the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labelmill.operators.miniatures.canvas import RGB, Canvas, Layer, Mask, Points, mix, palette, supersampling
from labelmill.operators.miniatures.shapes import ellipse

SKIN, SHADE, WHITE, IRIS, PUPIL, HAIR, LINE, LIPS, FRAME, BLUSH = range(1, 11)

_SKINS: tuple[RGB, ...] = (
    (0.98, 0.85, 0.74),
    (0.94, 0.76, 0.62),
    (0.87, 0.67, 0.5),
    (0.76, 0.55, 0.38),
    (0.6, 0.4, 0.27),
    (0.45, 0.29, 0.2),
)
_HAIRS: tuple[RGB, ...] = (
    (0.1, 0.08, 0.08),
    (0.3, 0.18, 0.1),
    (0.55, 0.33, 0.14),
    (0.88, 0.72, 0.38),
    (0.72, 0.28, 0.12),
    (0.75, 0.75, 0.76),
)
_IRISES: tuple[RGB, ...] = ((0.25, 0.14, 0.07), (0.15, 0.32, 0.6), (0.15, 0.42, 0.25), (0.3, 0.33, 0.36))

# Lengths in half widths of the head.
_HALF_HEIGHT, _DEPTH = 1.22, 0.95
_EYE_X, _EYE_Y, _EYE_RX, _EYE_RY = 0.4, -0.08, 0.27, 0.21
_EYEBALL = 0.44  # how far the iris moves for a gaze at right angles to the head
HEAD_YAW, HEAD_PITCH, EYE_YAW, EYE_PITCH = 30.0, 18.0, 22.0, 15.0
"""Largest turns, in degrees: of the head, and of the eyes in the head. Gaze is their sum."""


@dataclass(frozen=True, eq=False)
class Looking:
    """A drawn face and where it looks, in degrees."""

    layer: Layer
    yaw: float
    pitch: float


def direction(yaw: float, pitch: float) -> Points:
    """The direction of gaze, float (3,): x right, y down, z away from the camera. Angles in degrees."""
    yaw, pitch = np.radians(yaw), np.radians(pitch)
    return np.array([-np.sin(yaw) * np.cos(pitch), -np.sin(pitch), -np.cos(yaw) * np.cos(pitch)])


class _Head:
    """Places points of a turned head on the layer. Head coordinates: x right, y down, z out of the face."""

    def __init__(self, yaw: float, pitch: float, roll: float, centre: tuple[float, float], unit: float) -> None:
        yaw, pitch, roll = np.radians(yaw), np.radians(pitch), np.radians(roll)
        forward = np.array([-np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        right = np.array([np.cos(yaw), 0.0, np.sin(yaw)])
        down = np.cross(forward, right)
        right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
        self.axes = np.stack([right, down, forward])
        self.forward = forward
        self.roll, self.centre, self.unit = float(np.degrees(roll)), np.asarray(centre), unit

    def place(self, points: Points) -> Points:
        """Pixels, float (n, 2), of points (n, 3) in head coordinates, seen from far away."""
        return np.asarray((points @ self.axes)[:, :2] * self.unit + self.centre)

    def surface(self, points: Points, lift: float = 0.0) -> Points:
        """Points (n, 2) of the face's front as (n, 3), `lift` above its surface."""
        inside = 1 - points[:, 0] ** 2 - (points[:, 1] / _HALF_HEIGHT) ** 2
        return np.column_stack([points, _DEPTH * np.sqrt(np.clip(inside, 0.02, None)) + lift])

    def on_face(self, points: Points, lift: float = 0.0) -> Points:
        """Pixels of points (n, 2) on the front of the face."""
        return self.place(self.surface(points, lift))

    def outline(self, grow: float = 0.0, start: float = 0.0, end: float = 360.0) -> Points:
        """Pixels of the head's silhouette, or of an arc of it."""
        return self.rolled(ellipse(0, 0, 1 + grow, _HALF_HEIGHT + grow, start, end, n=40))

    def rolled(self, points: Points) -> Points:
        """Pixels of points (n, 2), in half widths, of the silhouette, which only rolls."""
        turn = np.radians(self.roll)
        cos, sin = np.cos(turn), np.sin(turn)
        return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]) * self.unit + self.centre)


def draw_head(
    size: float,
    rng: np.random.Generator,
    yaw: float | None = None,
    pitch: float | None = None,
) -> Looking:
    """Draw one face.

    Args:
        size: Height of the head in pixels, without what hair adds.
        rng: Decides everything that is left open: how much of the gaze is the head's turn, skin, hair, glasses, mouth.
        yaw: Horizontal gaze in degrees, −52…52; drawn by `rng` if None.
        pitch: Vertical gaze in degrees, −33…33; drawn by `rng` if None.

    Raises:
        ValueError: An angle is outside its range.
    """
    yaw, head_yaw = _split(yaw, HEAD_YAW, EYE_YAW, rng, "yaw")
    pitch, head_pitch = _split(pitch, HEAD_PITCH, EYE_PITCH, rng, "pitch")
    unit = size / 2 / _HALF_HEIGHT
    side = int(np.ceil(size + unit * 0.9))
    width = int(np.ceil(unit * 2.9))
    head = _Head(head_yaw, head_pitch, rng.uniform(-12, 12), (width / 2, side / 2), unit)
    canvas = Canvas(width, side, supersampling(size))
    style = ("bald", "short", "long", "curly", "bun")[int(rng.integers(5))]
    _behind(canvas, head, style)
    canvas.fill(head.outline(), SKIN)
    _features(canvas, head, direction(yaw, pitch)[:2], rng)
    _hair(canvas, head, style, rng)
    canvas.rim(max(0.7, unit * 0.035), LINE)
    skin = mix(_SKINS[int(rng.integers(len(_SKINS)))], (1.0, 1.0, 1.0), rng.uniform(0, 0.08))
    paints = palette(
        {
            SKIN: skin,
            SHADE: mix(skin, (0.35, 0.1, 0.05), 0.28),
            WHITE: (0.97, 0.97, 0.96),
            IRIS: _IRISES[int(rng.integers(len(_IRISES)))],
            PUPIL: (0.03, 0.03, 0.04),
            HAIR: _HAIRS[int(rng.integers(len(_HAIRS)))],
            LINE: (0.16, 0.1, 0.08),
            LIPS: mix(skin, (0.7, 0.12, 0.15), 0.6),
            FRAME: ((0.08, 0.08, 0.1), (0.55, 0.1, 0.1), (0.2, 0.25, 0.5))[int(rng.integers(3))],
            BLUSH: mix(skin, (0.9, 0.35, 0.35), 0.3),
        }
    )
    return Looking(canvas.layer(paints), float(yaw), float(pitch))


def _split(gaze: float | None, head: float, eye: float, rng: np.random.Generator, name: str) -> tuple[float, float]:
    """The gaze angle, and the part of it that the head turns."""
    if gaze is None:
        turned = rng.uniform(-head, head)
        return turned + rng.uniform(-eye, eye), turned
    if not abs(gaze) <= head + eye:
        raise ValueError(f"{name} must be between {-head - eye:g} and {head + eye:g} degrees but is {gaze!r}")
    return gaze, rng.uniform(max(-head, gaze - eye), min(head, gaze + eye))


def _behind(canvas: Canvas, head: _Head, style: str) -> None:
    """Hair and ears that the head hides in part."""
    if style == "long":
        ends = head.rolled(np.array([(1.12, 0.95), (-1.12, 0.95)]))
        canvas.fill(np.concatenate([head.outline(0.2, 165, 375), ends]), HAIR)
    if style == "curly":
        for degrees in range(165, 376, 30):
            x, y = head.outline(0.02, degrees, degrees + 1)[0]
            canvas.fill(ellipse(x, y, head.unit * 0.34, head.unit * 0.34), HAIR)
    if style == "bun":
        x, y = head.outline(0.12, 270, 271)[0]
        canvas.fill(ellipse(x, y, head.unit * 0.36, head.unit * 0.3), HAIR)
    for x_side in (-1.0, 1.0):
        x, y = head.place(np.array([[x_side * 1.02, 0.02, -0.1]]))[0]
        canvas.fill(ellipse(x, y, head.unit * 0.15, head.unit * 0.24, turn=head.roll), SKIN)


def _features(canvas: Canvas, head: _Head, gaze: Points, rng: np.random.Generator) -> None:
    unit = head.unit
    if rng.random() < 0.4:
        for x in (-0.58, 0.58):
            canvas.fill(head.on_face(ellipse(x, 0.33, 0.17, 0.11)), BLUSH)
    brow, tilt = rng.uniform(-0.46, -0.38), rng.uniform(-0.06, 0.06)
    glasses = rng.random() < 0.25
    for side in (-1.0, 1.0):
        eye = ellipse(side * _EYE_X, _EYE_Y, _EYE_RX, _EYE_RY)
        canvas.fill(head.on_face(eye), WHITE)
        middle = head.on_face(np.array([[side * _EYE_X, _EYE_Y]]))[0] + (gaze - head.forward[:2]) * _EYEBALL * unit
        for radius, index in ((0.135, IRIS), (0.07, PUPIL)):
            _inside(canvas, ellipse(middle[0], middle[1], radius * unit, radius * unit), index)
        canvas.stroke(head.on_face(eye), unit * 0.03, LINE, closed=True)
        if glasses:
            ring = ellipse(side * _EYE_X, _EYE_Y, 0.35, 0.32)
            canvas.stroke(head.on_face(ring, 0.08), unit * 0.055, FRAME, closed=True)
        arch = np.array([(side * 0.14, brow + tilt), (side * 0.4, brow - 0.07), (side * 0.64, brow - tilt)])
        canvas.stroke(head.on_face(arch), unit * 0.075, HAIR)
    if glasses:
        canvas.stroke(head.on_face(np.array([(-0.06, _EYE_Y), (0.06, _EYE_Y)]), 0.08), unit * 0.055, FRAME)
    _nose_and_mouth(canvas, head, rng)


def _nose_and_mouth(canvas: Canvas, head: _Head, rng: np.random.Generator) -> None:
    unit = head.unit
    base = head.surface(np.array([(0.0, 0.02), (-0.13, 0.34), (0.13, 0.34)]))
    tip = np.array([(0.0, 0.28, _DEPTH + 0.32)])
    nose = head.place(np.concatenate([base, tip]))
    canvas.fill(nose[[0, 1, 3]], SHADE)
    canvas.fill(nose[[0, 3, 2]], SHADE)
    canvas.fill(ellipse(nose[3, 0], nose[3, 1], unit * 0.11, unit * 0.09), SHADE)
    wide, bend = rng.uniform(0.26, 0.42), rng.uniform(-0.06, 0.16)
    x = np.linspace(-wide, wide, 9)
    upper = np.column_stack([x, 0.68 + bend * (1 - (x / wide) ** 2)])
    if rng.random() < 0.3:
        lower = np.column_stack([x[::-1], 0.68 + (bend + 0.2) * (1 - (x / wide) ** 2)])
        canvas.fill(head.on_face(np.concatenate([upper, lower])), LIPS)
    else:
        canvas.stroke(head.on_face(upper), unit * 0.07, LIPS)


def _inside(canvas: Canvas, points: Points, index: int) -> None:
    """Fill a polygon where the white of an eye (or its iris) is; the lids hide the rest."""
    open_eye: Mask = (canvas.index == WHITE) | (canvas.index == IRIS)
    whole = Canvas(canvas.width, canvas.height, canvas.supersample)
    whole.fill(points, 1)
    canvas.index[open_eye & (whole.index == 1)] = index


def _hair(canvas: Canvas, head: _Head, style: str, rng: np.random.Generator) -> None:
    """Hair in front of the head, from the hairline to the crown."""
    if style == "bald":
        return
    line = rng.uniform(-0.72, -0.6)
    part = rng.uniform(-0.5, 0.5)
    x = np.linspace(-0.97, 0.97, 15)
    drop = 0.42 * np.abs(x - part * 0.3) ** 2
    hairline = head.on_face(np.column_stack([x, np.clip(line + drop, -1.2, -0.3)]))
    first, last = (np.arctan2(*(p - head.centre)[::-1]) for p in (hairline[-1], hairline[0]))
    start, end = np.degrees(first) - head.roll, np.degrees(last) - head.roll
    crown = head.outline(0.07, start % 360, end % 360 if end % 360 < start % 360 else end % 360 - 360)
    canvas.fill(np.concatenate([hairline, crown]), HAIR)

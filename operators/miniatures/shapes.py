"""What the kinds of objects are drawn from: parts on a 100 × 100 sheet, x right, y down, each with a role.

A role says which paint a part gets; `operators.miniatures.objects` mixes the paints from the object's colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from labelmill.operators.miniatures.canvas import Points

# Roles. MAIN carries the object's colour and its pattern, ALT its second shade; the others keep to their own colours.
EMPTY, MAIN, ALT, RIM, INK, GLASS, WOOD, LEAF, CREAM, BEAK, CORE = range(11)

Corners = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Part:
    """A filled polygon, or a line where `width` > 0."""

    role: int
    points: Points
    width: float = 0.0
    closed: bool = False


@dataclass
class Sheet:
    """Collects the parts of one object, back to front."""

    rng: np.random.Generator
    parts: list[Part] = field(default_factory=list)

    def fill(self, role: int, points: Corners | Points) -> None:
        """A filled polygon."""
        self.parts.append(Part(role, np.asarray(points, np.float64)))

    def line(self, role: int, points: Corners | Points, width: float, closed: bool = False) -> None:
        """A line with round joints."""
        self.parts.append(Part(role, np.asarray(points, np.float64), width, closed))

    def box(self, role: int, x1: float, y1: float, x2: float, y2: float, radius: float = 0.0) -> None:
        """A filled rectangle, its corners rounded by `radius`."""
        self.fill(role, rounded(x1, y1, x2, y2, radius))

    def disc(self, role: int, x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0) -> None:
        """A filled ellipse, turned clockwise by `turn` degrees."""
        self.fill(role, ellipse(x, y, rx, rx if ry is None else ry, turn=turn))

    def mirrored(self, role: int, points: Corners, x: float = 50.0) -> None:
        """A filled polygon and its mirror image on the other side of the vertical line at `x`."""
        self.fill(role, points)
        self.fill(role, [(2 * x - px, py) for px, py in points])

    def vary(self, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float = 0.5) -> bool:
        """True with that probability."""
        return bool(self.rng.random() < probability)


Drawing = Callable[[Sheet], None]


@lru_cache(maxsize=32)
def _circle(n: int) -> Points:
    angles = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(angles), np.sin(angles)])


def ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0, turn: float = 0.0, n: int = 28
) -> Points:
    """Points of an ellipse or of an arc of it; degrees clockwise from the right."""
    if (start, end) == (0.0, 360.0):
        circle = _circle(n)
    else:
        angles = np.radians(start + (end - start) * np.arange(n) / (n if abs(end - start) >= 360.0 else n - 1))
        circle = np.stack([np.cos(angles), np.sin(angles)])
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = np.empty((n, 2))
    points[:, 0] = circle[0] * (rx * cos) - circle[1] * (ry * sin) + x
    points[:, 1] = circle[0] * (rx * sin) + circle[1] * (ry * cos) + y
    return points


def rounded(x1: float, y1: float, x2: float, y2: float, radius: float = 0.0) -> Points:
    """A rectangle with rounded corners."""
    if radius <= 0:
        return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64)
    left, right, top, bottom = x1 + radius, x2 - radius, y1 + radius, y2 - radius
    corners = ((right, bottom, 0), (left, bottom, 90), (left, top, 180), (right, top, 270))
    return np.concatenate([ellipse(x, y, radius, radius, turn, turn + 90, n=6) for x, y, turn in corners])


def smooth(points: Corners, steps: int = 5) -> Points:
    """A closed Catmull-Rom curve through the points."""
    p = np.asarray(points, np.float64)
    before, after, beyond = np.roll(p, 1, axis=0), np.roll(p, -1, axis=0), np.roll(p, -2, axis=0)
    t = (np.arange(steps) / steps)[None, :, None]
    p, before, after, beyond = (values[:, None, :] for values in (p, before, after, beyond))
    curve = 2 * p + (after - before) * t
    curve = curve + (2 * before - 5 * p + 4 * after - beyond) * t**2 + (3 * p - before - 3 * after + beyond) * t**3
    return np.asarray(curve.reshape(-1, 2) / 2)


def starred(x: float, y: float, outer: float, inner: float, points: int) -> Points:
    """A star that stands on two of its points."""
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)

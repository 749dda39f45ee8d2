"""Gaze against truth: the angle between two directions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def angular_error(found: npt.ArrayLike, truth: npt.ArrayLike) -> np.ndarray:
    """Angle between gaze directions, as Gaze360 (Kellnhofer et al. 2019) and L2CS-Net report it.

    Args:
        found: (n, 2): yaw and pitch in degrees.
        truth: The same.

    Returns:
        float64 (n,): degrees, 0…180.

    Raises:
        ValueError: There are not as many of one as of the other.
    """
    one, other = _direction(found), _direction(truth)
    if len(one) != len(other):
        raise ValueError(f"found and truth must be as many but are {len(one)} and {len(other)}")
    return np.asarray(np.degrees(np.arccos(np.clip((one * other).sum(axis=-1), -1, 1))))


def _direction(gaze: npt.ArrayLike) -> np.ndarray:
    """Unit vectors (n, 3) of yaw and pitch."""
    yaw, pitch = np.radians(np.asarray(gaze, np.float64).reshape(-1, 2)).T
    return np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], axis=-1)

"""Whole-number pixel arithmetic agrees with floating point to within rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.operators.miniatures.exact import Warp, blend, stretch, tone
from labelmill.operators.miniatures.transforms import scaling, shifting, turning

IMAGE = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
OTHER = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@given(st.floats(0, 3), st.floats(-300, 300))
def test_tone(gain: float, lift: float) -> None:
    assert np.abs(tone(IMAGE, gain, lift) - np.clip(IMAGE * gain + lift, 0, 255)).max() <= 0.5 + 1e-9


@given(st.floats(-1, 2))
def test_blend(share: float) -> None:
    expected = np.clip(IMAGE * (1 - share) + OTHER * share, 0, 255)
    assert np.abs(blend(IMAGE, OTHER, share) - expected).max() <= 1.1


def test_blend_ends_are_exact() -> None:
    assert (blend(IMAGE, OTHER, 0) == IMAGE).all()
    assert (blend(IMAGE, OTHER, 1) == OTHER).all()


@pytest.mark.parametrize("continued", [True, False])
@pytest.mark.parametrize(
    "matrix",
    [turning(17, 50, 40), turning(-90, 50, 40), scaling(1.7, 0.8), shifting(3.25, -8.5), shifting(-70, 0),
     np.array([[-0.6, 0.3, 30.0], [0.2, 0.9, 2.0]])],
)  # fmt: skip
def test_warp_agrees_with_opencv(matrix: np.ndarray, continued: bool) -> None:
    import cv2

    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5
    border = cv2.BORDER_REPLICATE if continued else cv2.BORDER_CONSTANT
    for image in (IMAGE, IMAGE[:, :, 0]):
        ours = Warp(matrix, (50, 40), (60, 45))(image, continued)
        theirs = cv2.warpAffine(image, centred, (60, 45), flags=cv2.INTER_LINEAR, borderMode=border)
        assert ours.shape == theirs.shape
        # Noise is the hardest image: OpenCV interpolates in coarser steps.
        difference = np.abs(ours.astype(int) - theirs)
        assert np.percentile(difference, 98) <= 8
        assert difference.mean() < 2


def test_warp_by_whole_pixels_is_exact() -> None:
    assert (Warp(shifting(0, 0), (50, 40), (50, 40))(IMAGE, True) == IMAGE).all()
    moved = Warp(shifting(2, -3), (50, 40), (50, 40))(IMAGE, False)
    assert (moved[:37, 2:] == IMAGE[3:, :48]).all()
    assert (moved[37:] == 0).all()
    assert (moved[:, :2] == 0).all()


def test_stretch_keeps_what_is_flat() -> None:
    assert (stretch(np.full((3, 4), 77, np.uint8), 31, 17) == 77).all()
    assert stretch(IMAGE, 61, 53).shape == (53, 61, 3)

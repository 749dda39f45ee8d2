"""The fast way through JPEGs against Pillow's own: the same pixels, the same refusals, in the same words."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from labelmill.operators.images import decoded
from labelmill.operators.images.decoded import DecodeError, decode
from labelmill.operators.images.jpeg import plain_jpeg
from tests.bad_images import bad_images, cmyk_jpeg, exif

JPEGS = {name: data for name, (data, _) in bad_images().items() if data[:2] == b"\xff\xd8"}


def _as_pillow_does(data: bytes) -> np.ndarray | str:
    with mock.patch.object(decoded, "plain_jpeg", return_value=None):
        return _outcome(data)


def _outcome(data: bytes) -> np.ndarray | str:
    try:
        return decode(data, max_pixels=1_000_000).pixels
    except DecodeError as error:
        return str(error)


def _assert_same(data: bytes) -> None:
    fast, slow = _outcome(data), _as_pillow_does(data)
    if isinstance(slow, str):
        assert fast == slow
    else:
        np.testing.assert_array_equal(fast, slow)


def _picture(rng: np.random.Generator, width: int, height: int, mode: str) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    coarse = rng.integers(0, 256, (4, 4, *channels), dtype=np.uint8)
    smooth = Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, rng.choice([0, 4, 60]), (height, width, *channels))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), mode)


def _written(rng: np.random.Generator, mode: str) -> bytes:
    keep_rgb = mode == "RGB" and bool(rng.integers(0, 4) == 0)
    options = {
        "quality": int(rng.choice([1, 30, 75, 95, 100])),
        "subsampling": 0 if keep_rgb else int(rng.integers(0, 3)),
        "progressive": bool(rng.integers(0, 2)),
        "optimize": bool(rng.integers(0, 2)),
        "restart_marker_blocks": int(rng.choice([0, 0, 3])),
        "keep_rgb": keep_rgb,
        "exif": exif(int(rng.integers(1, 9))),
    }
    buffer = io.BytesIO()
    width, height = (int(side) for side in rng.integers(1, 90, 2))
    _picture(rng, width, height, mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_thousand_jpegs_of_every_kind_have_pillows_pixels(mode: str) -> None:
    rng = np.random.default_rng(4)
    taken = 0
    for _ in range(350):
        data = _written(rng, mode)
        _assert_same(data)
        size = Image.open(io.BytesIO(data)).size
        taken += mode != "CMYK" and plain_jpeg(data, *size) is not None
    assert taken == (0 if mode == "CMYK" else 350)


@pytest.mark.parametrize("name", JPEGS)
def test_odd_and_broken_jpegs_come_out_as_pillow_has_them(name: str) -> None:
    _assert_same(JPEGS[name])


def test_a_jpeg_that_is_cut_anywhere_is_judged_as_pillow_judges_it() -> None:
    for seed in range(6):
        data = _written(np.random.default_rng(seed), "RGB" if seed % 3 else "L")
        for end in range(0, len(data), max(1, len(data) // 60)):
            _assert_same(data[:end])
        _assert_same(data + b"trailing bytes")
        _assert_same(data[:-2])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 30), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=64)), max_size=4))
def test_a_spoilt_jpeg_is_judged_as_pillow_judges_it(seed: int, spoils: list[tuple[float, bytes]]) -> None:
    data = bytearray(_written(np.random.default_rng(seed), "RGB"))
    for where, what in spoils:
        start = int(where * (len(data) - 1))
        data[start : start + len(what)] = what
    _assert_same(bytes(data))


def test_four_inks_are_left_to_pillow() -> None:
    for ycck in (False, True):
        data = cmyk_jpeg(ycck)
        assert decode(data).mode == "CMYK"
        _assert_same(data)


def test_a_header_that_promises_another_size_is_left_to_pillow() -> None:
    data = _written(np.random.default_rng(1), "RGB")
    width, height = Image.open(io.BytesIO(data)).size
    assert plain_jpeg(data, width, height) is not None
    assert plain_jpeg(data, width + 1, height) is None

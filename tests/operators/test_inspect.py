from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageStat

from labelmill.operators.images.decoded import DecodeError, decode
from labelmill.operators.images.quality import EXACT_PIXELS, measure
from labelmill.operators.inspect import Inspect
from tests.bad_images import Good, bad_images, encode, quadrants
from tests.drawing import noise

CLEANVISION = {"dark", "light", "odd_aspect_ratio", "low_information", "blurry", "grayscale"}
SCORES = (*sorted(CLEANVISION), "sharpness")


def inspect(data: bytes) -> dict[str, Any]:
    operator = Inspect(Inspect.Params())
    operator.load()
    [output] = operator.infer([operator.prepare(decode(data), {"image_id": 1, "key": "a.png"})])
    assert isinstance(output, dict)
    return output


def cleanvision(picture: Image.Image) -> dict[str, float]:
    """CleanVision's definitions, written down again from its documentation and checked against version 0.3.7."""
    values = np.asarray(picture, dtype=float) / 255
    channels = np.moveaxis(values, -1, 0) if values.ndim == 3 else [values] * 3
    brightness = np.sqrt(sum(w * c * c for w, c in zip((0.241, 0.691, 0.068), channels, strict=True)))
    histogram = np.array(picture.histogram(), dtype=float)
    share = histogram[histogram > 0] / histogram.sum()
    long = max(picture.size)
    thumbnail = picture
    if long > 64:
        width, height = (max(1, int(side // (long / 64))) for side in picture.size)
        thumbnail = picture.resize((width, height))
    grey = thumbnail.convert("L")
    edges = 1 - math.exp(-0.01 * math.sqrt(ImageStat.Stat(grey.filter(ImageFilter.FIND_EDGES)).var[0]))
    uneven = 1 - math.exp(-0.01 * np.std(grey.histogram()))
    return {
        "uneven": uneven,
        "dark": np.percentile(brightness, 99),
        "light": 1 - np.percentile(brightness, 5),
        "odd_aspect_ratio": min(picture.width / picture.height, picture.height / picture.width),
        "low_information": min(1, -0.1 * (share * np.log2(share)).sum()),
        "blurry": min(1, edges + (uneven if uneven > 0.18 else 0)),
        "grayscale": 0 if picture.mode == "L" else 1,
    }


def scene(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth areas, hard edges and a little noise, like a photograph."""
    generator = np.random.default_rng(seed)
    picture = noise(seed, width, height)
    for _ in range(30):
        x, y = int(generator.integers(width)), int(generator.integers(height))
        box = (x, y, x + int(generator.integers(1, 2 + width // 3)), y + int(generator.integers(1, 2 + height // 3)))
        picture.paste(tuple(int(c) for c in generator.integers(0, 256, 3)), box)
    grain = generator.normal(0, 4, (height, width, 3))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)).convert(mode)


pictures = st.builds(
    scene, st.integers(0, 10_000), st.integers(1, 320), st.integers(1, 240), st.sampled_from(["RGB", "L"])
)


@settings(max_examples=60, deadline=None)
@given(pictures)
@example(Image.new("RGB", (1, 1), (0, 0, 255)))
@example(Image.new("L", (2, 1), 255))
@example(Image.new("RGB", (1, 5000), (3, 4, 5)))
@example(Image.new("RGB", (300, 200)))
def test_scores_are_those_of_cleanvision(picture: Image.Image) -> None:
    measured = inspect(encode(picture, "PNG"))
    reference = cleanvision(picture)
    assert {score: measured[score] for score in CLEANVISION} == pytest.approx(
        {score: reference[score] for score in CLEANVISION}, abs=1e-6
    )


@pytest.mark.parametrize(("width", "height"), [(640, 480), (481, 640), (1283, 723), (2000, 150)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_scores_of_large_images_are_close_to_those_of_cleanvision(width: int, height: int, mode: str) -> None:
    assert width * height > EXACT_PIXELS
    for seed in range(3):
        picture = scene(seed, width, height, mode)
        measured = inspect(encode(picture, "BMP"))
        reference = cleanvision(picture)
        jumps = {"blurry"} if 0.17 < reference["uneven"] < 0.19 else set()
        for score in CLEANVISION - jumps:
            assert measured[score] == pytest.approx(reference[score], abs=0.01), score


def test_a_grid_does_not_fall_in_step_with_a_pattern() -> None:
    """Of a chessboard of single pixels, every second one has one colour."""
    board = np.indices((480, 640)).sum(axis=0) % 2 * 255
    pixels = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    measured = measure(pixels, stored_grey=False)
    assert measured["dark"] == pytest.approx(1)
    assert measured["light"] == 1
    assert measured["low_information"] == pytest.approx((1 + math.log2(3)) / 10, abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(pictures.filter(lambda picture: min(picture.size) > 4))
def test_phash_is_that_of_imagehash(picture: Image.Image) -> None:
    assert inspect(encode(picture, "PNG"))["phash"] == int(str(imagehash.phash(picture)), 16)


def test_phash_of_large_images_is_close_to_that_of_imagehash() -> None:
    distances = [
        (inspect(encode(picture, "BMP"))["phash"] ^ int(str(imagehash.phash(picture)), 16)).bit_count()
        for picture in (scene(seed, 640 + 97 * seed, 480 + 31 * seed) for seed in range(12))
    ]
    assert max(distances) <= 4
    assert np.mean(distances) <= 1.5


def test_phash_survives_what_happens_to_photographs() -> None:
    original = scene(7, 400, 300)
    reference = inspect(encode(original, "PNG"))["phash"]
    darker = original.point(lambda value: value * 0.8)
    for changed in (original.resize((900, 675)), darker, original.resize((200, 150))):
        assert (reference ^ inspect(encode(changed, "JPEG", quality=70))["phash"]).bit_count() <= 8
    others = [inspect(encode(scene(seed, 400, 300), "PNG"))["phash"] for seed in range(20, 30)]
    assert min((reference ^ other).bit_count() for other in others) > 10


def test_flat_pictures_share_one_phash() -> None:
    hashes = {inspect(encode(Image.new("L", (50, 40), level), "PNG"))["phash"] for level in (1, 77, 128, 255)}
    assert hashes == {1 << 63}


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from(["RGB", "L", "1", "RGBA"]))
@example(1, 5000, 0, "RGB")
@example(5000, 1, 0, "L")
@example(700, 500, 0, "RGB")
def test_every_value_fits_its_column(width: int, height: int, seed: int, mode: str) -> None:
    channels = {"RGB": 3, "RGBA": 4}.get(mode, 1)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    data = encode(Image.fromarray(values.squeeze(-1) if channels == 1 else values).convert(mode), "PNG")
    measured = inspect(data)
    schema = Inspect(Inspect.Params()).writes()
    assert list(schema.names) == list(dict.fromkeys(schema.names))
    assert set(measured) == set(schema.names)
    table = pa.Table.from_pylist([measured], schema=schema)
    assert all(table.column(name).null_count == 0 for name in schema.names)
    for score in SCORES:
        assert 0 <= measured[score] <= 1, score
    assert measured["size"] ** 2 == pytest.approx(width * height)
    assert (measured["width"], measured["height"]) == (width, height)
    assert measured["min_side"] == min(width, height)
    assert measured["aspect_ratio"] == width / height
    assert measured["bytes"] == len(data)
    assert measured["file_hash"] == hashlib.sha256(data).hexdigest()


def test_the_file_is_described_as_stored() -> None:
    data, expected = bad_images()["exif_6.jpg"]
    assert isinstance(expected, Good)
    measured = inspect(data)
    assert (measured["format"], measured["mode"], measured["orientation"], measured["frames"]) == ("JPEG", "RGB", 6, 1)
    assert (measured["width"], measured["height"]) == expected.size
    assert inspect(bad_images()["animated.gif"][0])["frames"] == 3


@pytest.mark.parametrize("name", ["grey.jpg", "grey16.png", "one_bit.png", "float.tif", "la.png"])
def test_a_single_stored_channel_is_grayscale(name: str) -> None:
    assert inspect(bad_images()[name][0])["grayscale"] == 0


def test_grey_pixels_in_three_channels_are_not_grayscale() -> None:
    assert inspect(encode(Image.new("RGB", (9, 9), (70, 70, 70)), "PNG"))["grayscale"] == 1


def test_pixel_hash_is_that_of_the_upright_picture() -> None:
    picture = scene(3, 60, 40)
    first = inspect(encode(picture, "PNG"))
    tags = Image.Exif()
    tags[0x0112] = 6
    for copy in (
        encode(picture, "PNG", compress_level=1),
        encode(picture, "BMP"),
        encode(picture, "WEBP", lossless=True),
        encode(picture.transpose(Image.Transpose.ROTATE_90), "PNG", exif=tags),
    ):
        other = inspect(copy)
        assert other["pixel_hash"] == first["pixel_hash"]
        assert other["file_hash"] != first["file_hash"]
        assert all(other[name] == first[name] for name in (*SCORES, "phash"))


@settings(max_examples=30, deadline=None)
@given(pictures, st.data())
def test_pixel_hash_tells_one_changed_value(picture: Image.Image, data: st.DataObject) -> None:
    pixels = np.array(picture.convert("RGB"))
    place = tuple(data.draw(st.integers(0, side - 1)) for side in pixels.shape)
    before = inspect(encode(Image.fromarray(pixels), "BMP"))["pixel_hash"]
    pixels[place] ^= 1
    assert inspect(encode(Image.fromarray(pixels), "BMP"))["pixel_hash"] != before


def test_pixel_hash_tells_shapes_of_the_same_bytes() -> None:
    wide, high = (inspect(encode(Image.new("RGB", size, (5, 5, 5)), "PNG")) for size in ((6, 4), (4, 6)))
    assert wide["pixel_hash"] != high["pixel_hash"]


WORSE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sharpness": lambda picture: picture.filter(ImageFilter.GaussianBlur(3)),
    "dark": lambda picture: picture.point(lambda value: value // 5),
    "light": lambda picture: picture.point(lambda value: 205 + value // 5),
    "low_information": lambda picture: picture.point(lambda value: value // 64 * 64),
}


@pytest.mark.parametrize("score", WORSE)
@pytest.mark.parametrize("size", [(300, 200), (600, 400)])
def test_a_worse_picture_scores_lower(score: str, size: tuple[int, int]) -> None:
    for seed in range(4):
        picture = scene(seed, *size)
        before, after = (inspect(encode(each, "BMP"))[score] for each in (picture, WORSE[score](picture)))
        assert after < before


def test_sharpness_follows_its_formula() -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[::2, ::2] = 255
    padded = np.pad(values.astype(float), 1, mode="edge")
    shifted = [np.roll(padded, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    laplacian = (9 * padded - np.sum(shifted, axis=0))[1:-1, 1:-1]
    expected = 1 - math.exp(-np.std(laplacian) / 100)
    assert inspect(encode(Image.fromarray(values), "PNG"))["sharpness"] == pytest.approx(expected, abs=1e-6)
    assert inspect(encode(Image.new("RGB", (64, 64), (9, 99, 9)), "PNG"))["sharpness"] == 0


def test_sharpness_hardly_depends_on_the_size() -> None:
    picture = scene(1, 1200, 900).filter(ImageFilter.GaussianBlur(3))
    figures = [
        inspect(encode(picture.resize((side, side * 3 // 4), Image.Resampling.LANCZOS), "BMP"))["sharpness"]
        for side in (300, 500, 800, 1200)
    ]
    assert max(figures) < 1.15 * min(figures)


def test_the_same_in_every_thread() -> None:
    files = [encode(scene(seed, 50 + 90 * seed, 300), "PNG") for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(inspect, files * 3)) == [inspect(file) for file in files] * 3


def test_every_readable_file_of_the_collection_can_be_inspected() -> None:
    schema = Inspect(Inspect.Params()).writes()
    for data, outcome in bad_images().values():
        if isinstance(outcome, Good):
            pa.Table.from_pylist([inspect(data)], schema=schema).validate(full=True)
        else:
            with pytest.raises(DecodeError):
                inspect(data)


def test_pixels_are_left_alone() -> None:
    image = decode(encode(quadrants(), "PNG"))
    before = image.pixels.copy()
    Inspect(Inspect.Params()).prepare(image, {})
    assert np.array_equal(image.pixels, before)

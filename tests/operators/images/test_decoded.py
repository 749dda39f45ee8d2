from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage, DecodeError, decode, image_format, image_size
from tests.bad_images import CORNERS, Bad, Good, bad_images, cmyk_jpeg, encode, png, quadrants

GOOD = {name: data for name, (data, outcome) in bad_images().items() if isinstance(outcome, Good)}
BROKEN = {name: data for name, (data, outcome) in bad_images().items() if isinstance(outcome, Bad)}
EXPECTED = {name: outcome for name, (_, outcome) in bad_images().items() if isinstance(outcome, Good)}
REASONS = {name: outcome.says for name, (_, outcome) in bad_images().items() if isinstance(outcome, Bad)}


@pytest.mark.parametrize("name", GOOD)
def test_a_readable_file_becomes_the_upright_picture(name: str) -> None:
    data, expected = GOOD[name], EXPECTED[name]
    image = decode(data)
    assert (image.width, image.height) == expected.size
    assert (image.format, image.mode) == (expected.format, expected.mode)
    assert (image.orientation, image.frames) == (expected.orientation, expected.frames)
    corners = CORNERS if len(expected.colours) == 4 else ((0, 0),)
    for (x, y), colour in zip(corners, expected.colours, strict=True):
        assert np.abs(image.pixels[y, x].astype(int) - colour).max() <= expected.tolerance
    assert image.data is data


@pytest.mark.parametrize("name", GOOD)
def test_the_header_alone_tells_size_and_format(name: str) -> None:
    data, expected = GOOD[name], EXPECTED[name]
    assert image_size(data) == expected.size
    assert image_format(data) == expected.format


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_says_in_plain_words_what_is_wrong(name: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(BROKEN[name])
    assert REASONS[name] in str(caught.value)
    assert isinstance(caught.value, RowError)


@pytest.mark.parametrize("name", ["empty.jpg", "text.jpg", "header_only.png", "bomb.png", "no_width.png"])
def test_size_and_format_of_a_broken_header_are_errors(name: str) -> None:
    with pytest.raises(DecodeError, match=REASONS[name]):
        image_size(BROKEN[name])
    with pytest.raises(DecodeError, match=REASONS[name]):
        image_format(BROKEN[name])


def test_pixels_are_contiguous_and_cannot_be_written() -> None:
    for name in ("rgba.png", "exif_6.jpg", "exif_1.jpg", "grey16.png", "exif_6.heic"):
        pixels = decode(GOOD[name]).pixels
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            pixels[0, 0] = 0


def test_pil_gives_a_copy_of_the_same_pixels() -> None:
    image = decode(GOOD["exif_7.jpg"])
    copy = image.pil()
    assert copy.mode == "RGB"
    assert np.array_equal(np.asarray(copy), image.pixels)
    copy.putpixel((0, 0), (1, 2, 3))
    assert tuple(image.pixels[0, 0]) != (1, 2, 3)


@pytest.mark.parametrize("ycck", [False, True])
def test_four_inks_are_read_as_opencv_reads_them(ycck: bool) -> None:
    import cv2

    data = cmyk_jpeg(ycck)
    blue_green_red = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert blue_green_red is not None
    assert np.abs(decode(data).pixels[..., ::-1].astype(int) - blue_green_red).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_16_bit_value_keeps_its_upper_byte(kind: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode(encode(Image.fromarray(values), kind)).pixels
    assert np.array_equal(pixels, np.repeat((values // 256)[..., None], 3, axis=-1))


def test_floats_that_are_no_numbers_are_black() -> None:
    for value in (np.nan, np.inf, -np.inf):
        values = np.full((4, 4), value, dtype=np.float32)
        assert decode(encode(Image.fromarray(values), "TIFF")).pixels.max() == 0
        values[0] = (0.0, 0.5, 1.0, 1.0)
        row = decode(encode(Image.fromarray(values), "TIFF")).pixels[..., 0]
        assert row[0].tolist() == [0, 128, 255, 255]
        assert row[1:].max() == 0


def test_the_limit_is_inclusive_and_checked_before_any_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (40, 25)), "JPEG")
    assert decode(data, max_pixels=1000).width == 40
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(DecodeError, match="the image has 1,000 pixels, more than max_pixels = 999"):
        decode(data, max_pixels=999)
    with pytest.raises(DecodeError, match="more than max_pixels = 999"):
        image_size(data, max_pixels=999)


def test_an_icon_with_a_larger_picture_inside_is_refused() -> None:
    inner = encode(Image.new("RGB", (300, 300)), "PNG")
    entry = bytes([16, 16, 0, 0, 1, 0, 32, 0]) + len(inner).to_bytes(4, "little") + (22).to_bytes(4, "little")
    icon = b"\x00\x00\x01\x00\x01\x00" + entry + inner
    assert decode(icon).width == 300
    with pytest.raises(DecodeError, match="90,000 pixels, more than max_pixels = 1,000"):
        decode(icon, max_pixels=1000)


def test_a_file_that_is_larger_than_its_header_says_is_refused() -> None:
    data = bytearray(GOOD["plain.heic"])
    crop = data.index(b"clap") + 20
    data[crop : crop + 4] = b"\xff\xff\xff\x00"
    assert image_size(bytes(data)) == (48, 32)
    assert decode(bytes(data)).pixels.shape == (32, 64, 3)
    with pytest.raises(DecodeError, match="2,048 pixels, more than max_pixels = 1,600"):
        decode(bytes(data), max_pixels=1600)


@pytest.mark.parametrize("filters", ["always", "error"])
def test_no_warning_gets_out(filters: Literal["always", "error"]) -> None:
    large = png(10_000, 10_000, 8, 2)  # Pillow warns from 89 million pixels on
    spoilt = encode(quadrants(), "TIFF").replace(b"\x02\x01\x03\x00", b"\x02\x01\xff\x00")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(filters)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(image_size, [large] * 20)) == [(10_000, 10_000)] * 20
        _failure(spoilt)
        decode(GOOD["exif_garbage.jpg"])
        decode(GOOD["palette_alpha.png"])
    assert not caught


def _failure(data: bytes) -> Exception | None:
    try:
        decode(data)
    except DecodeError as error:
        return error
    return None


def test_threads_give_what_one_thread_gives() -> None:
    names = sorted(GOOD) * 3
    expected = {name: decode(GOOD[name]).pixels for name in GOOD}
    start = threading.Barrier(8)

    def work(offset: int) -> None:
        start.wait()
        for name in names[offset::8]:
            assert np.array_equal(decode(GOOD[name]).pixels, expected[name])
        for name in BROKEN:
            assert _failure(BROKEN[name]) is not None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_the_first_decodes_of_a_process_may_run_in_threads() -> None:
    program = """
import sys
from concurrent.futures import ThreadPoolExecutor
from labelmill.operators.images.decoded import decode
data = sys.stdin.buffer.read()
assert "pillow_heif" not in sys.modules
with ThreadPoolExecutor(8) as pool:
    print({image.pixels.shape for image in pool.map(decode, [data] * 16)})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=GOOD["plain.heic"], capture_output=True, check=True, cwd=_ROOT
    )
    assert done.stdout == b"{(32, 48, 3)}\n"
    assert done.stderr == b""


_ROOT = __file__.rpartition("/tests/")[0]

SEEDS = [
    GOOD[name]
    for name in (
        "exif_6.jpg", "cmyk.jpg", "palette_alpha.png", "grey16_clear.png", "animated.gif", "animated.webp",
        "animated.png", "exif_8.tif", "pages.tif", "grey12.tif", "float.tif", "plain.bmp", "plain.jp2", "phone.mpo",
        "exif_6.heic", "exif_5.avif", "grey16.pgm",
    )
] + [encode(quadrants(), kind) for kind in ("ICO", "PCX", "TGA", "SGI", "DDS", "QOI", "ICNS")]  # fmt: skip


@st.composite
def spoilt_files(draw: st.DrawFn) -> bytes:
    """A readable file with bytes overwritten, cut out or put in, and perhaps cut short."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, min(len(data), 600)) | st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spoilt_files() | st.binary(max_size=200))
@example(b"\x89PNG\r\n\x1a\n")
@example(b"\xff\xd8\xff")
@example(b"RIFF\x00\x00\x00\x00WEBP")
@example(b"\x00\x00\x00\x18ftypheic")
def test_any_bytes_give_an_image_or_a_decode_error(data: bytes) -> None:
    try:
        image = decode(data, max_pixels=1_000_000)
    except DecodeError:
        return
    assert_sound(image)
    assert image_size(data) == (image.width, image.height) or image.format in {"ICO", "ICNS", "HEIF"}


def assert_sound(image: DecodedImage) -> None:
    height, width, channels = image.pixels.shape
    assert channels == 3
    assert height >= 1
    assert width >= 1
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert 1 <= image.orientation <= 8
    assert image.frames >= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from(["PNG", "BMP", "TIFF", "PPM"]))
def test_lossless_files_give_back_their_pixels(width: int, height: int, seed: int, kind: str) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(decode(encode(Image.fromarray(pixels), kind)).pixels, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_anywhere_is_whole_or_refused(kind: str) -> None:
    """Whatever of a cut file is accepted shows every pixel of the whole one."""
    noise = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    whole = decode(data).pixels
    for end in range(0, len(data), 7):
        try:
            cut = decode(data[:end]).pixels
        except DecodeError:
            continue
        assert np.array_equal(cut, whole)


def test_the_header_of_a_jpeg_is_enough_for_its_size() -> None:
    data = encode(Image.new("RGB", (640, 480), (9, 9, 9)), "JPEG", exif=_rotated())
    start_of_scan = data.index(b"\xff\xda")
    assert image_size(data[: start_of_scan + 20]) == (480, 640)


def _rotated() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 8
    return tags.tobytes()


def test_reading_leaves_pillow_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    for data in (*GOOD.values(), *BROKEN.values()):
        _failure(data)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert Image.open(io.BytesIO(GOOD["rgba.png"])).mode == "RGBA"


def test_a_png_with_megabytes_of_text_is_not_damaged() -> None:
    """Pillow's own limits are for text; the picture is whole."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a long prompt, " * 300_000, zip=True)
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(file, "PNG", pnginfo=info)
    assert (decode(file.getvalue()).pixels == 90).all()
    assert image_size(file.getvalue()) == (6, 4)

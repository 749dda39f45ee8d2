"""Files that break image pipelines, made as bytes, each with what must come of it.

``bad_images()`` gives name → (bytes, Good or Bad); the names have extensions, some of them wrong, and can be written to
a folder as they are. Good files show the picture of `quadrants`, upright.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

Colour = tuple[int, int, int]

RED, GREEN, BLUE, SAND = (220, 30, 40), (20, 170, 60), (30, 50, 200), (240, 200, 120)
WIDTH, HEIGHT = 48, 32
CORNERS = ((6, 4), (41, 4), (6, 27), (41, 27))


@dataclass(frozen=True)
class Good:
    """The file decodes.

    Attributes:
        colours: At `CORNERS`, or of the whole picture if there is only one.
        tolerance: Largest difference of a channel.
        size: Upright width and height.
    """

    colours: tuple[Colour, ...] = (RED, GREEN, BLUE, SAND)
    tolerance: int = 0
    format: str = "PNG"
    mode: str = "RGB"
    orientation: int = 1
    frames: int = 1
    size: tuple[int, int] = (WIDTH, HEIGHT)


@dataclass(frozen=True)
class Bad:
    """The file must fail alone, with these words in the reason."""

    says: str


Outcome = Good | Bad


def quadrants(colours: tuple[Any, ...] = (RED, GREEN, BLUE, SAND), mode: str = "RGB") -> Image.Image:
    """Four rectangles: top left, top right, bottom left, bottom right."""
    picture = Image.new(mode, (WIDTH, HEIGHT), colours[0])
    picture.paste(colours[1], (WIDTH // 2, 0, WIDTH, HEIGHT // 2))
    picture.paste(colours[2], (0, HEIGHT // 2, WIDTH // 2, HEIGHT))
    picture.paste(colours[3], (WIDTH // 2, HEIGHT // 2, WIDTH, HEIGHT))
    return picture


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def stored_for(orientation: int) -> Image.Image:
    """The quadrants as a camera stores them: EXIF 2.3 names the visual side of row 0 and of column 0."""
    sides = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
    upright = np.asarray(quadrants())
    pixels = upright if sides[0] in "tb" else upright.transpose(1, 0, 2)
    pixels = pixels[::-1] if sides[0] in "br" else pixels
    pixels = pixels[:, ::-1] if sides[1] in "br" else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG written by hand; without rows, only its header is true."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + png_chunk(b"IEND", b"")


def tiff12(values: np.ndarray) -> bytes:
    """A grey TIFF of 12 bits a pixel, for an even width."""
    first, second = values[:, 0::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(packed)))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<I", 8 + len(packed)) + packed + directory + bytes(4)


def cmyk_jpeg(ycck: bool) -> bytes:
    """The quadrants in four inks, as Photoshop writes them: inverted, with an Adobe marker."""
    inks = np.asarray(quadrants(_inks(), "CMYK"))
    if not ycck:
        return encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    # Only three inks are turned into YCbCr. Pillow inverts what it writes and cannot write YCCK, hence the 255 − x.
    ycc = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    stored = np.concatenate([ycc, 255 - inks[..., 3:]], axis=-1)
    data = encode(Image.fromarray(np.ascontiguousarray(255 - stored), "CMYK"), "JPEG", quality=100)
    marker = data.index(b"Adobe")
    return data[: marker + 11] + b"\x02" + data[marker + 12 :]


def _inks() -> tuple[tuple[int, int, int, int], ...]:
    """With a little black, in which no channel is lighter than 250."""
    channels = [[round(255 - channel * 255 / 250) for channel in colour] for colour in (RED, GREEN, BLUE, SAND)]
    return tuple((cyan, magenta, yellow, 5) for cyan, magenta, yellow in channels)


def _grey(levels: tuple[float, ...], kind: Any, top: float) -> np.ndarray:
    """The quadrants in shares of `top`."""
    picture = np.asarray(quadrants(tuple(range(4)), "L"))
    return (np.array(levels) * top).astype(kind)[picture]


_LEVELS = (0.0, 0.25, 0.75, 1.0)
_GREYS = ((0, 0, 0), (63, 63, 63), (191, 191, 191), (255, 255, 255))


def _oriented() -> dict[str, tuple[bytes, Outcome]]:
    import pillow_heif

    pillow_heif.register_heif_opener()
    files: dict[str, tuple[bytes, Outcome]] = {}
    for turn in range(1, 9):
        data = encode(stored_for(turn), "JPEG", quality=95, subsampling=0, exif=exif(turn))
        files[f"exif_{turn}.jpg"] = data, Good(format="JPEG", orientation=turn, tolerance=12)
    turned = stored_for(6)
    files["exif_6.png"] = encode(turned, "PNG", exif=exif(6)), Good(orientation=6)
    files["exif_6.webp"] = encode(turned, "WEBP", lossless=True, exif=exif(6)), Good(format="WEBP", orientation=6)
    files["exif_8.tif"] = encode(stored_for(8), "TIFF", exif=exif(8)), Good(format="TIFF", orientation=8)
    files["exif_6.heic"] = (
        encode(turned, "HEIF", quality=95, exif=exif(6).tobytes()),
        Good(format="HEIF", orientation=6, tolerance=12),
    )
    files["exif_5.avif"] = (
        encode(stored_for(5), "AVIF", quality=95, exif=exif(5)),
        Good(format="AVIF", orientation=5, tolerance=12),
    )
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    files["xmp_3.png"] = encode(stored_for(3), "PNG", pnginfo=xmp), Good(orientation=3)
    plain = encode(turned, "PNG")
    behind = plain[:-12] + png_chunk(b"eXIf", exif(6).tobytes()[6:]) + plain[-12:]
    files["exif_behind_the_pixels.png"] = behind, Good(orientation=6)
    files["exif_9.jpg"] = (
        encode(quadrants(), "JPEG", quality=95, subsampling=0, exif=exif(9)),
        Good(format="JPEG", tolerance=12),
    )
    garbage = encode(quadrants(), "JPEG", quality=95, subsampling=0, exif=b"Exif\x00\x00MM\x00*" + b"\xff" * 40)
    files["exif_garbage.jpg"] = garbage, Good(format="JPEG", tolerance=12)
    return files


def _modes() -> dict[str, tuple[bytes, Outcome]]:
    rgb, half = quadrants(), Image.new("L", (WIDTH, HEIGHT), 128)
    over_white = tuple(_half_over_white(colour) for colour in (RED, GREEN, BLUE, SAND))
    palette = rgb.quantize(4, dither=Image.Dither.NONE)
    index = [palette.getpixel(corner) for corner in CORNERS]
    clear_red = ((255, 255, 255), GREEN, BLUE, SAND)
    grey16 = _grey(_LEVELS, np.uint16, 65535)
    deep = np.asarray(rgb).astype(np.uint16) * 256 + 7
    deep_rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in deep)
    deep_red = png_chunk(b"tRNS", struct.pack(">HHH", *(c * 256 + 7 for c in RED)))
    grey_rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in grey16)
    unclear = _grey(_LEVELS, np.float32, 1.0)
    unclear[0, 0] = np.nan
    return {
        "palette.png": (encode(palette, "PNG"), Good(mode="P")),
        "palette_clear.png": (encode(palette, "PNG", transparency=index[0]), Good(clear_red, mode="P")),
        "palette_alpha.png": (
            encode(palette, "PNG", transparency=bytes(128 for _ in range(4))),
            Good(over_white, mode="P", tolerance=1),
        ),
        "clear.gif": (encode(palette, "GIF", transparency=index[0]), Good(clear_red, format="GIF", mode="P")),
        "rgba.png": (encode(_with_alpha(rgb, half), "PNG"), Good(over_white, mode="RGBA", tolerance=1)),
        "rgba.webp": (
            encode(_with_alpha(rgb, half), "WEBP", lossless=True),
            Good(over_white, format="WEBP", mode="RGBA", tolerance=1),
        ),
        "clear_rgba.png": (
            encode(_with_alpha(rgb, Image.new("L", (WIDTH, HEIGHT), 0)), "PNG"),
            Good(((255, 255, 255),) * 4, mode="RGBA"),
        ),
        "la.png": (
            encode(Image.merge("LA", (Image.new("L", (WIDTH, HEIGHT), 0), half)), "PNG"),
            Good(((127, 127, 127),) * 4, mode="LA"),
        ),
        "rgb_clear.png": (encode(rgb, "PNG", transparency=RED), Good(clear_red)),
        "rgb16_clear.png": (png(WIDTH, HEIGHT, 16, 2, deep_rows, deep_red), Good(clear_red)),
        "grey16_clear.png": (
            png(WIDTH, HEIGHT, 16, 0, grey_rows, png_chunk(b"tRNS", b"\x00\x00")),
            Good(((255, 255, 255), *_GREYS[1:]), mode="I;16"),
        ),
        "grey.jpg": (
            encode(Image.fromarray(_grey(_LEVELS, np.uint8, 255)), "JPEG", quality=95),
            Good(_GREYS, format="JPEG", mode="L", tolerance=3),
        ),
        "grey16.png": (encode(Image.fromarray(grey16), "PNG"), Good(_GREYS, mode="I;16")),
        "grey16_big_endian.tif": (
            encode(Image.fromarray(grey16.astype(">u2")), "TIFF"),
            Good(_GREYS, format="TIFF", mode="I;16B"),
        ),
        "grey16.pgm": (encode(Image.fromarray(grey16), "PPM"), Good(_GREYS, format="PPM", mode="I")),
        "grey12.tif": (tiff12(_grey(_LEVELS, np.uint16, 4095)), Good(_GREYS, format="TIFF", mode="I;16")),
        "rgb16.png": (png(WIDTH, HEIGHT, 16, 2, deep_rows), Good()),
        "float.tif": (
            encode(Image.fromarray(_grey(_LEVELS, np.float32, 1.0)), "TIFF"),
            Good(_GREYS, format="TIFF", mode="F", tolerance=1),
        ),
        "float_255.tif": (
            encode(Image.fromarray(_grey(_LEVELS, np.float32, 255.0)), "TIFF"),
            Good(_GREYS, format="TIFF", mode="F", tolerance=1),
        ),
        "float_wide.tif": (
            encode(Image.fromarray(_grey(_LEVELS, np.float32, 3000.0) - 1000), "TIFF"),
            Good(_GREYS, format="TIFF", mode="F", tolerance=1),
        ),
        "float_nan.tif": (encode(Image.fromarray(unclear), "TIFF"), Good(_GREYS, 1, format="TIFF", mode="F")),
        "int32_8bit.tif": (
            encode(Image.fromarray(_grey(_LEVELS, np.int32, 255)), "TIFF"),
            Good(_GREYS, format="TIFF", mode="I"),
        ),
        "int32_wide.tif": (
            encode(Image.fromarray(_grey(_LEVELS, np.int32, 2_000_000) - 500_000), "TIFF"),
            Good(_GREYS, format="TIFF", mode="I", tolerance=1),
        ),
        "one_bit.png": (
            encode(Image.fromarray(_grey((0, 1, 1, 0), bool, 1)), "PNG"),
            Good((_GREYS[0], _GREYS[3], _GREYS[3], _GREYS[0]), mode="1"),
        ),
        "cmyk.jpg": (cmyk_jpeg(ycck=False), Good(format="JPEG", mode="CMYK", tolerance=4)),
        "ycck.jpg": (cmyk_jpeg(ycck=True), Good(format="JPEG", mode="CMYK", tolerance=4)),
        "cmyk.tif": (encode(quadrants(_inks(), "CMYK"), "TIFF"), Good(format="TIFF", mode="CMYK", tolerance=2)),
        "lab.tif": (
            # L* of 0…100 as 0…255, a* and b* plus 128; white point D50
            encode(quadrants(((153, 158, 148), (128, 98, 158), (102, 128, 88), (255, 128, 128)), "LAB"), "TIFF"),
            Good(((201, 123, 111), (76, 133, 65), (48, 97, 160), (255, 255, 255)), 3, format="TIFF", mode="LAB"),
        ),
    }


def _half_over_white(colour: Colour) -> Colour:
    red, green, blue = (round((channel * 128 + 255 * 127) / 255) for channel in colour)
    return red, green, blue


def _with_alpha(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.putalpha(alpha)
    return picture


def _containers() -> dict[str, tuple[bytes, Outcome]]:
    first = quadrants()
    later = [Image.new("RGB", first.size, colour) for colour in (GREEN, BLUE)]
    several: dict[str, Any] = {"save_all": True, "append_images": later}
    jpeg = encode(first, "JPEG", quality=95, subsampling=0)
    return {
        "animated.gif": (encode(first, "GIF", **several), Good(format="GIF", mode="P", frames=3)),
        "animated.webp": (encode(first, "WEBP", lossless=True, **several), Good(format="WEBP", mode="RGBA", frames=3)),
        "animated.png": (encode(first, "PNG", **several), Good(frames=3)),
        "pages.tif": (encode(first, "TIFF", **several), Good(format="TIFF", frames=3)),
        "phone.mpo": (
            encode(first, "MPO", quality=95, subsampling=0, **several),
            Good(format="MPO", tolerance=12),
        ),
        "plain.bmp": (encode(first, "BMP"), Good(format="BMP")),
        "plain.jp2": (encode(first, "JPEG2000"), Good(format="JPEG2000")),
        "plain.heic": (encode(first, "HEIF", quality=95), Good(format="HEIF", tolerance=12)),
        "plain.avif": (encode(first, "AVIF", quality=95), Good(format="AVIF", tolerance=12)),
        "jpeg_inside.png": (jpeg, Good(format="JPEG", tolerance=12)),
        "png_inside.txt": (encode(first, "PNG"), Good()),
        "bytes_after_the_end.jpg": (jpeg + b"trailing" * 9, Good(format="JPEG", tolerance=12)),
        "one_pixel.png": (encode(Image.new("RGB", (1, 1), SAND), "PNG"), Good((SAND,), size=(1, 1))),
        "a_line.png": (encode(Image.new("RGB", (1, 5000), SAND), "PNG"), Good((SAND,), size=(1, 5000))),
    }


def _broken() -> dict[str, tuple[bytes, Outcome]]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    files: dict[str, tuple[bytes, Outcome]] = {
        "empty.jpg": (b"", Bad("the file is empty")),
        "one_byte.jpg": (b"\xff", Bad("not an image")),
        "zeros.png": (bytes(4096), Bad("not an image")),
        "text.jpg": (b"This is a note about cats, not a picture of one.\n", Bad("not an image")),
        "not_found.jpg": (b"<!DOCTYPE html><html><title>404 Not Found</title></html>", Bad("not an image")),
        "drawing.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', Bad("not an image")),
        "document.pdf": (encode(noise, "PDF"), Bad("not an image")),
        "film.heic": (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2mp41" + bytes(64), Bad("not an image")),
        "program.eps": (encode(noise, "EPS"), Bad("a file of format EPS")),
        "header_only.jpg": (encode(noise, "JPEG")[:24], Bad("the image is cut off")),
        "header_only.png": (encode(noise, "PNG")[:20], Bad("the image is cut off")),
        "bomb.png": (png(60_000, 60_000, 8, 2), Bad("3,600,000,000 pixels, more than max_pixels")),
        "bomb.gif": (
            b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00\x00\x00" + encode(quadrants(), "GIF")[13:],
            Bad("pixels, more than max_pixels"),
        ),
        "no_width.png": (png(0, 10, 8, 2), Bad("the image")),
    }
    for name, kind in {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}.items():
        data = encode(noise, kind)
        files[f"half.{name}"] = data[: len(data) // 2], Bad("the image is cut off")
    for name, kind in {"heic": "HEIF", "avif": "AVIF"}.items():
        data = encode(noise, kind)
        files[f"short.{name}"] = data[: len(data) * 9 // 10], Bad("the image is cut off")
    flipped = bytearray(encode(noise, "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    files["flipped_byte.png"] = bytes(flipped), Bad("the image is damaged")
    return files


@functools.cache
def bad_images() -> dict[str, tuple[bytes, Outcome]]:
    """Every file: name → (bytes, what must come of it)."""
    return {**_oriented(), **_modes(), **_containers(), **_broken()}


def write_bad_images(folder: Path) -> dict[str, Outcome]:
    """Write every file into a folder; gives name → what must come of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in bad_images().items():
        (folder / name).write_bytes(data)
    return {name: outcome for name, (_, outcome) in bad_images().items()}

"""The one way in which files become pixels: every operator, export and server sees what `decode` gives.

What a file is, its content decides; its name is never looked at. Everything that Pillow decodes by itself is read, HEIC
and AVIF included; of a file with several frames or pages, the first. Pixels come out as 8-bit RGB by the rules of
`operators.images.rgb`, turned upright by the EXIF or XMP orientation (TIFF and HEIF by their readers, and only once).
Truncated files are errors, whatever part of them could be shown.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from labelmill.operators.errors import RowError
from labelmill.operators.images.jpeg import plain_jpeg
from labelmill.operators.images.rgb import grey_depth, to_rgb

MAX_PIXELS = 178_956_970
"""What an image may have unless told otherwise: the limit above which Pillow calls a file a decompression bomb."""

MAX_TEXT = 64 * 1024 * 1024
"""Bytes of text and profiles in a PNG once unpacked; more is a bomb."""

_NO_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognises but leaves to other programs."""

_TELLTALE = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "AVIF", "HEIF")
"""Formats whose first bytes cannot be mistaken."""

_ONE_PICTURE = {"ICNS", "MPO", "PSD"}
"""Formats whose frames are sizes, views or layers of one picture."""

_TURNED_BY_READER = {"HEIF", "TIFF"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(RowError):
    """A file that is no image, or a damaged one; the message says which in plain words."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """One image as every operator sees it.

    Attributes:
        pixels: uint8, (height, width, 3), RGB, upright, C-contiguous, read-only.
        data: The file as it was.
        format: Pillow's name of the format, such as "JPEG".
        mode: Pillow's name of the pixels as stored, such as "CMYK".
        orientation: The EXIF orientation as stored, 1…8; 1 where there is none.
        frames: Frames or pages in the file; 1 for still images.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    data: bytes = field(repr=False)
    format: str
    mode: str
    orientation: int
    frames: int

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def pil(self) -> Image.Image:
        """A copy of the pixels as an image of mode RGB."""
        return Image.fromarray(self.pixels)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a file. Thread-safe.

    Args:
        data: The whole file.
        max_pixels: Refuse larger images before any pixel is decoded. `MAX_PIXELS` is as high as it goes.

    Raises:
        DecodeError: Whatever else is wrong; no other exception but MemoryError comes out.
    """
    image = _open(data, max_pixels)
    format_, mode = str(image.format), image.mode
    depth = grey_depth(image)
    turned_from = _orientation(image) if format_ in _TURNED_BY_READER else None
    try:
        plain = plain_jpeg(data, *image.size) if format_ == "JPEG" and mode in ("L", "RGB") else None
        if plain is None:
            image.load()
            _check_size(image, max_pixels)  # a broken HEIC can be larger than its header says
        orientation = _orientation(image) if turned_from is None else turned_from
        turn = _TURNS.get(orientation) if turned_from is None else None
        if plain is None or turn is not None:
            upright = to_rgb(image, depth) if plain is None else Image.fromarray(plain)
            pixels = np.asarray(upright if turn is None else upright.transpose(turn))
        else:
            pixels = plain
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # plug-ins meet broken files with exceptions of every kind
        raise DecodeError(_diagnosis(error, data)) from error
    pixels.flags.writeable = False
    return DecodedImage(pixels, data, format_, mode, orientation, _frames(image))


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the upright image, from the header.

    Args:
        data: The file; of a JPEG, as much of it as holds the header.
        max_pixels: As for `decode`.

    Raises:
        DecodeError: The header cannot be read, or the image is too large.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    if image.format not in _TURNED_BY_READER and _orientation(image, data) >= 5:
        return height, width
    return width, height


def image_orientation(data: bytes) -> int:
    """The stored orientation, 1…8, from the header; 1 where there is none.

    Raises:
        DecodeError: The header cannot be read.
    """
    return _orientation(_open(data, MAX_PIXELS), data)


def image_format(data: bytes) -> str:
    """Pillow's name of the format, such as "JPEG".

    Raises:
        DecodeError: The header cannot be read.
    """
    return str(_open(data, MAX_PIXELS).format)


_lock = threading.Lock()
_plugins_loaded = False
_quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _ready() -> tuple[str, ...]:
    """The formats to try, with the plug-ins loaded that read them."""
    global _plugins_loaded
    with _lock:
        if not _plugins_loaded:
            import pillow_heif
            from PIL import PngImagePlugin

            Image.init()
            # Pillow's limits are for text; a profile of colours or a program's state may be larger, and is no damage.
            PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT
            PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
            pillow_heif.register_heif_opener()
            _plugins_loaded = True
        # Pillow warns about broken metadata and large images. What matters of it becomes a DecodeError; the rest would
        # fill the logs of a run. `catch_warnings` is no help: it swaps the filters of all threads.
        if warnings.filters[:1] != [_quiet]:
            warnings.filterwarnings("ignore", module=r"PIL\.")
    return tuple(name for name in Image.ID if name not in _NO_RASTER)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header and refuse what is no image, or too large a one."""
    if not data:
        raise DecodeError("the file is empty")
    formats = _ready()
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise DecodeError(_no_image(data)) from None
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise DecodeError(_too_large(int(found[0]) if found else 0, max_pixels)) from error
    except MemoryError:
        raise
    except Exception as error:  # as in `decode`
        raise DecodeError(_diagnosis(error, data)) from error
    _check_size(image, max_pixels)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise DecodeError(f"the image has no pixels: it is {width} × {height}")
    if width * height > max_pixels:
        raise DecodeError(_too_large(width * height, max_pixels))


def _too_large(pixels: int, max_pixels: int) -> str:
    return f"the image has {pixels:,} pixels, more than max_pixels = {min(max_pixels, MAX_PIXELS):,}"


def _no_image(data: bytes) -> str:
    for name in (*_NO_RASTER, *_TELLTALE):
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if accept is None or len(data) < 12 or accept(data[:16]) is not True:
            continue
        if name in _NO_RASTER:
            return f"a file of format {name}, which is not made of pixels that Pillow decodes"
        return f"the image is cut off or damaged: it begins like {name}, but its header cannot be read"
    return "not an image, or of a format that Pillow does not read"


def _diagnosis(error: Exception, data: bytes) -> str:
    text = str(error) or type(error).__name__
    cut = isinstance(error, EOFError)
    cut |= bool(re.search(r"truncat|end.of.file|incomplete|not enough|premature", text, re.IGNORECASE))
    cut |= data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")  # WebP says how long it is
    return f"the image is {'cut off' if cut else 'damaged'}: {text}"


def _orientation(image: Image.Image, header_of: bytes | None = None) -> int:
    """The stored orientation.

    Args:
        image: Loaded, or of a format whose reader turns it; TIFF forgets the orientation when it is loaded.
        header_of: The file, if only its header was read: PNG may hold the orientation behind the pixels.
    """
    try:
        if image.format == "HEIF":
            value: Any = image.info.get("original_orientation")
        elif image.format == "PNG" and header_of is not None and "exif" not in image.info:
            behind = b"eXIf" in header_of or b"XML:com.adobe.xmp" in header_of or b"Raw profile type exif" in header_of
            value = image.getexif().get(0x0112) if behind else 1
        else:
            value = image.getexif().get(0x0112)
    except MemoryError:
        raise
    except Exception:  # broken metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _frames(image: Image.Image) -> int:
    if image.format in _ONE_PICTURE:
        return 1
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except MemoryError:
        raise
    except Exception:  # later frames are broken; the first one is there
        return 1

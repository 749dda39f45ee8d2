"""Images as text, for requests."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

MAX_BYTES = 1 << 20
"""Larger files are compressed again: several servers refuse requests of more than 2 MB."""

QUALITY = 95


def data_url(image: DecodedImage, formats: Sequence[str] = ("JPEG", "PNG"), max_side: int = 2048) -> str:
    """An image as a data URL (RFC 2397).

    The file itself where every reader sees in it what `image.pixels` holds; else its upright pixels, compressed once.

    Args:
        image: The image.
        formats: Pillow's names of the formats that the reader knows.
        max_side: An image whose longer side has more pixels is made smaller, its aspect kept.
    """
    size = _limited(image.width, image.height, max_side)
    if size == (image.width, image.height) and image.format in formats and _plain(image):
        return _url(image.format, image.data)
    picture = image.pil()
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    format_ = "JPEG" if "JPEG" in formats else formats[0]
    if format_ == "JPEG":
        picture.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    else:
        picture.save(buffer, format_)
    return _url(format_, buffer.getvalue())


def _plain(image: DecodedImage) -> bool:
    """Whether no reader has to turn it, drop transparency or choose a frame."""
    return (
        image.mode in ("RGB", "L")
        and image.orientation == 1
        and image.frames == 1
        and len(image.data) <= MAX_BYTES
        and b"tRNS" not in image.data
    )


def _limited(width: int, height: int, side: int) -> tuple[int, int]:
    if max(width, height) <= side:
        return width, height
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _url(format_: str, data: bytes) -> str:
    return f"data:image/{format_.lower()};base64,{base64.b64encode(data).decode('ascii')}"

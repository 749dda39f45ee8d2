"""Quick images for tests that need files but do not look at them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from labelmill.operators.images.decoded import DecodedImage, decode


def noise(seed: int, width: int = 48, height: int = 32, level: int | None = None) -> Image.Image:
    """Smooth noise around a level; every seed gives another image."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256) if level is None else level
    small = generator.normal(base, 30, (6, 8, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int, height: int, seed: int = 0) -> DecodedImage:
    """Smooth noise as large as the image, decoded, so that resizing and models have something to look at."""
    rng = np.random.default_rng([seed, width, height])
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return decode(encode(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), "PNG"))


def folder_of_images(folder: Path, count: int, **options: int) -> Path:
    """`count` JPEGs in a few subfolders."""
    for index in range(count):
        path = folder / f"{'abc'[index % 3]}" / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(index, **options), quality=90))
    return folder

"""What can be said of an image without a model: what the file is, hashes, and quality scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from labelmill.operators.base import ImageOperator
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.images.quality import measure

_STORED_GREY = frozenset({"1", "L", "LA", "La", "I", "F"})


class Inspect(ImageOperator):
    """Describe every image: size, format, hashes, and quality scores in [0, 1], the lower the worse.

    ================  ==================================================================================================
    column            is
    ================  ==================================================================================================
    width, height     pixels of the upright image
    min_side          the smaller of the two
    size              ``√(width · height)``; `odd_size` compares it with the rest of the dataset
    aspect_ratio      width / height
    bytes             size of the file
    format, mode      as stored, in Pillow's words: "JPEG", "RGB"
    orientation       EXIF orientation as stored, 1…8
    frames            frames or pages in the file; only the first is looked at
    file_hash         SHA-256 of the file, hexadecimal: what `sha256sum` prints
    pixel_hash        XXH3-128 of shape and upright RGB pixels, hexadecimal: equal for a PNG and its copy as BMP
    phash             64-bit perceptual hash, that of ``imagehash.phash``; compare by Hamming distance
    phash_variants    eight: `phash`, and that of the image turned by 90, 180 and 270 degrees and mirrored in each
    sharpness         ``1 − exp(−σ/100)``, σ the standard deviation of the Laplacian at 256 pixels; higher is sharper.
                      Photographs have 0.4 to 0.8; Gaussian blur of σ = 0.6 % of the long side leaves less than 0.3
    dark              99th percentile of brightness: low if even the brightest parts are dark
    light             1 − 5th percentile of brightness: low if even the darkest parts are bright
    odd_aspect_ratio  short side / long side
    low_information   entropy of the histogram in bits / 10
    blurry            edges in a thumbnail of 64 pixels
    grayscale         0 if the file holds a single channel, else 1
    ================  ==================================================================================================

    The last six are the scores of CleanVision, whose thresholds are dark 0.32, light 0.05, odd_aspect_ratio 0.35,
    low_information 0.3, blurry 0.29. `operators.images.quality` says how they, `sharpness` and the hashes are measured,
    and what is sampled in images of more than 320 × 240 pixels.
    """

    name = "inspect"
    version = 2

    def writes(self) -> pa.Schema:
        scores = ["dark", "light", "odd_aspect_ratio", "low_information", "blurry", "grayscale"]
        return pa.schema(
            [
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("min_side", pa.int32()),
                ("size", pa.float32()),
                ("aspect_ratio", pa.float32()),
                ("bytes", pa.int64()),
                ("format", pa.string()),
                ("mode", pa.string()),
                ("orientation", pa.int8()),
                ("frames", pa.int32()),
                ("file_hash", pa.string()),
                ("pixel_hash", pa.string()),
                ("phash", pa.uint64()),
                ("phash_variants", pa.list_(pa.uint64(), 8)),
                ("sharpness", pa.float32()),
                *((score, pa.float32()) for score in scores),
            ]
        )

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)  # images are prepared in threads already; OpenCV's own would get in their way

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> dict[str, Any]:
        width, height = image.width, image.height
        stored_grey = image.mode in _STORED_GREY or image.mode.startswith("I;16")
        return {
            "width": width,
            "height": height,
            "min_side": min(width, height),
            "size": (width * height) ** 0.5,
            "aspect_ratio": width / height,
            "bytes": len(image.data),
            "format": image.format,
            "mode": image.mode,
            "orientation": image.orientation,
            "frames": image.frames,
            "file_hash": hashlib.sha256(image.data).hexdigest(),
            "pixel_hash": pixel_hash(image),
            "odd_aspect_ratio": min(width / height, height / width),
            "grayscale": 0.0 if stored_grey else 1.0,
            **measure(image.pixels, stored_grey),
        }

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        return items


def pixel_hash(image: DecodedImage) -> str:
    """XXH3-128 of the shape, as two little-endian 64-bit numbers (width, height), and the RGB bytes, in hexadecimal."""
    import xxhash

    digest = xxhash.xxh3_128(image.width.to_bytes(8, "little") + image.height.to_bytes(8, "little"))
    digest.update(image.pixels.data)
    return digest.hexdigest()

"""Which images Ultralytics reads, and what to say about the others."""

from __future__ import annotations

from collections import Counter

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.dataset import ExportImage

FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000"})
"""Pillow's formats that Ultralytics has an extension for; it passes over other files."""

MIN_PIXELS = 10
"""Ultralytics leaves out images with a shorter side."""


class Readable:
    """Counts images that Ultralytics will pass over."""

    def __init__(self) -> None:
        self._unread: Counter[str] = Counter()

    def see(self, image: ExportImage) -> None:
        """Count an image if it will be passed over."""
        if image.format not in FORMATS:
            self._unread[f"of the format {image.format}, which Ultralytics does not read"] += 1
        elif min(image.width, image.height) < MIN_PIXELS:
            self._unread[f"with a side below {MIN_PIXELS} pixels, which Ultralytics leaves out"] += 1

    def notes(self) -> list[str]:
        """A sentence for each reason."""
        return [f"{counted(count, 'image')} {what}." for what, count in sorted(self._unread.items())]

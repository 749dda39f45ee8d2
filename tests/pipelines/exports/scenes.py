"""Drawn datasets for the tests of the exports, and the boxes and masks that readers must give back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from labelmill.pipelines.exports import exporter
from labelmill.pipelines.exports.dataset import Dataset, ExportImage, ExportSummary, Fetch
from labelmill.pipelines.exports.files import Output

CLASSES = ["disc", "stop sign", "ring"]


def rle(mask: np.ndarray) -> str:
    """COCO compressed RLE counts of a mask of shape (height, width)."""
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return str(counts.decode())


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """A filled circle: bool (height, width)."""
    rows, columns = np.mgrid[:height, :width]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def ring(height: int, width: int, x: float, y: float, radius: float, hole: float) -> np.ndarray:
    """A circle with a hole."""
    return disc(height, width, x, y, radius) & ~disc(height, width, x, y, hole)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def detection(
    name: str,
    box: tuple[float | None, ...] | None = None,
    mask: np.ndarray | None = None,
    score: float | None = 0.75,
    prompt: str | None = None,
    models: list[str] | None = None,
) -> dict[str, Any]:
    """One detection; its box is the mask's unless given."""
    if box is None:
        assert mask is not None
        box = box_of(mask)
    corners = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    encoded = None if mask is None else rle(mask)
    return {**corners, "class": name, "score": score, "prompt": prompt, "mask": encoded, "models": models}


def picture(
    folder: Path, number: int, detections: list[dict[str, Any]], split: str | None = None, **options: Any
) -> ExportImage:
    """An image file of its own and the entry for it."""
    options = {"key": f"{number}.png", "width": 64, "height": 48, "format": "PNG", **options}
    path = folder / f"original-{number}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (options["height"], options["width"], 3), np.uint8)
        Image.fromarray(pixels).save(path, options["format"])
    return ExportImage(
        image_id=number,
        key=options["key"],
        uri=str(path),
        width=options["width"],
        height=options["height"],
        split=split,
        detections=detections,
        format=options["format"],
        words=options.get("words"),
        caption=options.get("caption"),
        image_class=options.get("image_class"),
    )


def scenes(folder: Path, count: int, splits: tuple[str, ...] = ()) -> Iterator[ExportImage]:
    """Images with a disc, a ring, two discs that are one object, a bare box, and every fourth with nothing."""
    for number in range(1, count + 1):
        generator = np.random.default_rng(number)
        height, width = int(generator.integers(100, 140)), int(generator.integers(130, 170))
        split = splits[number % len(splits)] if splits else None
        x, y = generator.integers(25, 40, 2)
        parts = disc(height, width, x + 60, y, 12) | disc(height, width, x + 60, y + 40, 9)
        found = [
            detection("disc", mask=disc(height, width, x, y, 18), score=0.9, prompt="a disc"),
            detection("ring", mask=ring(height, width, x, y + 45, 17, 7), score=0.8),
            detection("disc", mask=parts, score=0.7),
            detection("stop sign", box=(x + 80.25, y + 1.5, x + 88.75, y + 33.125), score=None),
        ]
        yield picture(folder, number, found if number % 4 else [], split, width=width, height=height)


def read(uri: str) -> bytes:
    """The bytes behind a uri of these tests."""
    return Path(uri).read_bytes()


def refuse(uri: str) -> bytes:
    """For tests in which nothing must be read."""
    raise AssertionError(f"read {uri}")


def write_dataset(
    name: str,
    out: Path | Output,
    pictures: Iterable[ExportImage],
    splits: tuple[str, ...] = (),
    classes: list[str] = CLASSES,
    *,
    provenance: dict[str, Any] | None = None,
    fetch: Fetch = read,
    **params: Any,
) -> ExportSummary:
    """Write images in a format, to a folder on disk or elsewhere."""
    kind = exporter(name)
    place = Output(fsspec.filesystem("file"), str(out)) if isinstance(out, Path) else out
    dataset = Dataset(
        iter(pictures), classes, list(splits), fetch, {"run": "test"} if provenance is None else provenance
    )
    return kind(kind.Params.model_validate(params)).write(dataset, place)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

"""Writes a drawn dataset: images, and beside them everything that is true about them.

::

    OUT/images/000001.jpg …        mostly JPEG, one in ten PNG; the folder is the source, file names are the keys
    OUT/truth/instances.json       COCO: boxes and masks of objects, faces and signs; colour as an attribute
    OUT/truth/words.parquet        key, text, box, quad, mirrored
    OUT/truth/gaze.parquet         key, box, yaw, pitch
    OUT/truth/captions.parquet     key, caption
    OUT/truth/duplicates.parquet   key, group, kind (``original`` or one of `DUPLICATES`), of (the original's key)
    OUT/truth/defects.parquet      key, defect (one of `DEFECTS` or `BROKEN`)

Files that cannot be read stand in ``defects.parquet`` only.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from labelmill.operators.miniatures.canvas import Pixels
from labelmill.operators.miniatures.captions import FACE, SIGN
from labelmill.operators.miniatures.defects import BROKEN, DEFECTS, break_file, spoil
from labelmill.operators.miniatures.duplicates import DUPLICATES, duplicate
from labelmill.operators.miniatures.objects import kinds
from labelmill.operators.miniatures.world import Scene, World

CATEGORIES = (*kinds(), FACE, SIGN)
"""COCO categories in order; ids start at 1."""

ORIGINAL = "original"

_BOX = [pa.field(side, pa.float32()) for side in ("x1", "y1", "x2", "y2")]
_SCHEMAS: dict[str, list[pa.Field]] = {
    "words": [pa.field("text", pa.string()), *_BOX, pa.field("quad", pa.list_(pa.float32(), 8)),
              pa.field("mirrored", pa.bool_())],
    "gaze": [*_BOX, pa.field("yaw", pa.float32()), pa.field("pitch", pa.float32())],
    "captions": [pa.field("caption", pa.string())],
    "duplicates": [pa.field("group", pa.int64()), pa.field("kind", pa.string()), pa.field("of", pa.string())],
    "defects": [pa.field("defect", pa.string())],
}  # fmt: skip

# The third number of a seed sequence, so that no two random streams of one dataset are the same.
_PLAN, _ENCODE, _CHANGE = 1, 2, 3


@dataclass(frozen=True)
class WorldSummary:
    """What was written.

    Attributes:
        images: Number of files, broken ones included.
        objects, words, faces, signs: Numbers of each in the truth.
        duplicates: Number of copies of each kind.
        defects: Number of bad images of each kind.
    """

    images: int
    objects: int
    words: int
    faces: int
    signs: int
    duplicates: Mapping[str, int]
    defects: Mapping[str, int]


@dataclass(frozen=True)
class _Item:
    """One file to write: which scene, and what is done to it."""

    position: int
    scene: int
    role: str  # ORIGINAL, or one of DUPLICATES, DEFECTS, BROKEN

    @property
    def broken(self) -> bool:
        return self.role in BROKEN


@dataclass
class _Truth:
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in _SCHEMAS})


def write_world(
    out: Path,
    images: int,
    seed: int,
    *,
    size: int = 320,
    pairs: str = "all",
    words: str = "all",
    duplicates: float = 0.15,
    bad: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> WorldSummary:
    """Draw a dataset. The same arguments give the same bytes.

    Args:
        out: Where to; must not exist or be an empty folder.
        images: Number of files, at least 1; duplicates and bad images are among them.
        seed: Which dataset, ≥ 0.
        size: Longer side of the images in pixels, at least 172. Half of them are square, the others 4:3 or 3:4.
        pairs: Which (kind, colour) pairs appear: ``seen``, ``held_out`` or ``all``.
        words: Which words appear: ``seen``, ``held_out`` or ``all``.
        duplicates: Share of the files that are copies of others, all kinds in equal numbers.
        bad: Share of the files that have a defect or are broken, all kinds in equal numbers.
        progress: Called after every file with the number of files done and their total.

    Raises:
        ValueError: An argument is outside its range.
        FileExistsError: `out` holds something already.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1 but is {images}")
    if size < 172:
        raise ValueError(f"size must be at least 172 pixels but is {size}")
    if min(duplicates, bad) < 0 or not duplicates + bad < 1:
        raise ValueError(f"duplicates and bad must be 0 or more and below 1 together but are {duplicates} and {bad}")
    worlds = [World(seed, shape, pairs=pairs, words=words) for shape in _shapes(size)]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} must be an empty folder or not exist, but holds something: choose another")
    plan = _plan(images, seed, duplicates, bad)
    originals = {item.scene: item for item in plan if item.role == ORIGINAL}
    keys = {item.position: f"{item.position + 1:06d}{_suffix(item, seed)}" for item in plan}
    copied = sorted({originals[item.scene].position for item in plan if item.role in DUPLICATES})
    groups = {position: number for number, position in enumerate(copied, 1)}
    truth = _Truth()
    (out / "images").mkdir(parents=True)
    (out / "truth").mkdir()
    for item in plan:
        key = keys[item.position]
        scene, data = _make(item, worlds, seed)
        (out / "images" / key).write_bytes(data)
        if not item.broken:
            _add(truth, key, scene)
        if item.role in (*DEFECTS, *BROKEN):
            truth.rows["defects"].append({"key": key, "defect": item.role})
        else:
            origin = originals[item.scene].position
            if origin in groups:
                of = None if item.role == ORIGINAL else keys[origin]
                truth.rows["duplicates"].append({"group": groups[origin], "key": key, "kind": item.role, "of": of})
        if progress is not None:
            progress(item.position + 1, images)
    _save(out / "truth", truth, seed)
    found = Counter(CATEGORIES[annotation["category_id"] - 1] for annotation in truth.annotations)
    roles = Counter(item.role for item in plan)
    return WorldSummary(
        images,
        sum(found[kind] for kind in kinds()),
        len(truth.rows["words"]),
        found[FACE],
        found[SIGN],
        {kind: roles[kind] for kind in DUPLICATES if roles[kind]},
        {kind: roles[kind] for kind in (*DEFECTS, *BROKEN) if roles[kind]},
    )


def encode(pixels: Pixels, suffix: str, quality: int) -> bytes:
    """An image file: PNG if `suffix` is ``.png``, else JPEG at that quality; without colour, one channel."""
    image = Image.fromarray(pixels)
    if (pixels == pixels[:, :, :1]).all():
        image = image.convert("L")
    buffer = io.BytesIO()
    if suffix == ".png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _shapes(size: int) -> tuple[tuple[int, int], ...]:
    short = round(size * 0.75)
    return (size, size), (size, size), (size, short), (short, size)


def _plan(images: int, seed: int, duplicates: float, bad: float) -> list[_Item]:
    """Which file holds what, in the order of the files. Scenes are numbered: originals first, then bad ones."""
    rng = np.random.default_rng([seed, 0, _PLAN])
    copies, spoilt = round(images * duplicates), round(images * bad)
    if copies + spoilt >= images:
        copies, spoilt = 0, 0
    good = images - copies - spoilt
    faults = (*DEFECTS, *BROKEN)
    roles = [(number, ORIGINAL) for number in range(good)]
    roles += [(good + i, faults[i % len(faults)]) for i in range(spoilt)]
    roles += [(int(rng.integers(good)), DUPLICATES[i % len(DUPLICATES)]) for i in range(copies)]
    return [_Item(position, *roles[i]) for position, i in enumerate(rng.permutation(images))]


def _encoding(scene: int, seed: int) -> tuple[str, int]:
    """Suffix and JPEG quality of a scene's original file."""
    rng = np.random.default_rng([seed, scene, _ENCODE])
    return ".png" if rng.random() < 0.1 else ".jpg", int(rng.integers(84, 96))


def _suffix(item: _Item, seed: int) -> str:
    return ".jpg" if item.role == "reencoded" or item.broken else _encoding(item.scene, seed)[0]


def _make(item: _Item, worlds: list[World], seed: int) -> tuple[Scene, bytes]:
    """The scene as it stands in the item's file, and the bytes of the file."""
    suffix, quality = _encoding(item.scene, seed)
    rng = np.random.default_rng([seed, item.position, _CHANGE])
    scene = worlds[item.scene % len(worlds)].scene(item.scene)
    if item.broken:
        return scene, break_file(encode(scene.pixels, ".jpg", quality), item.role, rng)
    if item.role in DEFECTS:
        scene = spoil(scene, item.role, rng)
    data = encode(scene.pixels, suffix, quality)
    if item.role in (ORIGINAL, "exact", *DEFECTS):
        return scene, data
    # Copies are made from the file, as people make them.
    original = replace(scene, pixels=np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    if item.role == "reencoded":
        return scene, encode(original.pixels, ".jpg", int(rng.integers(30, 71)))
    scene = duplicate(original, item.role, rng)
    return scene, encode(scene.pixels, suffix, quality)


def _add(truth: _Truth, key: str, scene: Scene) -> None:
    from pycocotools import mask as rle

    height, width = scene.pixels.shape[:2]
    image_id = len(truth.images) + 1
    truth.images.append({"id": image_id, "file_name": key, "width": width, "height": height})
    things: list[tuple[str, Any, dict[str, Any]]] = [
        (thing.kind, thing, {"colour": thing.colour, "style": thing.style, "hidden": round(thing.hidden, 4)})
        for thing in scene.objects
    ]
    things += [(FACE, face, {}) for face in scene.faces] + [(SIGN, sign, {}) for sign in scene.signs]
    for category, thing, attributes in things:
        x1, y1, x2, y2 = thing.box
        counts = rle.encode(np.asfortranarray(thing.mask.astype(np.uint8)))["counts"].decode("ascii")
        truth.annotations.append(
            {
                "id": len(truth.annotations) + 1,
                "image_id": image_id,
                "category_id": CATEGORIES.index(category) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(np.count_nonzero(thing.mask)),
                "segmentation": {"size": [height, width], "counts": counts},
                "iscrowd": 0,
                "attributes": attributes,
            }
        )
    sides = ("x1", "y1", "x2", "y2")
    for word in scene.words:
        row = {"key": key, "text": word.text, "quad": word.quad.ravel().tolist(), "mirrored": word.mirrored}
        truth.rows["words"].append(row | dict(zip(sides, word.box, strict=True)))
    for face in scene.faces:
        row = {"key": key, "yaw": face.yaw, "pitch": face.pitch}
        truth.rows["gaze"].append(row | dict(zip(sides, face.box, strict=True)))
    truth.rows["captions"].append({"key": key, "caption": scene.caption})


def _save(folder: Path, truth: _Truth, seed: int) -> None:
    document = {
        "info": {"description": "Drawn by labelmill's miniature world", "seed": seed},
        "images": truth.images,
        "annotations": truth.annotations,
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(CATEGORIES, 1)],
    }
    (folder / "instances.json").write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    for name, fields in _SCHEMAS.items():
        schema = pa.schema([pa.field("key", pa.string()), *fields])
        pq.write_table(pa.Table.from_pylist(truth.rows[name], schema), folder / f"{name}.parquet")

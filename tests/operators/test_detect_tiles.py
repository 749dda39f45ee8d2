"""`detect` with tiles: through real engines, and on mosaics of drawn scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.detect import Detect, Large
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.measures.detections import match
from labelmill.operators.miniatures.objects import kinds
from labelmill.operators.miniatures.world import World
from labelmill.operators.models import load_card
from labelmill.operators.select import Select
from tests.drawing import picture
from tests.operators.engines.detection.tiny_detectors import FOLDER, ONTOLOGY, PLAIN, detect
from tests.operators.test_select import table

TILES = {"size": 128, "overlap": 0.25}


@pytest.fixture(scope="module")
def tiled() -> Detect:
    return detect(tiles=TILES, batch=3)


def infer(operator: Detect, image: DecodedImage) -> list[dict[str, Any]]:
    (row,) = operator.infer([operator.prepare(image, {})])
    assert isinstance(row, dict)
    found: list[dict[str, Any]] = row["detections"]
    return found


@pytest.mark.parametrize("size", [(128, 128), (90, 128), (60, 70)])
def test_images_no_larger_than_a_tile_are_seen_as_without_tiles(tiled: Detect, size: tuple[int, int]) -> None:
    image = picture(*size)
    assert infer(tiled, image) == infer(detect(), image) != []


def test_the_result_does_not_depend_on_the_batch(tiled: Detect) -> None:
    image = picture(300, 200)
    found = infer(tiled, image)
    for batch in (1, 2, 64):
        other = infer(detect(tiles=TILES, batch=batch), image)
        assert [each["prompt"] for each in other] == [each["prompt"] for each in found]
        for name in (*SIDES, "score"):
            np.testing.assert_allclose([each[name] for each in other], [each[name] for each in found], atol=2e-3)
    scores = [each["score"] for each in found]
    assert scores == sorted(scores, reverse=True)
    assert max(each["x2"] for each in found) > 200, "boxes are in pixels of the image"


def test_a_view_is_what_it_would_be_as_an_image(tiled: Detect) -> None:
    image = picture(300, 128)
    item = tiled.prepare(image, {})
    assert isinstance(item, Large)
    pixels = np.ascontiguousarray(image.pixels[:, 172:])
    alone = infer(tiled, DecodedImage(pixels, b"", "PNG", "RGB", 1, 1))
    assert item.windows[-1].tolist() == [172, 0, 300, 128]
    *_, last = tiled._views(item)
    np.testing.assert_allclose(last.rows[:, 0], [each["score"] for each in alone], atol=1e-4)
    np.testing.assert_allclose(last.rows[:, 2], [each["x1"] for each in alone], atol=1e-2)


def test_one_image_is_in_hand_and_memory_halves_the_batch(tiled: Detect, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiled.batch == 1
    look, sizes = tiled._look, []

    def short_of_memory(items: list[Any]) -> Any:
        sizes.append(len(items))
        if len(items) > 1:
            raise RuntimeError("CUDA out of memory")
        return look(items)

    monkeypatch.setattr(tiled, "_look", short_of_memory)
    assert infer(tiled, picture(300, 200)) == infer(detect(tiles=TILES, batch=1), picture(300, 200))
    assert sizes[-1] == 1 and sizes.count(3) <= 1


def test_a_view_that_cannot_be_seen_fails_the_image(tiled: Detect, monkeypatch: pytest.MonkeyPatch) -> None:
    item = tiled.prepare(picture(300, 200), {})

    def broken(items: list[Any]) -> Any:
        raise ValueError("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr(tiled, "_look", broken)
        with pytest.raises(ValueError, match="no such thing"):
            tiled.infer([item])
    look = tiled._look

    def nan(items: list[Any]) -> Any:
        found = look(items)
        found[-1].finite = False
        return found

    monkeypatch.setattr(tiled, "_look", nan)
    (row,) = tiled.infer([item])
    assert isinstance(row, RowError) and "try dtype: float32" in str(row)


def test_tiles_are_part_of_the_fingerprint() -> None:
    params = Detect.Params(model=PLAIN, ontology=ONTOLOGY, tiles={}).result_params()
    assert params["tiles"] == {"size": 1024, "overlap": 0.2, "whole": True}


NAMES = [*kinds(), "face", "sign"]


def mosaic(seed: int, side: int, count: int) -> tuple[DecodedImage, list[dict[str, Any]]]:
    """`count` × `count` drawn scenes in one image, and all that is in them in COCO's keys."""
    world, truth = World(seed, side), []
    pixels = np.zeros((count * side, count * side, 3), np.uint8)
    for index in range(count**2):
        scene, (row, column) = world.scene(index), divmod(index, count)
        pixels[row * side : (row + 1) * side, column * side : (column + 1) * side] = scene.pixels
        things = [(each.kind, each.box) for each in scene.objects]
        things += [("face", each.box) for each in scene.faces] + [("sign", each.box) for each in scene.signs]
        for name, (x1, y1, x2, y2) in things:
            box = [x1 + column * side, y1 + row * side, x2 - x1, y2 - y1]
            truth.append({"image_id": 1, "category_id": NAMES.index(name) + 1, "bbox": box})
    return DecodedImage(pixels, b"", "PNG", "RGB", 1, 1), truth


def labels(operator: Detect, image: DecodedImage) -> list[dict[str, Any]]:
    """What `detect` and `select` give, in COCO's keys."""
    operator.load()
    chosen = Select(Select.Params(score=0.4, nms=0.6)).compute(table(infer(operator, image)))
    assert chosen.columns is not None
    return [
        {
            "image_id": 1,
            "category_id": NAMES.index(each["class"]) + 1,
            "bbox": [each["x1"], each["y1"], each["x2"] - each["x1"], each["y2"] - each["y1"]],
            "score": each["score"],
        }
        for each in chosen.columns.column("detections")[0].as_py()
    ]


@pytest.mark.slow
def test_small_objects_of_a_large_image_are_found_and_each_once() -> None:
    card = load_card(FOLDER / "grounding-dino-miniature.yaml")
    image, truth = mosaic(901, 240, 4)
    plain = labels(Detect(Detect.Params(model=card, ontology=NAMES)), image)
    found = labels(Detect(Detect.Params(model=card, ontology=NAMES, tiles={"size": 240, "overlap": 0.3})), image)
    pairs = match(truth, found)
    assert len(match(truth, plain)) / len(truth) < 0.1
    assert len(pairs) / len(truth) > 0.7  # 0.75 with tiles that are the scenes themselves
    # Nothing is found twice, nor a part of it beside it: what is left over fits no object of its class.
    left = [each for index, each in enumerate(found) if index not in {pair.found for pair in pairs}]
    assert match(truth, left) == []
    inside = [(one, other) for one in left for other in truth
              if one["category_id"] == other["category_id"] and _share(one["bbox"], other["bbox"]) > 0.7]  # fmt: skip
    assert inside == []


def _share(part: list[float], whole: list[float]) -> float:
    """Of the first box's area that lies in the second; x, y, width, height."""
    sides = [
        max(0.0, min(part[axis] + part[axis + 2], whole[axis] + whole[axis + 2]) - max(part[axis], whole[axis]))
        for axis in (0, 1)
    ]
    return sides[0] * sides[1] / (part[2] * part[3])

"""The drawn world: the same scene everywhere, and truth that agrees with the pixels."""

from __future__ import annotations

import colorsys
import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from labelmill.operators.miniatures import world as world_module
from labelmill.operators.miniatures.objects import draw
from labelmill.operators.miniatures.world import HELD_OUT, Scene, World, colours, held_out, kinds, pairs, parse_caption

SIZE = 240


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [World(5, SIZE).scene(index) for index in range(60)]


def digest(scene: Scene) -> str:
    parts = [scene.pixels.tobytes(), scene.caption.encode()]
    parts += [thing.mask.tobytes() for thing in (*scene.objects, *scene.faces, *scene.signs)]
    parts += [word.text.encode() + word.quad.tobytes() for word in scene.words]
    parts += [repr((face.yaw, face.pitch)).encode() for face in scene.faces]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_scene_depends_on_nothing_but_seed_and_index() -> None:
    world = World(5, SIZE)
    forward = [digest(world.scene(index)) for index in range(6)]
    backward = [digest(world.scene(index)) for index in reversed(range(6))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 6
    assert digest(World(6, SIZE).scene(0)) != forward[0]


def test_another_process_draws_the_same_scene() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_world import *;"
        "print([digest(World(5, SIZE).scene(i)) for i in (3, 1)])"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONHASHSEED": "17", "PYTHONPATH": str(here.parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(here)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == str([digest(World(5, SIZE).scene(i)) for i in (3, 1)])


def test_scenes_have_the_asked_size() -> None:
    scene = World(1, (200, 150)).scene(0)
    assert scene.pixels.shape == (150, 200, 3)
    assert scene.pixels.dtype == np.uint8
    assert all(thing.mask.shape == (150, 200) for thing in scene.objects)


def test_boxes_are_the_extents_of_masks_and_masks_share_no_pixel(scenes: list[Scene]) -> None:
    for scene in scenes:
        things = [*scene.objects, *scene.faces, *scene.signs]
        assert sum((thing.mask.astype(int) for thing in things), np.zeros((SIZE, SIZE), int)).max() <= 1
        for thing in things:
            rows, columns = np.nonzero(thing.mask)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_objects_are_8_to_45_percent_of_the_side(scenes: list[Scene]) -> None:
    sizes = [max(x2 - x1, y2 - y1) / SIZE for scene in scenes for x1, y1, x2, y2 in (o.box for o in scene.objects)]
    assert min(sizes) >= 0.08
    assert max(sizes) <= 0.45 + 1 / SIZE
    assert np.percentile(sizes, 10) < 0.18
    assert np.percentile(sizes, 90) > 0.3


def test_at_most_30_percent_of_an_object_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    areas: dict[tuple[str, str, str], set[int]] = {}

    def recording(kind, colour, size, rng, style=None):  # type: ignore[no-untyped-def]
        drawn = draw(kind, colour, size, rng, style)
        areas.setdefault((kind, colour, drawn.style), set()).add(int(np.count_nonzero(drawn.mask)))
        return drawn

    monkeypatch.setattr(world_module, "draw", recording)
    hidden = []
    for index in range(40):
        areas.clear()
        for thing in World(8, SIZE).scene(index).objects:
            visible = np.count_nonzero(thing.mask)
            shares = [1 - visible / area for area in areas[thing.kind, thing.colour, thing.style]]
            assert min(abs(share - thing.hidden) for share in shares) < 1e-9
            hidden.append(thing.hidden)
    assert max(hidden) <= 0.3
    assert sum(share > 0.05 for share in hidden) >= 5, "objects must overlap in some scenes"


def test_pixels_under_a_mask_have_the_colour_of_the_object(scenes: list[Scene]) -> None:
    def name(pixels: np.ndarray) -> str:
        hue, saturation, value = colorsys.rgb_to_hsv(*(np.median(pixels, axis=0) / 255))
        if saturation < 0.3 or value < 0.2:
            return "black" if value < 0.45 else "white"
        limits = [(12, "red"), (41, "orange"), (75, "yellow"), (170, "green"), (255, "blue"), (330, "purple")]
        return next((colour for limit, colour in limits if hue * 360 < limit), "red")

    found = [name(s.pixels[o.mask]) == o.colour for s in scenes for o in s.objects if o.mask.sum() > 400]
    assert len(found) > 80
    assert np.mean(found) > 0.85  # windows, stems and labels have colours of their own


def test_captions_name_exactly_what_is_there(scenes: list[Scene]) -> None:
    for scene in scenes:
        counts = Counter((thing.colour, thing.kind) for thing in scene.objects)
        counts.update({(None, "face"): len(scene.faces), (None, "sign"): len(scene.signs)})
        assert parse_caption(scene.caption) == +counts


def test_scenes_vary(scenes: list[Scene]) -> None:
    assert {len(scene.objects) for scene in scenes} >= {1, 2, 3, 4, 5}
    assert any(scene.faces for scene in scenes)
    assert any(scene.signs for scene in scenes)
    assert {thing.kind for scene in scenes for thing in scene.objects} == set(kinds())
    assert {thing.colour for scene in scenes for thing in scene.objects} == set(colours())


def test_words_are_readable_inside_their_quads(scenes: list[Scene]) -> None:
    import cv2

    words = [(scene, word) for scene in scenes for word in scene.words]
    assert len(words) > 30
    for scene, word in words:
        assert (word.quad >= 0).all()
        assert (word.quad <= SIZE).all()
        x1, y1, x2, y2 = word.box
        assert (x1, y1) == tuple(word.quad.min(axis=0))
        assert (x2, y2) == tuple(word.quad.max(axis=0))
        top_left, top_right, _, bottom_left = word.quad
        assert top_right[0] > top_left[0], "text runs to the right"
        assert bottom_left[1] > top_left[1], "and its bottom is below its top"
        inside = np.zeros((SIZE, SIZE), np.uint8)
        cv2.fillPoly(inside, [np.rint(word.quad).astype(np.int32)], 1)
        grey = cv2.cvtColor(scene.pixels, cv2.COLOR_RGB2GRAY)[inside == 1]
        assert np.percentile(grey, 97) - np.percentile(grey, 3) > 50, word.text


def test_worlds_keep_to_their_pairs_and_words() -> None:
    for which, allowed in (("seen", False), ("held_out", True)):
        world = World(3, SIZE, pairs=which, words=which)
        scenes = [world.scene(index) for index in range(25)]
        found = {(thing.kind, thing.colour) in HELD_OUT for scene in scenes for thing in scene.objects}
        assert found == {allowed}
        assert {held_out(word.text) for scene in scenes for word in scene.words} == {allowed}


def test_held_out_pairs_leave_every_kind_and_colour_to_training() -> None:
    seen, held = pairs("seen"), pairs("held_out")
    assert len(pairs("all")) == len(kinds()) * len(colours()) >= 160
    assert set(held) == HELD_OUT
    assert 0.1 <= len(held) / len(pairs("all")) <= 0.15
    assert {kind for kind, _ in seen} == set(kinds())
    assert {colour for _, colour in seen} == set(colours())
    assert not set(seen) & set(held)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="seed must be 0 or more but is -1"):
        World(-1)
    with pytest.raises(ValueError, match="at least 128 pixels on both sides but is 320 x 100"):
        World(0, (320, 100))
    with pytest.raises(ValueError, match="pairs must be 'seen', 'held_out' or 'all' but is 'none'"):
        World(0, pairs="none")
    with pytest.raises(ValueError, match="words must be"):
        World(0, words="few")
    with pytest.raises(ValueError, match="index must be 0 or more but is -1"):
        World(0).scene(-1)

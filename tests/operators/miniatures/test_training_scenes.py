"""What miniatures are trained on: drawn scenes as the world has them, pieces of them, and what is asked about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.miniatures.captions import FACE, SIGN
from labelmill.operators.miniatures.objects import HELD_OUT, colours, kinds, pairs
from labelmill.operators.miniatures.training import scenes as module
from labelmill.operators.miniatures.training.crops import LEAST_LEFT, cut
from labelmill.operators.miniatures.training.prompts import answers, ask
from labelmill.operators.miniatures.training.scenes import SEED, SIDE, Drawn, Scenes, Thing, draw_scenes
from labelmill.operators.miniatures.words import held_out
from labelmill.operators.miniatures.world import Scene, World

COUNT = 6  # of two files of four


@pytest.fixture(autouse=True, scope="module")
def small_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 4)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    draw_scenes(folder, COUNT, workers=1)
    return folder


@pytest.fixture(scope="module")
def drawn(folder: Path) -> Scenes:
    return Scenes(folder, COUNT)


@pytest.fixture(scope="module")
def world() -> list[Scene]:
    world = World(SEED, SIDE, pairs="seen", words="seen")
    return [world.scene(index) for index in range(COUNT)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_drawn_scenes_are_the_world_s(drawn: Scenes, world: list[Scene]) -> None:
    assert len(drawn) == len(list(drawn)) == COUNT
    for found, scene in zip(drawn, world, strict=True):
        np.testing.assert_array_equal(found.pixels, scene.pixels)
        assert found.pixels.dtype == found.labels.dtype == np.uint8
        assert found.caption == scene.caption
        expected = [Thing(thing.kind, thing.colour, thing.box) for thing in scene.objects]
        expected += [Thing("face", None, face.box, (face.yaw, face.pitch)) for face in scene.faces]
        expected += [Thing("sign", None, sign.box) for sign in scene.signs]
        assert found.things == tuple(expected)
        assert [word.text for word in found.words] == [word.text for word in scene.words]
        for word, other in zip(found.words, scene.words, strict=True):
            np.testing.assert_array_equal(word.quad, other.quad)


def test_the_label_map_is_the_masks(drawn: Scenes, world: list[Scene]) -> None:
    for found, scene in zip(drawn, world, strict=True):
        masks = [thing.mask for group in (scene.objects, scene.faces, scene.signs) for thing in group]
        assert len(masks) == len(found.things)
        for number, mask in enumerate(masks, 1):
            np.testing.assert_array_equal(found.labels == number, mask)
        np.testing.assert_array_equal(found.labels == 0, ~np.any([np.zeros((SIDE, SIDE), bool), *masks], axis=0))
        for number, thing in enumerate(found.things, 1):
            rows, columns = np.nonzero(found.labels == number)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_nothing_is_held_out(drawn: Scenes) -> None:
    things = [thing for scene in drawn for thing in scene.things]
    assert {thing.kind for thing in things if thing.colour is None} <= {"face", "sign"}
    assert {thing.kind for thing in things if thing.colour is not None} <= set(kinds())
    assert not {(thing.kind, thing.colour) for thing in things} & HELD_OUT
    words = [word.text for scene in drawn for word in scene.words]
    assert words and not any(held_out(word) for word in words)


def test_the_number_of_workers_changes_nothing(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    draw_scenes(tmp_path / "two", COUNT, workers=2, progress=lambda done, total: told.append((done, total)))
    assert contents(tmp_path / "two") == contents(folder)
    assert told == [(4, 6), (6, 6)]


def test_drawing_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "scenes"
    draw_scenes(here, 3, workers=1)
    assert sorted(contents(here)) == ["labels-00000.npy", "pixels-00000.npy", "truth-00000.json"]
    times = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    # Stopped while it wrote the second file: pixels are there, the rest is not.
    (here / "pixels-00001.npy").write_bytes(b"half")
    told: list[tuple[int, int]] = []
    again = draw_scenes(here, COUNT, workers=1, progress=lambda done, total: told.append((done, total)))
    assert len(again) == COUNT
    assert contents(here) == contents(folder)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert told == [(6, 6)]
    draw_scenes(here, COUNT, workers=1, progress=lambda done, total: told.append((done, total)))
    assert len(told) == 1  # there was nothing left to draw


def test_too_few_scenes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Scenes(folder, 9)
    with pytest.raises(FileNotFoundError):
        Scenes(tmp_path, 1)


@pytest.mark.parametrize("index", [-1, COUNT, COUNT + 1, 99])
def test_scenes_that_were_not_asked_for(drawn: Scenes, index: int) -> None:
    with pytest.raises(IndexError, match=f"index must be from 0 to {COUNT - 1} but is {index}"):
        drawn[index]


def test_names_of_things() -> None:
    assert Thing("car", "red", (0, 0, 1, 1)).name == "red car"
    assert Thing(FACE, None, (0, 0, 1, 1), (10, 0)).name == "face"


# Pieces of scenes. Their pixels say where in the scene they come from.


def place(scene: Drawn) -> Drawn:
    y, x = np.mgrid[: scene.labels.shape[0], : scene.labels.shape[1]]
    where = np.stack([x % 256, y % 256, x // 256 + 2 * (y // 256)], axis=-1).astype(np.uint8)
    return dataclasses.replace(scene, pixels=where)


def origin(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y in the scene of each pixel of a piece."""
    low = pixels.astype(int)
    return low[..., 0] + 256 * (low[..., 2] % 2), low[..., 1] + 256 * (low[..., 2] // 2)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, COUNT - 1), st.integers(0, 10_000), st.integers(1, SIDE), st.integers(1, SIDE), st.booleans())
def test_pieces_and_their_truth(drawn: Scenes, index: int, seed: int, width: int, height: int, mirror: bool) -> None:
    scene = place(drawn[index])
    piece = cut(scene, width, height, np.random.default_rng(seed), mirror)
    assert piece.pixels.shape == (height, width, 3)
    x, y = origin(piece.pixels)
    step = -1 if width > 1 and x[0, 1] < x[0, 0] else 1
    assert step == 1 or mirror
    np.testing.assert_array_equal(x, np.broadcast_to(x[0, 0] + step * np.arange(width), (height, width)))
    np.testing.assert_array_equal(y, np.broadcast_to(y[0, 0] + np.arange(height)[:, None], (height, width)))
    np.testing.assert_array_equal(piece.labels, scene.labels[y, x])

    whole = np.bincount(scene.labels.ravel(), minlength=len(scene.things) + 1)[1:]
    inside = np.bincount(piece.labels.ravel(), minlength=len(scene.things) + 1)[1:]
    assert piece.numbers == [n for n in range(len(whole)) if inside[n] and inside[n] / whole[n] >= LEAST_LEFT]
    assert piece.boxes.shape == (len(piece.numbers), 4)
    assert piece.boxes.dtype == np.float32
    for number, box in zip(piece.numbers, piece.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(piece.labels == number + 1)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height


def test_a_whole_scene_keeps_its_boxes_and_half_of_them_are_mirrored(drawn: Scenes) -> None:
    scene = drawn[1]
    boxes = np.array([thing.box for thing in scene.things], np.float32)
    turned = np.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], axis=1)
    assert len(boxes) and not np.array_equal(boxes, turned)
    mirrored = 0
    for seed in range(100):
        piece = cut(scene, SIDE, SIDE, np.random.default_rng(seed))
        assert piece.numbers == list(range(len(boxes)))
        mirrored += int(np.array_equal(piece.boxes, turned))
        np.testing.assert_array_equal(piece.boxes, turned if np.array_equal(piece.boxes, turned) else boxes)
        np.testing.assert_array_equal(cut(scene, SIDE, SIDE, np.random.default_rng(seed), False).boxes, boxes)
    assert 35 <= mirrored <= 65


def test_things_are_not_cut_through_where_there_is_another_place() -> None:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[:, 150:170] = 1
    scene = Drawn(
        np.zeros((SIDE, SIDE, 3), np.uint8), labels, (Thing("sign", None, (150, 0, 170, SIDE)),), (), "a sign"
    )
    columns = [
        int((cut(scene, 100, SIDE, np.random.default_rng(seed)).labels > 0).sum(axis=1)[0]) for seed in range(300)
    ]
    assert all(inside == 0 or inside >= 15 for inside in columns)
    assert {0, 15, 20} <= set(columns)
    # Where there is none, what is cut through is no thing of the piece.
    for seed in range(20):
        piece = cut(scene, 100, SIDE // 2, np.random.default_rng(seed))
        assert piece.numbers == [] and piece.boxes.shape == (0, 4)


# What is asked.

objects = st.sampled_from(sorted(pairs("seen"))).map(lambda pair: Thing(*pair, (0, 0, 1, 1)))
plain = st.sampled_from([FACE, SIGN]).map(lambda kind: Thing(kind, None, (0, 0, 1, 1)))
things_of_scenes = st.lists(st.one_of(objects, objects, objects, plain), max_size=9)
ALL = {FACE, SIGN, *kinds(), *(f"{colour} {kind}" for kind, colour in pairs("all"))}
UNSEEN = {f"{colour} {kind}" for kind, colour in HELD_OUT}


@settings(max_examples=200, deadline=None)
@given(things_of_scenes, st.integers(1, 20), st.integers(0, 10_000))
def test_what_is_asked_is_answered_right(things: list[Thing], count: int, seed: int) -> None:
    asked = ask(things, [], count, np.random.default_rng(seed))
    assert len(asked.names) == len(set(asked.names)) == count
    assert set(asked.names) <= ALL - UNSEEN
    assert asked.answers.shape == (len(things), count)
    assert asked.answers.dtype == bool
    for column, name in enumerate(asked.names):
        *colour, kind = name.split()
        right = [thing.kind == kind and (not colour or thing.colour == colour[0]) for thing in things]
        assert asked.answers[:, column].tolist() == right
    again = ask(things, [], count, np.random.default_rng(seed))
    assert again.names == asked.names


def test_answers_by_hand() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    things = [Thing("car", "red", box), Thing("car", "blue", box), Thing("cup", "red", box), Thing(FACE, None, box)]
    names = ["red car", "car", "red cup", "face", "blue cup", "sign"]
    expected = [[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert answers(things, names).tolist() == [[bool(each) for each in row] for row in expected]
    assert answers([], names).shape == (0, 6)
    assert answers(things, []).shape == (4, 0)


def test_how_often_things_are_asked_for() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    car, face = Thing("car", "red", box), Thing(FACE, None, box)
    rounds = [set(ask([car, face], [], 8, np.random.default_rng(seed)).names) for seed in range(600)]
    by_name, by_kind = (np.array([name in names for names in rounds]) for name in ("red car", "car"))
    assert 0.7 < by_name.mean() < 0.8
    assert 0.26 < by_kind.mean() < 0.38
    assert 0.1 < (by_name & by_kind).mean() < 0.2
    assert 0.05 < (~by_name & ~by_kind).mean() < 0.12
    assert 0.8 < np.mean(["face" in names for names in rounds]) < 0.9


def test_half_of_what_is_not_there_is_like_something_that_is() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    things = [Thing("car", "red", box), Thing("tree", "green", box)]
    absent = []
    for seed in range(200):
        asked = ask(things, [], 12, np.random.default_rng(seed))
        absent += [name for name, there in zip(asked.names, asked.answers.any(axis=0), strict=True) if not there]
    alike = np.mean([bool({"car", "tree", "red", "green"} & set(name.split())) for name in absent])
    assert 0.45 < alike < 0.75
    assert {*kinds(), FACE, SIGN} - {"car", "tree"} <= set(absent)
    assert {name.split()[0] for name in absent if " " in name} == set(colours())


def test_names_stand_in_any_order() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    rounds = [ask([Thing("car", "red", box)], [], 5, np.random.default_rng(seed)).names for seed in range(300)]
    places = np.bincount([names.index("red car") for names in rounds if "red car" in names], minlength=5)
    assert places.min() > 0.1 * places.sum()

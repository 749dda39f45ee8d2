"""Copies and bad images do what their kind says, and their truth moves along."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from labelmill.operators.miniatures.defects import BROKEN, DEFECTS, break_file, brightness, spoil
from labelmill.operators.miniatures.duplicates import DUPLICATES, duplicate
from labelmill.operators.miniatures.faces import direction
from labelmill.operators.miniatures.transforms import mirroring, move, scaling, shifting, turning
from labelmill.operators.miniatures.world import Scene, World
from labelmill.operators.miniatures.write import encode


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    world = World(31, 240)
    found = [scene for index in range(60) if (scene := world.scene(index)).words and scene.faces and scene.objects]
    assert len(found) >= 6
    return found[:6]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def test_exact_reencoded_and_flipped(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        exact = duplicate(scene, "exact", rng(seed))
        assert (exact.pixels == scene.pixels).all()
        assert exact.pixels is not scene.pixels
        again = duplicate(scene, "reencoded", rng(seed)).pixels
        assert again.shape == scene.pixels.shape
        assert 20 < psnr(again, scene.pixels) < 50
        flipped = duplicate(scene, "flipped", rng(seed))
        assert (flipped.pixels[:, ::-1] == scene.pixels).all()
        for thing, was in zip(flipped.objects, scene.objects, strict=True):
            assert (thing.mask[:, ::-1] == was.mask).all()
            assert thing.hidden == pytest.approx(was.hidden)
        assert [(face.yaw, face.pitch) for face in flipped.faces] == [
            (pytest.approx(-face.yaw), pytest.approx(face.pitch)) for face in scene.faces
        ]
        assert all(word.mirrored for word in flipped.words)
        assert not any(word.mirrored for word in duplicate(flipped, "flipped", rng()).words)
        assert flipped.caption == scene.caption


def test_resized(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        small = duplicate(scene, "resized", rng(seed))
        factor = small.pixels.shape[0] / 240
        assert 0.59 < factor < 0.86 or 1.14 < factor < 1.36
        back = move(small, scaling(1 / factor, 1 / factor), 240, 240)
        assert psnr(back.pixels, scene.pixels) > 20
        for thing, was in zip(small.objects, scene.objects, strict=True):
            assert thing.mask.shape == small.pixels.shape[:2]
            assert np.abs(np.array(thing.box) - np.array(was.box) * factor).max() < 2.5
        for word, was_word in zip(small.words, scene.words, strict=True):
            assert np.allclose(word.quad, was_word.quad * factor)
        assert [face.yaw for face in small.faces] == pytest.approx([face.yaw for face in scene.faces])


def test_cropped_is_a_window_of_the_original(scenes: list[Scene]) -> None:
    import cv2

    for seed, scene in enumerate(scenes):
        cropped = duplicate(scene, "cropped", rng(seed))
        height, width = cropped.pixels.shape[:2]
        assert 0.795 * 240 <= min(height, width) <= max(height, width) <= 0.955 * 240
        scores = cv2.matchTemplate(scene.pixels, cropped.pixels, cv2.TM_SQDIFF)
        _, _, (x, y), _ = cv2.minMaxLoc(scores)
        assert (scene.pixels[y : y + height, x : x + width] == cropped.pixels).all()
        masks = {thing.mask.tobytes() for thing in cropped.objects}
        windows = [thing.mask[y : y + height, x : x + width] for thing in scene.objects]
        assert masks <= {window.tobytes() for window in windows}
        for thing in cropped.objects:
            assert 0 <= thing.hidden < 1


def test_cropping_away_half_an_object_counts_as_hiding_it(scenes: list[Scene]) -> None:
    scene = next(scene for scene in scenes if min(o.hidden for o in scene.objects) == 0)
    thing = min(scene.objects, key=lambda o: o.hidden)
    x1, _, x2, _ = (int(v) for v in thing.box)
    middle = (x1 + x2) // 2
    cut = move(scene, shifting(-middle, 0), 240 - middle, 240)
    left = [o for o in cut.objects if (o.kind, o.colour, o.style) == (thing.kind, thing.colour, thing.style)]
    assert len(left) == 1
    assert left[0].hidden == pytest.approx(1 - thing.mask[:, middle:].sum() / thing.mask.sum())
    assert left[0].box[0] == 0


def test_rotated_by_two_degrees(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        turned = duplicate(scene, "rotated", rng(seed))
        assert turned.pixels.shape == scene.pixels.shape
        quads = zip(turned.words, scene.words, strict=True)
        angles = [np.degrees(np.arctan2(*(w.quad[1] - w.quad[0])[::-1]) - np.arctan2(*(o.quad[1] - o.quad[0])[::-1]))
                  for w, o in quads]  # fmt: skip
        assert np.allclose(np.abs(angles), 2)
        back = move(turned, turning(-angles[0], 240, 240), 240, 240)
        inner = slice(15, -15)
        assert psnr(back.pixels[inner, inner], scene.pixels[inner, inner]) > 20
        assert psnr(turned.pixels, scene.pixels) < psnr(back.pixels[inner, inner], scene.pixels[inner, inner])


def test_turning_a_picture_turns_the_gaze_in_it(scenes: list[Scene]) -> None:
    face = scenes[0].faces[0]
    turned = move(scenes[0], turning(90, 240, 240), 240, 240)
    faces = [f for f in turned.faces if f.mask.sum() > 0.98 * face.mask.sum()]
    x, y, z = direction(face.yaw, face.pitch)
    assert any(np.allclose(direction(f.yaw, f.pitch), (-y, x, z)) for f in faces)


def test_recoloured_and_watermarked_keep_the_form(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        before = scene.pixels.mean(axis=2).ravel()
        recoloured = duplicate(scene, "recoloured", rng(seed))
        assert np.corrcoef(before, recoloured.pixels.mean(axis=2).ravel())[0, 1] > 0.95
        assert 10 < psnr(recoloured.pixels, scene.pixels) < 40
        marked = duplicate(scene, "watermarked", rng(seed))
        changed = (np.abs(marked.pixels.astype(int) - scene.pixels) > 3).any(axis=2).mean()
        assert 0.01 < changed < 0.5
        assert recoloured.caption == marked.caption == scene.caption


def test_things_that_leave_the_picture_leave_the_truth(scenes: list[Scene]) -> None:
    scene = scenes[0]
    gone = move(scene, shifting(-1000, 0), 240, 240)
    assert gone.caption == "nothing"
    assert gone.words == ()
    whole = move(scene, mirroring(240), 240, 240)
    assert len(whole.things) == len(scene.things)


def test_copies_repeat_with_the_seed_and_leave_the_original_alone(scenes: list[Scene]) -> None:
    before = scenes[0].pixels.copy()
    for kind in DUPLICATES:
        first, again = (duplicate(scenes[0], kind, rng(9)).pixels for _ in range(2))
        assert (first == again).all()
    for kind in DEFECTS:
        first, again = (spoil(scenes[0], kind, rng(9)).pixels for _ in range(2))
        assert (first == again).all()
    assert (scenes[0].pixels == before).all()


def issues(pixels: np.ndarray) -> set[str]:
    """What CleanVision says by its definitions and thresholds (for blur: `sharpness`) of the file once written."""
    import cv2

    image = Image.open(io.BytesIO(encode(pixels, ".jpg", 90)))
    colour = np.asarray(image.convert("RGB"))
    light = brightness(colour)
    found = set()
    if np.percentile(light, 99) < 0.32:
        found.add("dark")
    if 1 - np.percentile(light, 5) < 0.05:
        found.add("light")
    if image.convert("RGB").entropy() * 0.1 < 0.3:
        found.add("low_information")
    if image.mode == "L":
        found.add("grayscale")
    if min(image.width / image.height, image.height / image.width) < 0.35:
        found.add("odd_aspect_ratio")
    scale = min(1.0, 256 / max(image.size))
    grey = cv2.resize(np.asarray(image.convert("L")), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    edges = cv2.filter2D(grey, cv2.CV_32F, np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float32))
    if 1 - np.exp(-edges.std() / 100) < 0.06:
        found.add("blurry")
    side = np.sqrt(image.width * image.height)
    if side < 100:  # far from the 240 of the others
        found.add("odd_size")
    return found


# What little contrast, or a strip of plain background, brings with it.
FOLLOWS = {
    "dark": {"blurry", "low_information"},
    "light": {"blurry", "low_information"},
    "low_information": {"blurry"},
    "grayscale": {"low_information"},
    "odd_aspect_ratio": {"blurry", "low_information"},
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_score_as_such(scenes: list[Scene], defect: str) -> None:
    for seed, scene in enumerate(scenes):
        found = issues(spoil(scene, defect, rng(seed)).pixels)
        assert defect in found
        assert found - {defect} <= FOLLOWS.get(defect, set())


def test_good_scenes_have_no_issues_and_neither_have_copies(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        assert issues(scene.pixels) == set()
        for kind in DUPLICATES:
            assert issues(duplicate(scene, kind, rng(seed)).pixels) == set(), kind


def test_an_odd_strip_has_the_area_of_the_others(scenes: list[Scene]) -> None:
    strip = spoil(scenes[0], "odd_aspect_ratio", rng(1))
    height, width = strip.pixels.shape[:2]
    assert height * width == pytest.approx(240 * 240, rel=0.05)
    assert all(thing.mask.shape == (height, width) for thing in strip.objects)


def test_broken_files_cannot_be_read(scenes: list[Scene]) -> None:
    data = encode(scenes[0].pixels, ".jpg", 90)
    for kind in BROKEN:
        broken = break_file(data, kind, rng(2))
        with pytest.raises((OSError, SyntaxError)):
            Image.open(io.BytesIO(broken)).load()
    assert Image.open(io.BytesIO(data)).size == (240, 240)


def test_unknown_kinds_are_refused(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match=r"kind must be one of exact.* but is 'copied'"):
        duplicate(scenes[0], "copied", rng())
    with pytest.raises(ValueError, match=r"defect must be one of dark.* but is 'ugly'"):
        spoil(scenes[0], "ugly", rng())
    with pytest.raises(ValueError, match=r"kind must be one of truncated.* but is 'burnt'"):
        break_file(b"", "burnt", rng())

"""Single drawings: layers, objects, signs, faces, and what a camera does."""

from __future__ import annotations

import numpy as np
import pytest

from labelmill.operators.miniatures import faces
from labelmill.operators.miniatures.backgrounds import add_noise, background, jpeg_round_trip
from labelmill.operators.miniatures.canvas import Canvas, mask_box, palette
from labelmill.operators.miniatures.faces import direction, draw_head
from labelmill.operators.miniatures.objects import STYLES, colours, draw, kinds, nearest_colour, shade
from labelmill.operators.miniatures.signs import FONTS, font, print_sign
from labelmill.operators.miniatures.training.pieces import NEAR
from labelmill.operators.miniatures.words import WORDS, draw_text, held_out, vocabulary
from labelmill.operators.miniatures.world import draw_face, draw_object, draw_word


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_layer_covers_what_was_drawn_and_nothing_else() -> None:
    canvas = Canvas(20, 10, 4)
    canvas.fill(np.array([(5.0, 2.0), (15.0, 2.0), (15.0, 8.0), (5.0, 8.0)]), 7)
    layer = canvas.layer(palette({7: (1.0, 0.5, 0.0)}))
    assert mask_box(layer.mask) == (5.0, 2.0, 15.0, 8.0)
    assert layer.rgba[5, 10].tolist() == [255, 128, 0, 255]
    assert layer.rgba[0, 0].tolist() == [0, 0, 0, 0]
    pixels = np.full((12, 12, 3), 100, np.uint8)
    layer.over(pixels, -5, 4)  # sticks out to the left and below
    assert pixels[6, 0].tolist() == [255, 128, 0]
    assert pixels[5, 0].tolist() == [100, 100, 100]
    assert pixels[6, 11].tolist() == [100, 100, 100]
    before = pixels.copy()
    layer.over(pixels, 30, 30)
    assert (pixels == before).all()


@pytest.mark.parametrize("kind", kinds())
def test_an_object_fills_the_asked_size_in_every_style_and_colour(kind: str) -> None:
    for seed, style in enumerate(STYLES):
        for size in (20, 70):
            drawn = draw(kind, colours()[seed], size, rng(seed), style)
            box = mask_box(drawn.mask)
            assert box is not None
            assert abs(max(box[2] - box[0], box[3] - box[1]) - size) <= 2
            assert np.count_nonzero(drawn.mask) > 0.15 * (box[2] - box[0]) * (box[3] - box[1])
            layer = drawn.layer(rng(seed))
            assert (layer.mask == drawn.mask).all()
            assert (layer.rgba[:, :, :3].max(axis=2) <= layer.rgba[:, :, 3]).all(), "colour is multiplied by coverage"


def test_kinds_have_silhouettes_of_their_own() -> None:
    """Leave-one-out nearest neighbours on 20 × 20 silhouettes find the kind far above chance (5 %)."""
    import cv2

    random = rng(4)
    shapes, labels = [], []
    for _ in range(30):
        for label, kind in enumerate(kinds()):
            mask = draw(kind, "red", 60, random, "flat").mask.astype(np.float32)
            shapes.append(cv2.resize(mask, (20, 20), interpolation=cv2.INTER_AREA).ravel())
            labels.append(label)
    matrix, truth = np.stack(shapes), np.array(labels)
    distances = ((matrix[:, None, :] - matrix[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(truth[distances.argmin(axis=1)] == truth) > 0.6


def test_an_object_like_its_backdrop_gets_a_rim_that_shows() -> None:
    drawn = draw("apple", "white", 80, rng(1), "flat")
    plain = drawn.layer(rng(2), backdrop=(0.2, 0.2, 0.2)).rgba[drawn.mask][:, :3]
    rimmed = drawn.layer(rng(2), backdrop=(0.95, 0.95, 0.95)).rgba[drawn.mask][:, :3]
    assert plain.max(axis=1).min() > rimmed.max(axis=1).min() + 40


def test_shades_are_nearest_to_the_colour_whose_name_they_go_by() -> None:
    rng = np.random.default_rng(0)
    for colour in colours():
        found = [nearest_colour(shade(colour, rng)) for _ in range(300)]
        assert {name for name, _ in found} == {colour}
        assert max(apart for _, apart in found) < NEAR


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of car, bus.* but is 'lorry'"):
        draw("lorry", "red", 50, rng())
    with pytest.raises(ValueError, match=r"colour must be one of red.* but is 'pink'"):
        draw("car", "pink", 50, rng())
    with pytest.raises(ValueError, match=r"style must be one of flat.* but is 'neon'"):
        draw("car", "red", 50, rng(), "neon")
    with pytest.raises(ValueError, match="size must be at least 16 pixels but is 8"):
        draw_object("car", "red", rng(), 8)


@pytest.mark.parametrize("seed", range(24))
def test_quads_are_the_extent_of_the_ink(seed: int) -> None:
    import cv2

    sign = print_sign([["Hamburg"], ["EXIT"]], 22, rng(seed))
    assert sign.texts == ("Hamburg", "EXIT")
    for quad in sign.quads:
        # Turn the word upright at 4 × its size, with 3 pixels of board around it.
        width, height = (np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[3] - quad[0]))
        right, down = (quad[1] - quad[0]) / width, (quad[3] - quad[0]) / height
        scale, pad = 4, 3
        linear = np.stack([right, down]) * scale
        matrix = np.column_stack([linear, pad * scale - linear @ quad[0]])
        matrix[:, 2] += linear @ np.array([0.5, 0.5]) - 0.5
        size = (round((width + 2 * pad) * scale), round((height + 2 * pad) * scale))
        upright = cv2.warpAffine(sign.layer.rgba[:, :, :3], matrix, size, flags=cv2.INTER_LINEAR).astype(float)
        difference = np.abs(upright - np.median(upright[: 2 * scale], axis=(0, 1))).sum(axis=2)
        box = mask_box(difference > difference.max() * 0.4)
        assert box is not None
        expected = np.array([pad, pad, pad + width, pad + height])
        assert np.abs(np.array(box) / scale - expected).max() < 1.6


def test_signs_grow_no_wider_than_their_limit() -> None:
    for seed in range(10):
        sign = print_sign([["restaurants", "everywhere"]], 40, rng(seed), limit=150)
        assert sign.layer.size[0] < 150 * 1.15  # a turned sign is a little wider
    with pytest.raises(ValueError, match="lines must hold at least one word each"):
        print_sign([], 20, rng())
    with pytest.raises(ValueError, match="lines must hold at least one word each"):
        print_sign([["a", " "]], 20, rng())


def test_every_font_prints_every_character_differently() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    for name in FONTS:
        shapes = {bytes(font(name, 40).getmask(letter)) for letter in letters}
        assert len(shapes) == len(letters), name


def test_vocabulary_is_split_once_and_for_all() -> None:
    assert len(WORDS) == len(set(WORDS)) >= 400
    assert list(WORDS) == sorted(WORDS)
    assert all(word.isalpha() and word.islower() for word in WORDS)
    assert set(vocabulary("seen")) | set(vocabulary("held_out")) == set(WORDS)
    assert not set(vocabulary("seen")) & set(vocabulary("held_out"))
    assert 0.08 < len(vocabulary("held_out")) / len(WORDS) < 0.18
    assert held_out("OPEN") == held_out("open") == held_out("Open")
    texts = [draw_text(rng(seed), "held_out") for seed in range(60)]
    assert all(held_out(text) for text in texts)
    assert any(text.isdigit() for text in texts)
    assert any(text.isupper() for text in texts)
    with pytest.raises(ValueError, match="words must be"):
        draw_text(rng(), "some")


def pupils(face: faces.Looking) -> np.ndarray:
    """Mean position of the pupils, relative to the middle of the head, in half widths of the head."""
    rgba = face.layer.rgba
    ys, xs = np.nonzero((rgba[:, :, :3].max(axis=2) < 14) & (rgba[:, :, 3] == 255))
    width, height = face.layer.size
    return np.array([xs.mean() + 0.5 - width / 2, ys.mean() + 0.5 - height / 2]) / (width / 2.9)


def test_gaze_follows_the_convention_of_l2cs_net() -> None:
    assert np.allclose(direction(0, 0), (0, 0, -1)), "into the camera"
    assert np.allclose(direction(90, 0), (-1, 0, 0)), "to the left edge"
    assert np.allclose(direction(0, 90), (0, -1, 0)), "up"
    left, right = (np.mean([pupils(draw_head(120, rng(s), yaw, 0))[0] for s in range(5)]) for yaw in (35, -35))
    assert left < -0.2
    assert right > 0.2
    up, down = (np.mean([pupils(draw_head(120, rng(s), 0, pitch))[1] for s in range(5)]) for pitch in (25, -25))
    assert down - up > 0.25


def test_pupils_move_with_the_gaze_in_a_still_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "HEAD_YAW", 0.0)
    monkeypatch.setattr(faces, "HEAD_PITCH", 0.0)
    across = [pupils(draw_head(200, rng(3), yaw, 0))[0] for yaw in range(-20, 21, 4)]
    along = [pupils(draw_head(200, rng(3), 0, pitch))[1] for pitch in range(-14, 15, 4)]
    assert (np.diff(across) < -0.005).all()
    assert (np.diff(along) < -0.005).all()


def test_gaze_can_be_told_from_the_pupils() -> None:
    looks = [draw_head(110, rng(seed)) for seed in range(80)]
    truth = np.array([direction(face.yaw, face.pitch)[:2] for face in looks])
    seen = np.array([pupils(face) for face in looks])
    assert np.corrcoef(truth[:, 0], seen[:, 0])[0, 1] > 0.95
    assert np.corrcoef(truth[:, 1], seen[:, 1])[0, 1] > 0.85


def test_faces_keep_their_angles_in_range() -> None:
    _, yaw, pitch = draw_face(rng(1), 64, -52, 33)
    assert (yaw, pitch) == (-52, 33)
    looks = [draw_head(50, rng(seed)) for seed in range(60)]
    assert max(abs(face.yaw) for face in looks) <= 52
    assert max(abs(face.pitch) for face in looks) <= 33
    assert np.std([face.yaw for face in looks]) > 15
    with pytest.raises(ValueError, match="yaw must be between -52 and 52 degrees but is 60"):
        draw_face(rng(), yaw=60)
    with pytest.raises(ValueError, match="pitch must be between -33 and 33 degrees but is nan"):
        draw_face(rng(), pitch=float("nan"))


def test_crops_are_images_and_repeat_with_the_seed() -> None:
    for make in (
        lambda r: draw_object("fish", "blue", r, 48),
        lambda r: draw_word("Market", r),
        lambda r: draw_face(r, 60)[0],
    ):
        first, again, other = make(rng(1)), make(rng(1)), make(rng(2))
        assert first.dtype == np.uint8
        assert first.ndim == 3
        assert min(first.shape[:2]) > 5
        assert (first == again).all()
        assert first.shape != other.shape or (first != other).any()
    assert draw_object("fish", "blue", rng(), 48).shape == (48, 48, 3)
    wide = draw_word("Market", rng(3), height=20)
    assert wide.shape[1] > 2 * wide.shape[0]


def test_backgrounds_are_neither_black_nor_white() -> None:
    means = [background(64, 48, rng(seed)).mean() for seed in range(40)]
    assert background(64, 48, rng()).shape == (48, 64, 3)
    assert min(means) > 40
    assert max(means) < 225


def test_noise_has_the_asked_strength() -> None:
    grey = np.full((100, 100, 3), 128, np.uint8)
    noisy = add_noise(grey, 6, rng()).astype(float)
    assert abs(noisy.mean() - 128) < 0.6
    assert abs(noisy.std() - 6) < 0.5


def test_jpeg_keeps_the_order_of_the_channels() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[:, :, 0] = 200
    assert np.abs(jpeg_round_trip(red, 90).astype(int) - red).max() < 6

"""Objects cut out of their images, as loaders of image folders see them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from labelmill.pipelines.exports import exporter
from labelmill.pipelines.exports.dataset import ExportError, ExportImage
from tests.pipelines.exports.scenes import CLASSES, detection, disc, picture, tree, write_dataset

export = partial(write_dataset, "crops")


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    found = [detection("disc", (3, 4, 13, 24)), detection("ring", (0, 0, 64, 48)), detection("disc", (9, 9, 1, 1))]
    images = [picture(tmp_path / "source", number, found, ("train", "val")[number % 2]) for number in range(1, 4)]
    summary = export(tmp_path / "crops", images, ("train", "val"), format="png")
    assert summary.annotations == {"disc": 3, "stop sign": 0, "ring": 3}
    assert summary.images == {"train": 1, "val": 2}
    assert summary.skipped == {"box is inverted": 3}
    for split, numbers in (("train", [2]), ("val", [1, 3])):
        dataset = ImageFolder(str(tmp_path / "crops" / split), allow_empty=True)
        assert dataset.classes == sorted(CLASSES)
        names = {(dataset.classes[label], Path(path).name) for path, label in dataset.samples}
        assert names == {
            (name, f"{number:08d}-{number}-{position:03d}.png")
            for number in numbers
            for name, position in (("disc", 1), ("ring", 2))
        }
    whole = pixels(images[1].uri)
    assert np.array_equal(pixels(tmp_path / "crops/train/disc/00000002-2-001.png"), whole[4:24, 3:13])
    assert np.array_equal(pixels(tmp_path / "crops/train/ring/00000002-2-002.png"), whole)


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((10, 10, 20, 30), 0.0, (10, 10, 20, 30)),
        ((10, 10, 20, 30), 0.25, (7, 5, 23, 35)),
        ((1, 1, 21, 21), 0.5, (0, 0, 31, 31)),
        ((50, 40, 64, 48), 2.0, (22, 24, 64, 48)),
        ((10.4, 10.6, 20.4, 30.6), 0.0, (10, 10, 21, 31)),
        ((63.4, 0, 64, 0.6), 0.0, (63, 0, 64, 1)),
    ],
)
def test_a_crop_is_the_box_and_its_margin(
    tmp_path: Path, box: tuple[float, ...], margin: float, expected: tuple[int, ...]
) -> None:
    image = picture(tmp_path / "source", 1, [detection("disc", box)])
    export(tmp_path / "crops", [image], format="png", margin=margin)
    x1, y1, x2, y2 = expected
    found = pixels(tmp_path / "crops/disc/00000001-1-001.png")
    assert np.array_equal(found, pixels(image.uri)[y1:y2, x1:x2])


def test_jpeg_of_a_quality(tmp_path: Path) -> None:
    image = picture(tmp_path / "source", 1, [detection("disc", (0, 0, 64, 48))])
    sizes = []
    for quality in (95, 30):
        export(tmp_path / str(quality), [image], quality=quality)
        path = tmp_path / str(quality) / "disc/00000001-1-001.jpg"
        with Image.open(path) as found:
            assert (found.format, found.mode, found.size) == ("JPEG", "RGB", (64, 48))
        sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_mask_is_the_alpha_channel(tmp_path: Path, margin: float) -> None:
    mask = disc(48, 64, 30, 20, 9)
    # A box smaller than its mask cuts the mask; without a mask, the box is opaque.
    found = [
        detection("disc", mask=mask),
        detection("disc", (25, 15, 35, 25), mask),
        detection("ring", (50, 30, 60, 40)),
    ]
    image = picture(tmp_path / "source", 1, found)
    summary = export(tmp_path / "crops", [image], alpha=True, margin=margin)
    whole = pixels(image.uri)
    box = np.zeros((48, 64), bool)
    box[30:40, 50:60] = True
    for name, position, (x1, y1, x2, y2), opaque in (
        ("disc", 1, (21, 11, 40, 30), mask),
        ("disc", 2, (25, 15, 35, 25), mask),
        ("ring", 3, (50, 30, 60, 40), box),
    ):
        wide, high = margin * (x2 - x1), margin * (y2 - y1)
        area = np.s_[max(int(y1 - high), 0) : int(np.ceil(y2 + high)), int(x1 - wide) : int(np.ceil(x2 + wide))]
        cut = pixels(tmp_path / f"crops/{name}/00000001-1-{position:03d}.png")
        assert np.array_equal(cut[..., :3], whole[area])
        assert np.array_equal(cut[..., 3], opaque[area] * 255)
    assert "1 object has no mask; the alpha is then that of the box." in summary.notes


def test_names_never_collide(tmp_path: Path) -> None:
    found = [detection("disc", (1, 1, 9, 9)), detection("disc", (1, 1, 9, 9))]
    images = [picture(tmp_path / "source", number, found, key=f"{number}/a.jpg") for number in (1, 2)]
    export(tmp_path / "crops", images)
    assert len(list((tmp_path / "crops/disc").iterdir())) == 4


def test_crops_are_upright(tmp_path: Path) -> None:
    """40 by 20 as stored, 20 by 40 upright; the left of the stored image is the top of the upright one."""
    path = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:, :20] = 255
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    image = ExportImage(1, "sideways.jpg", str(path), 20, 40, None, [detection("disc", (0, 2, 20, 18))], "JPEG")
    export(tmp_path / "crops", [image], format="png")
    found = pixels(tmp_path / "crops/disc/00000001-sideways-001.png")
    assert found.shape == (16, 20, 3)
    assert found.mean() > 250


def test_an_image_that_changed_or_broke_stops_the_export_by_name(tmp_path: Path) -> None:
    image = picture(tmp_path / "source", 1, [detection("disc", (1, 1, 9, 9))])
    Image.new("RGB", (10, 10)).save(image.uri, "PNG")
    with pytest.raises(ExportError, match=r"image '1\.png' must be 64 by 48, as when the run saw it, but is 10 by 10"):
        export(tmp_path / "crops", [image])
    Path(image.uri).write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"image '1\.png' cannot be read: not an image"):
        export(tmp_path / "again", [image])


@pytest.mark.parametrize(
    "params", [{"margin": -0.1}, {"margin": float("nan")}, {"quality": 0}, {"format": "gif"}, {"images": "link"}]
)
def test_wrong_parameters(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        exporter("crops").Params.model_validate(params)


def test_alpha_needs_png() -> None:
    with pytest.raises(ValidationError, match="format must be png with alpha but is jpeg"):
        exporter("crops").Params.model_validate({"alpha": True, "format": "jpeg"})


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        images = [picture(tmp_path / "source", number, [detection("disc", (1, 1, 9, 9))]) for number in range(1, 9)]
        export(tmp_path / name, images)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 9
    assert (tmp_path / "one/stop sign").is_dir()

"""What a transparent picture is put on."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from labelmill.operators.images.decoded import decode

SIZE = (120, 40)


def written(colour: tuple[int, int, int], behind: tuple[int, int, int, int] = (0, 0, 0, 0), kind: str = "PNG") -> bytes:
    """A word in a colour on a ground."""
    image = Image.new("RGBA", SIZE, behind)
    ImageDraw.Draw(image).text((5, 5), "STOP", fill=(*colour, 255), font_size=24)
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def contrast(data: bytes) -> int:
    return int(np.ptp(decode(data).pixels.mean(axis=2)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("colour", [(255, 255, 255), (235, 240, 235), (0, 0, 0), (200, 30, 30), (250, 220, 60)])
def test_writing_on_a_transparent_ground_is_seen_whatever_its_colour(colour: tuple[int, int, int], kind: str) -> None:
    assert contrast(written(colour, kind=kind)) > 40


def test_the_ground_is_white_unless_all_that_is_seen_is_white() -> None:
    for colour, ground in (((0, 0, 0), 255), ((200, 30, 30), 255), ((255, 255, 255), 0)):
        assert decode(written(colour)).pixels[0, 0].tolist() == [ground] * 3
    # White writing with a red border beside it is not all that is seen.
    image = Image.open(io.BytesIO(written((255, 255, 255))))
    ImageDraw.Draw(image).rectangle((0, 30, 119, 39), fill=(200, 30, 30, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    assert decode(file.getvalue()).pixels[0, 0].tolist() == [255] * 3


def test_a_picture_of_a_white_wall_with_a_clear_corner_stays_on_white() -> None:
    image = Image.new("RGBA", SIZE, (250, 250, 250, 255))
    image.paste((0, 0, 0, 0), (0, 0, 10, 10))  # a fiftieth
    file = io.BytesIO()
    image.save(file, "PNG")
    assert decode(file.getvalue()).pixels[0, 0].tolist() == [255] * 3


def test_nothing_to_be_seen_is_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", SIZE, (255, 255, 255, 0)).save(file, "PNG")
    assert decode(file.getvalue()).pixels.min() == 255

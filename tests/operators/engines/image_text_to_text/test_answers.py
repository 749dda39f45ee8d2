"""How answers are read, and images written into requests."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelmill.operators.engines.image_text_to_text.choice_answer import ChoiceAnswer
from labelmill.operators.engines.image_text_to_text.json_answer import JsonAnswer
from labelmill.operators.images.data_url import MAX_BYTES, data_url
from labelmill.operators.images.decoded import decode

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

# ---------------------------------------------------------------- JSON


@settings(max_examples=60, deadline=None)
@given(value=st.dictionaries(st.text(max_size=5), values, max_size=4), before=st.text("abc .:\n`", max_size=20))
def test_json_is_found_in_words_around_it(value: dict[str, Any], before: str) -> None:
    answer = JsonAnswer({"type": "object"})
    expected = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    for indent in (None, 2):
        assert answer.read(f"{before}{json.dumps(value, indent=indent)}{before}") == expected


def test_of_several_the_first_that_fits() -> None:
    answer = JsonAnswer({"type": "object", "required": ["a"]})
    assert answer.read('{"b": 1} and [3] but {like [this]} {"a": {"a": 2}} or {"a": 3}') == '{"a":{"a":2}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red", "is not JSON: 'red'"),
        ("", "is not JSON"),
        ('{"a": 1', "is not JSON"),
        ('{"c": {"a": 1}, "d', "is not JSON"),
        ('{"c": {"a": 1}, d}', "is not JSON"),
        ('{"a": NaN}', "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ('{"a": "x"}', r"does not fit the schema: at \$\.a: 'x' is not of type"),
        ('{"a": 1, "c": 2}', r"'c' was unexpected"),
        ('{"a": 1e999}', "not JSON compliant"),
        ('{"a": 1, "b": "\\ud83d"}', "surrogates not allowed"),
    ],
)
def test_json_that_does_not_fit(text: str, message: str) -> None:
    schema = {"properties": {"a": {"type": "number"}, "b": {}}, "additionalProperties": False, "type": "object"}
    with pytest.raises(ValueError, match=message):
        JsonAnswer(schema).read(text)


def test_references_within_a_schema() -> None:
    schema = {"$defs": {"side": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/side"}}
    assert JsonAnswer(schema).read("[1, 2]") == "[1,2]"
    with pytest.raises(ValueError, match="is not of type 'integer'"):
        JsonAnswer(schema).read('["a"]')


# ---------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("text", "choice"),
    [("yes", "yes"), (" Yes.\n", "yes"), ('"No"', "no"), ('"No".', "no"), ("**no**", "no"), ("No, none.", "no")],
)
def test_a_choice_is_read(text: str, choice: str) -> None:
    assert ChoiceAnswer(["yes", "no"]).read(text) == choice


@pytest.mark.parametrize("text", ["", "maybe", "nothing", "no one", "the answer is yes"])
def test_what_is_no_choice(text: str) -> None:
    with pytest.raises(ValueError, match="must be one of yes, no but is"):
        ChoiceAnswer(["yes", "no"]).read(text)


def test_capitals_and_longer_choices() -> None:
    assert ChoiceAnswer(["us", "US"]).read("US") == "US"
    assert ChoiceAnswer(["red", "red car"]).read("Red car.") == "red car"
    assert ChoiceAnswer(["Dr. No", "Dr"]).read("Dr. No") == "Dr. No"


def logs(**shares: float) -> list[tuple[str, float]]:
    return [(token.replace("_", " "), math.log(share)) for token, share in shares.items()]


def test_probability_is_the_product_over_places_that_differ() -> None:
    answer = ChoiceAnswer(["red", "blue car", "blue cup"])
    first = ("blue", logs(blue=0.5, red=0.25, green=0.25))
    second = (" car", logs(_car=0.6, _cup=0.2, _cat=0.2))
    assert answer.probability("blue car", [first, second]) == pytest.approx(0.5 / 0.75 * 0.6 / 0.8)
    assert answer.probability("blue cup", [first, (" cup", second[1])]) == pytest.approx(0.5 / 0.75 * 0.2 / 0.8)
    assert answer.probability("red", [("red", first[1])]) == pytest.approx(0.25 / 0.75)
    # A space or quotation mark in front says nothing yet.
    assert answer.probability("red", [("\n", logs(a=1)), ("red", first[1])]) is None
    assert answer.probability("red", [("\n", [("\n", 0.0)]), ("red", first[1])]) == pytest.approx(0.25 / 0.75)


def test_probability_of_a_choice_that_begins_another() -> None:
    answer = ChoiceAnswer(["red", "red car"])
    first = ("red", logs(red=1.0))
    end = ("<end>", [("<end>", math.log(0.75)), (" car", math.log(0.25))])
    assert answer.probability("red", [first, end]) == pytest.approx(0.75)
    assert answer.probability("red car", [first, (" car", end[1])]) == pytest.approx(0.25)
    assert answer.probability("red", [first]) is None
    assert answer.probability("red", []) is None


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["yes", "Yes", " no", "NO", "n", "maybe"]), st.floats(-9, 0), min_size=1))
def test_probabilities_of_all_choices_add_up(place: dict[str, float]) -> None:
    answer = ChoiceAnswer(["yes", "no"])
    shares = [
        answer.probability(choice, [(token, list(place.items()))]) for choice, token in (("yes", "yes"), ("no", "no"))
    ]
    if all(token == "maybe" for token in place):
        assert shares == [None, None]
    else:
        assert sum(share or 0 for share in shares) == pytest.approx(1)


# ---------------------------------------------------------------- images


def written(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def sent(data: bytes, **options: Any) -> tuple[str, bytes, Image.Image]:
    kind, text = data_url(decode(data), **options).split(";base64,")
    content = base64.b64decode(text)
    return kind, content, Image.open(io.BytesIO(content))


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Colours run from corner to corner, so that JPEG changes little."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([x, y, 1 - x], axis=-1) * 255
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(("mode", "format_"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG")])
def test_a_file_that_anybody_reads_is_sent_as_it_is(mode: str, format_: str) -> None:
    data = written(smooth(40, 30, mode), format_)
    kind, content, _ = sent(data)
    assert (kind, content) == (f"data:image/{format_.lower()}", data)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return written(smooth(40, 30), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        written(smooth(40, 30, "CMYK"), "JPEG"),
        written(smooth(40, 30, "P"), "PNG"),
        written(smooth(40, 30, "RGBA"), "PNG"),
        written(smooth(40, 30), "PNG", transparency=(0, 0, 255)),
        written(smooth(40, 30), "BMP"),
        written(smooth(40, 30), "WEBP"),
        turned(),
    ],
)
def test_other_files_are_compressed_once_from_the_upright_pixels(data: bytes) -> None:
    kind, content, image = sent(data)
    assert kind == "data:image/jpeg"
    assert content != data
    expected = decode(data).pixels
    assert np.abs(np.asarray(image).astype(int) - expected).mean() < 3


def test_large_images_are_made_smaller_and_large_files_compressed() -> None:
    _, _, image = sent(written(smooth(400, 100), "PNG"), max_side=200)
    assert image.size == (200, 50)
    _, _, thin = sent(written(smooth(400, 1), "PNG"), max_side=100)
    assert thin.size == (100, 1)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8))
    data = written(noise, "PNG")
    assert len(data) > MAX_BYTES
    assert sent(data)[0] == "data:image/jpeg"
    assert sent(data, max_side=100)[2].size == (100, 100)


def test_a_server_that_reads_less_gets_less() -> None:
    png = written(smooth(40, 30), "PNG")
    assert sent(png, formats=["JPEG"])[0] == "data:image/jpeg"
    assert sent(written(smooth(40, 30), "JPEG"), formats=["PNG"])[0] == "data:image/png"
    assert sent(written(smooth(40, 30), "WEBP"), formats=["WEBP"])[0] == "data:image/webp"

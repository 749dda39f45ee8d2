"""`verify`: other models' opinions about detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.classify import Classify
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detections.crops import crop
from labelmill.operators.embed import Embed
from labelmill.operators.engines.image_text_to_text.answerer import Reply
from labelmill.operators.errors import OperatorError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import load_card
from labelmill.operators.verify import Verify
from tests.drawing import encode, picture
from tests.operators.engines.detection.tiny_detectors import FOLDER
from tests.operators.test_select import box

CLIP, VLM = load_card(FOLDER / "clip-random.yaml"), load_card(FOLDER / "vlm-miniature.yaml")
ONTOLOGY = {"car": ["car", "taxi"], "truck": "truck", "stop sign": "stop sign"}


def verify(**params: Any) -> Verify:
    operator = Verify(Verify.Params(ontology=ONTOLOGY, **params))
    operator.check(dict.fromkeys(operator.reads(), DETECTIONS))
    operator.load()
    return operator


def infer(operator: Verify, *rows: dict[str, Any], seed: int = 0) -> list[Any]:
    return operator.infer([operator.prepare(picture(80, 60, seed + n), row) for n, row in enumerate(rows)])


@pytest.fixture(scope="module")
def namer() -> Verify:
    return verify(model=CLIP, chunk=2)


# ---------------------------------------------------------------- a model that names crops

CASES = [box(10, 10, 40, 30, "car"), box(50, 5, 70, 55, "truck"), box(-5, -5, 20, 20, "stop sign"), box(0, 0, 80, 60)]


def test_names_are_what_classify_says_of_the_crop(namer: Verify) -> None:
    (row,) = infer(namer, {"detections": CASES})
    embed, classify = Embed(Embed.Params(model=CLIP)), Classify(Classify.Params(model=CLIP, ontology=ONTOLOGY))
    embed.load()
    classify.load()
    pixels = picture(80, 60).pixels
    crops = [crop(pixels, [each[side] for side in ("x1", "y1", "x2", "y2")], 0.05, square=True) for each in CASES]
    images = [DecodedImage(each, b"", "PNG", "RGB", 1, 1) for each in crops]
    vectors = [each["embedding"] for each in embed.infer([embed.prepare(image, {}) for image in images])]
    column = pa.array([vector.tolist() for vector in vectors], embed.writes().field("embedding").type)
    named = classify.compute(pa.table({"embedding": column})).columns
    assert named is not None
    expected = [
        found[list(ONTOLOGY).index(each["class"])]
        for found, each in zip(named.column("probabilities").to_pylist(), CASES, strict=True)
    ]
    np.testing.assert_allclose(row["class_probability"], expected, atol=2e-3)  # an embedding is float16
    assert row["best_class"] == named.column("class").to_pylist()
    assert row["agreement"] == row["class_probability"]


def test_what_cannot_be_named_has_no_opinion_and_its_neighbours_have(namer: Verify) -> None:
    nan = {**box(0, 0, 9, 9), "x1": float("nan")}
    odd = [box(30, 30, 20, 40), box(90, 70, 99, 80), nan, box(0, 0, 9, 9, "unicorn"), box(0, 0, 9, 9, None), CASES[0]]
    (row, alone) = infer(namer, {"detections": odd}, {"detections": CASES[:1]})
    for name in ("class_probability", "best_class", "agreement"):
        assert row[name][:5] == [None] * 5
        assert row[name][5] is not None and alone[name][0] is not None


def test_a_batch_gives_what_single_images_give(namer: Verify) -> None:
    rows = [{"detections": CASES}, {"detections": []}, {"detections": None}, {"detections": CASES[1:]}]
    together = infer(namer, *rows)
    for number, row in enumerate(rows):
        (alone,) = infer(namer, row, seed=number)
        for name, values in alone.items():
            if values and name != "best_class":
                np.testing.assert_allclose(together[number][name], values, atol=1e-5)
            else:
                assert together[number][name] == values
    assert together[1] == {"class_probability": [], "best_class": [], "agreement": []}
    assert together[2] == dict.fromkeys(together[1])


def test_numbers_that_are_not_finite_fail_their_image(namer: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    images = namer._namer._images
    monkeypatch.setattr(images, "encode", lambda items: np.full((len(items), len(namer._namer._vectors[0])), np.nan))
    failed, empty = infer(namer, {"detections": CASES}, {"detections": []})
    assert "not finite" in str(failed)
    assert empty["agreement"] == []


# ---------------------------------------------------------------- another detector


def test_another_detector_agrees_where_it_found_the_same_class_in_the_same_place() -> None:
    operator = verify(against="detect_2.detections")
    assert operator.reads() == ("detections", "detect_2.detections")
    mine = [box(0, 0, 10, 10), box(20, 0, 30, 10), box(40, 0, 50, 10), box(5, 5, 5, 9), box(0, 0, 10, 10, None)]
    other = [box(0, 0, 10, 8), box(0, 0, 10, 10, "truck"), box(20, 4, 30, 14), box(3, 3, 3, 3), box(0, 0, 4, 4, None)]
    (row,) = infer(operator, {"detections": mine, "detect_2.detections": other})
    assert row["overlap"] == pytest.approx([0.8, 60 / 140, 0, None, None])
    assert row["agreement"] == [1, 0, 0, None, None]
    (row,) = infer(verify(against="detect_2.detections", iou=0.4), {"detections": mine, "detect_2.detections": other})
    assert row["agreement"] == [1, 1, 0, None, None]
    (row,) = infer(operator, {"detections": mine, "detect_2.detections": []})
    assert row["agreement"] == [0, 0, 0, None, None]
    (row,) = infer(operator, {"detections": [], "detect_2.detections": other})
    assert row == {"overlap": [], "agreement": []}


def test_nobody_looked_is_not_the_same_as_nothing_found() -> None:
    operator = verify(against="other")
    data = encode_of(picture(80, 60))
    rows = pa.table(
        {
            "image_id": pa.array([1, 2], pa.int64()),
            "key": ["a", "b"],
            "detections": pa.array([[box(0, 0, 9, 9)], None], DETECTIONS),
            "other": pa.array([None, []], DETECTIONS),
        }
    )
    table, _ = apply(Job(Worker(operator), rows, np.array([True, True])), ShardImages(["a", "b"], lambda uri: data))
    assert table.column("decision").to_pylist() == ["failed", "kept"]
    assert "no other: nobody looked" in table.column("decision.reason")[0].as_py()
    assert table.column("agreement").to_pylist() == [None, None]


def encode_of(image: DecodedImage) -> bytes:
    return encode(image.pil(), "PNG")


# ---------------------------------------------------------------- questions


class Oracle:
    """Says yes to bright boxes with a probability of 0.9, and no to dark ones with 0.8; or whatever it is told to."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.reply, self.prompt, self.asked = reply, "", []

    def ask(self, prompt: str, choices: Sequence[str] | None, max_tokens: int, schema: Any = None) -> None:
        assert choices == ("yes", "no")
        self.prompt = prompt

    def prepare(self, image: DecodedImage) -> tuple[str, float, tuple[int, ...]]:
        return self.prompt, float(image.pixels.mean()), image.pixels.shape

    def bucket(self, item: Any) -> Any:
        return item[2]

    def answer(self, items: Sequence[Any]) -> list[Reply]:
        assert len({item[2] for item in items}) == 1, "one bucket"
        self.asked += [item[0] for item in items]
        return [self.reply or (Reply("yes", 0.9) if item[1] > 128 else Reply("no", 0.8)) for item in items]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    found = Oracle()
    monkeypatch.setattr("labelmill.operators.labels.second_opinions.answerer.answerer", lambda card, dtype: found)
    return found


PIXELS = np.zeros((60, 80, 3), np.uint8)
PIXELS[:, 40:] = 255
HALVES = [box(5, 5, 25, 25, "truck"), box(55, 5, 75, 25, "car"), box(60, 30, 70, 50, "stop sign")]


def halves(operator: Verify, *found: list[Any]) -> list[Any]:
    image = DecodedImage(PIXELS, b"", "PNG", "RGB", 1, 1)
    return operator.infer([operator.prepare(image, {"detections": each}) for each in found])


def test_questions_are_about_the_class_and_the_box(oracle: Oracle) -> None:
    operator = verify(ask=VLM, question="Is there a {}?", chunk=1)
    first, second = halves(operator, HALVES, HALVES[:1])
    assert first["yes"] == pytest.approx([0.2, 0.9, 0.9])
    assert second["yes"] == pytest.approx([0.2])
    assert sorted(oracle.asked) == sorted(
        ["Is there a car?", "Is there a stop sign?", "Is there a truck?", "Is there a truck?"]
    )


def test_an_answer_without_a_probability_is_sure(oracle: Oracle) -> None:
    oracle.reply = Reply("no")
    assert halves(verify(ask=VLM, question="Is there a {}?"), HALVES)[0]["yes"] == [0, 0, 0]
    oracle.reply = Reply("yes")
    assert halves(verify(ask=VLM, question="Is there a {}?"), HALVES)[0]["yes"] == [1, 1, 1]


def test_an_image_without_an_answer_fails(oracle: Oracle) -> None:
    oracle.reply = Reply("", problem="endpoint cannot be reached")
    failed, empty = halves(verify(ask=VLM, question="Is there a {}?", model=CLIP), HALVES, [])
    assert str(failed) == "endpoint cannot be reached"
    assert empty["yes"] == []


def test_agreement_is_the_mean_of_the_opinions_there_are(oracle: Oracle) -> None:
    operator = verify(ask=VLM, question="Is there a {}?", model=CLIP, against="other")
    found = [*HALVES, box(55, 5, 75, 25, "unicorn")]
    item = operator.prepare(DecodedImage(PIXELS, b"", "PNG", "RGB", 1, 1), {"detections": found, "other": found[1:]})
    (row,) = operator.infer([item])
    assert row["overlap"] == [0, 1, 1, 1]
    for place, match in enumerate((0, 1, 1)):
        mean = (row["class_probability"][place] + row["yes"][place] + match) / 3
        assert row["agreement"][place] == pytest.approx(mean)
    assert row["class_probability"][3] is row["yes"][3] is None
    assert row["agreement"][3] == 1, "only the other detector knows the class"
    assert pa.Table.from_pylist([row], schema=operator.writes()).num_rows == 1


# ---------------------------------------------------------------- parameters


def test_somebody_must_be_asked() -> None:
    with pytest.raises(ValidationError, match="at least one of model, against and ask"):
        Verify.Params(ontology=ONTOLOGY)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"against": "detections"}, "against must be another column than 'detections'"),
        ({"model": CLIP, "ontology": None}, "ontology must have at least one class"),
        ({"model": CLIP, "ontology": {"car": "car"}}, "ontology must have two classes or more"),
        ({"ask": VLM, "ontology": {}}, "ontology must have at least one class"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(params: dict[str, Any], message: str) -> None:
    operator = Verify(Verify.Params(**{"ontology": ONTOLOGY, **params}))
    with pytest.raises(OperatorError, match=message):
        operator.check(dict.fromkeys(operator.reads(), DETECTIONS))


def test_cards_for_something_else_are_refused() -> None:
    with pytest.raises(ValidationError, match="model card for embedding"):
        Verify.Params(model=VLM)
    with pytest.raises(ValidationError, match="model card for image-text-to-text"):
        Verify.Params(ask=CLIP)
    with pytest.raises(ValidationError, match=r"must contain \{\}"):
        Verify.Params(ask=VLM, question="Is this right?")


def test_digest_tells_who_is_asked_what_for() -> None:
    digests = {
        Verify(Verify.Params(ontology=ONTOLOGY, **params)).digest()
        for params in ({"model": CLIP}, {"ask": VLM}, {"model": CLIP, "ask": VLM}, {"against": "other"})
    }
    assert len(digests) == 4
    assert not {"model", "ask", "batch", "chunk"} & set(Verify.Params(model=CLIP, ask=VLM).result_params())

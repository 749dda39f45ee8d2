from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detect import Detect, Found, Item
from labelmill.operators.engines.detection.detector import Answer
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.ontology import Ontology
from tests.drawing import picture
from tests.operators.engines.detection.tiny_detectors import (
    CARDS,
    FOLDER,
    ONTOLOGY,
    ORIGINAL,
    PLAIN,
    SIZES,
    answers,
    card_of,
    detect,
)


@pytest.fixture(scope="module", params=CARDS)
def card(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return card_of(request.param, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def operator(card: ModelCard) -> Detect:
    return detect(card)


# ---------------------------------------------------------------- the model and its input


def test_a_batch_gives_what_single_images_give(operator: Detect) -> None:
    for size in SIZES[:4]:
        images = [picture(*size, seed) for seed in range(2)]
        together = answers(operator, images)
        for index, image in enumerate(images):
            alone = answers(operator, [image])
            np.testing.assert_allclose(together[0][index], alone[0][0], atol=1e-4)
            np.testing.assert_allclose(together[1][index], alone[1][0], atol=1e-4)


def test_the_order_of_classes_changes_nothing(card: ModelCard, operator: Detect) -> None:
    image = picture(320, 240)
    other = detect(card, dict(reversed(ONTOLOGY.items())))
    assert other.infer([other.prepare(image, {})]) == operator.infer([operator.prepare(image, {})])


def test_the_same_twice_and_the_generator_untouched(card: ModelCard, operator: Detect) -> None:
    image, state = picture(320, 240), torch.get_rng_state()
    again = detect(card)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.infer([again.prepare(image, {})]) == operator.infer([operator.prepare(image, {})])


def test_the_seed_draws_the_weights(card: ModelCard, operator: Detect) -> None:
    drawn = {"random": 1} if card.weights.path is None else {"random": 1, "path": None}
    other, image = detect(card.model_copy(update={"weights": card.weights.model_copy(update=drawn)})), picture(320, 240)
    assert other.infer([other.prepare(image, {})]) != operator.infer([operator.prepare(image, {})])


def test_half_precision_stays_near(card: ModelCard, operator: Detect) -> None:
    image = picture(320, 240)
    full, half = answers(operator, [image])[0], answers(detect(card, dtype="bfloat16"), [image])[0]
    bound = 0.02 if card.architecture.startswith("Owl") else 0.1
    assert np.abs(np.sort(full.max(axis=2)) - np.sort(half.max(axis=2))).max() < bound
    assert not np.array_equal(full, half)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (200, 40)])
def test_small_images(operator: Detect, size: tuple[int, int]) -> None:
    (row,) = operator.infer([operator.prepare(picture(*size), {})])
    assert isinstance(row, dict)
    for found in row["detections"]:
        assert 0 <= found["x1"] < found["x2"] <= size[0]
        assert 0 <= found["y1"] < found["y2"] <= size[1]


# ---------------------------------------------------------------- what is written


def test_rows_are_what_writes_promises(operator: Detect) -> None:
    assert operator.writes() == pa.schema([pa.field("detections", DETECTIONS)])
    rows = operator.infer([operator.prepare(picture(320, 240, seed), {}) for seed in range(2)])
    array = pa.array([row["detections"] for row in rows if isinstance(row, dict)], DETECTIONS)
    assert array.null_count == 0
    assert len(array) == 2
    prompts = dict(Ontology(ONTOLOGY).prompts())
    for row in array.to_pylist():
        assert 0 < len(row) <= 300
        scores = [found["score"] for found in row]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] > 0.1
        for found in row:
            assert prompts[found["prompt"]] == found["class"]
            assert found["mask"] is None
            assert 0 <= found["x1"] < found["x2"] <= 320
            assert 0 <= found["y1"] < found["y2"] <= 240


def test_rows_are_the_answers_above_the_floor(card: ModelCard) -> None:
    image = picture(320, 240)
    operator = detect(card, floor=0.3, max_detections=17)
    scores, boxes = answers(operator, [image])
    (row,) = operator.infer([operator.prepare(image, {})])
    assert isinstance(row, dict)
    above = np.sort(scores[scores > 0.3])[::-1][:17]
    np.testing.assert_allclose([found["score"] for found in row["detections"]], above, atol=1e-6)
    for found in row["detections"]:
        prompt = operator._asked.index((found["prompt"], found["class"]))
        query = np.abs(scores[0, :, prompt] - found["score"]).argmin()
        pixels = (boxes[0, query] * [320, 240, 320, 240]).clip(0, [320, 240, 320, 240])
        np.testing.assert_allclose([found[key] for key in ("x1", "y1", "x2", "y2")], pixels, atol=1e-3)


def test_a_floor_of_one_finds_nothing(card: ModelCard) -> None:
    operator = detect(card, floor=1)
    rows = operator.infer([operator.prepare(picture(160, 160), {})] * 2)
    assert rows == [{"detections": []}] * 2
    assert pa.array([row["detections"] for row in rows if isinstance(row, dict)], DETECTIONS).null_count == 0


def answer(scores: Any, boxes: Any, prompts: Any = (0, 1)) -> Answer:
    return Answer(np.array(prompts), np.array([scores], dtype=np.float32), np.array([boxes], dtype=np.float32))


ASKED = [("T.V.", "television"), ("fire", "fire"), ("car", "car")]


def test_pairs_of_box_and_prompt_across_answers() -> None:
    found = Found(Item(None, 200, 100), 0.25, 6)
    found.add(answer([[0.5, 0.9], [0.2, 0.25]], [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]), 0)
    found.add(answer([[0.7], [0.3], [0.26]], [[-0.5, 0.5, 1.5, 2], [0, 0, 0.5, 0.5], [0, 0, 1, 1]], [2]), 0)
    rows = found.result(ASKED, ["a@0"])
    assert isinstance(rows, dict)
    keys = ("class", "prompt", "score", "x1", "y1", "x2", "y2")
    assert [tuple(row[key] for key in keys) for row in rows["detections"]] == [
        ("fire", "fire", pytest.approx(0.9), *map(pytest.approx, (20, 20, 60, 40))),
        ("car", "car", pytest.approx(0.7), 0, 50, 200, 100),
        ("television", "T.V.", 0.5, *map(pytest.approx, (20, 20, 60, 40))),
        ("car", "car", pytest.approx(0.3), 0, 0, 100, 50),
        ("car", "car", pytest.approx(0.26), 0, 0, 200, 100),
    ]


def test_boxes_that_show_nothing_of_the_image_are_left_out() -> None:
    found = Found(Item(None, 10, 10), 0, 300)
    outside = [[1, 0, 1.5, 1], [-1, 0, 0, 1], [0, 1.2, 1, 1.4], [0.5, 0.5, 0.5, 0.9]]
    found.add(answer([[0.9]] * 4, outside, [0]), 0)
    assert found.result(ASKED, ["a@0"]) == {"detections": []}


def test_ties_do_not_depend_on_the_order_of_answers() -> None:
    one = answer([[0.5, 0.5]] * 3, [[0.2, 0, 1, 1], [0.1, 0, 1, 1], [0.1, 0, 0.9, 1]])
    two = answer([[0.5]] * 2, [[0.3, 0, 1, 1], [0, 0, 1, 1]], [2])
    results = []
    for order in ((one, two), (two, one)):
        found = Found(Item(None, 10, 10), 0.1, 7)
        for part in order:
            found.add(part, 0)
        results.append(found.result(ASKED, ["a@0"]))
    assert results[0] == results[1]
    assert isinstance(results[0], dict)
    places = [(row["class"], round(row["x1"]), round(row["x2"])) for row in results[0]["detections"]]
    tv, fire = ([(name, 1, 9), (name, 1, 10), (name, 2, 10)] for name in ("television", "fire"))
    assert places == [*tv, *fire, ("car", 0, 10)]


@pytest.mark.parametrize("where", ["scores", "boxes"])
def test_nan_fails_the_row(operator: Detect, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    items = [operator.prepare(picture(160, 160, seed), {}) for seed in range(2)]
    sane = list(operator._engine.detect([item.given for item in items]))
    getattr(sane[0], where)[1, 3] = np.nan
    monkeypatch.setattr(operator._engine, "detect", lambda items: iter(sane))
    first, second = operator.infer(items)
    assert isinstance(first, dict)
    assert first["detections"]
    assert isinstance(second, RowError)
    assert "try dtype: float32" in str(second)


def test_a_shard_of_mixed_sizes_is_what_its_images_are(operator: Detect) -> None:
    images = [picture(*size, seed) for seed in range(2) for size in SIZES[:3]]
    data = [image.data for image in images] + [images[0].data[:50]]
    rows = pa.table({"image_id": range(1, 8), "key": [str(row) for row in range(7)]})
    rows = rows.set_column(0, "image_id", rows.column("image_id").cast(pa.int64()))
    shard = ShardImages([str(row) for row in range(7)], lambda uri: data[int(uri)])
    table, _ = apply(Job(Worker(operator), rows, np.array([True] * 7)), shard)
    assert table.column("decision").to_pylist() == ["kept"] * 6 + ["failed"]
    found = table.column("detections")
    assert found.is_null().to_pylist() == [False] * 6 + [True]
    for index, image in enumerate(images):
        (alone,) = operator.infer([operator.prepare(image, {})])
        assert isinstance(alone, dict)
        scores = [row["score"] for row in found[index].as_py()]
        np.testing.assert_allclose(scores, [row["score"] for row in alone["detections"]], atol=1e-4)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "DetrForObjectDetection"}, "architecture must be one of GroundingDino.*Owlv2.* but is Detr"),
        (
            {"engine": "groundingdino"},
            "must be one of GroundingDINO_SwinT_OGC, .* but is GroundingDinoFor",
        ),
        ({"preprocess": {"size": 800}}, "preprocess.size: Extra inputs"),
        ({"preprocess": {"short": "big"}}, "preprocess.short: .* found 'big'"),
        ({"preprocess": {"short": 900, "long": 800}}, "preprocess.short must be at most 800 but is 900"),
        ({"config": {}}, "config must have model and tokenizer when weights are random"),
        ({"config": {"tokenizer": "t5"}}, "config.tokenizer: .* found 't5'"),
    ],
)
def test_cards_that_do_not_fit_are_refused_before_loading(changes: dict[str, Any], message: str) -> None:
    operator = Detect(Detect.Params(model=PLAIN.model_copy(update=changes), ontology=ONTOLOGY))
    with pytest.raises(ModelError, match=message):
        operator.check({})


def test_prompts_that_cannot_be_asked_are_refused_before_loading() -> None:
    for ontology, message in (
        ({"a": "T.V.", "b": "t v"}, "must differ"),
        (["car", "?"], "must have more than dots, question marks"),
        ({}, "at least one class"),
    ):
        with pytest.raises(OperatorError, match=message) as error:
            Detect(Detect.Params(model=PLAIN, ontology=ontology)).check({})
        assert error.value.param[0] == "ontology"


def test_sizes_that_cannot_be_built() -> None:
    broken = {**PLAIN.config, "model": {**PLAIN.config["model"], "num_queries": "many"}}
    with pytest.raises(ModelError, match=r"config cannot be built: .*num_queries"):
        detect(PLAIN.model_copy(update={"config": broken}))


@pytest.mark.parametrize("params", [{"floor": -0.1}, {"floor": 1.1}, {"max_detections": 0}, {"batch": 0}, {"nms": 0.5}])
def test_parameters_out_of_range(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(params))):
        Detect.Params(model=PLAIN, ontology=ONTOLOGY, **params)


def test_a_missing_extra_is_said_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Detect(Detect.Params(model=ORIGINAL, ontology=ONTOLOGY))
    operator.check({})  # planning needs neither weights nor engines
    monkeypatch.setattr("labelmill.operators.detect.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"needs the module groundingdino.*`pip install --editable '\.\[groundingdino\]'`"
    ):
        operator.ready()
    with pytest.raises(ModelError, match="needs the module groundingdino"):
        operator.load()
    Detect(Detect.Params(model=PLAIN, ontology=ONTOLOGY)).ready()


def test_a_card_for_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="for detection with engine transformers or groundingdino but "):
        Detect.Params(model=load_card(FOLDER / "clip-random.yaml"), ontology=ONTOLOGY)


def test_fingerprint_holds_the_name_and_digest_and_not_the_card() -> None:
    operator = Detect(Detect.Params(model=PLAIN, ontology=["car"], batch=7))
    expected = {"ontology": {"car": ["car"]}, "floor": 0.1, "max_detections": 300, "tiles": None, "dtype": "auto"}
    assert operator.params.result_params() == expected
    assert operator.digest() == f"{PLAIN.name}@{PLAIN.digest()}"
    assert operator.batch == 7

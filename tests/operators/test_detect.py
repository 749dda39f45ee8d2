from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from operators.apply import Job, Worker, apply
from operators.base import OperatorError, RowError
from operators.detect import Detect, Found, Item
from operators.engines import grounding_dino_model as engine
from operators.engines.captions import Caption
from operators.engines.detector import Answer
from operators.images import DecodedImage, decode
from operators.loading import ShardImages
from operators.models import ModelCard, ModelError, load_card
from operators.models.card import ROOT
from operators.ontology import Ontology
from operators.schemas import DETECTIONS

FOLDER = ROOT / "conf" / "models"
RANDOM = {name: load_card(FOLDER / f"{name}.yaml") for name in ("grounding-dino-random", "mm-grounding-dino-random")}
PLAIN = RANDOM["grounding-dino-random"]
ONTOLOGY = {"car": ["car", "Taxi"], "carton": "carton", "television": "T.V.", "fire": "fire", "hydrant": "fire hydrant"}
SIZES = [(320, 240), (240, 320), (160, 160), (500, 90), (97, 203), (640, 480)]  # width, height


def picture(width: int, height: int, seed: int = 0) -> DecodedImage:
    rng = np.random.default_rng([seed, width, height])
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return decode(buffer.getvalue())


def detect(card: ModelCard = PLAIN, ontology: Any = ONTOLOGY, **params: Any) -> Detect:
    operator = Detect(Detect.Params(model=card, ontology=ontology, **params))
    operator.check({})
    operator.load()
    return operator


def answers(operator: Detect, images: list[DecodedImage]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (images, captions × queries, prompts), NaN where a caption does not ask, and boxes beside them."""
    items = [operator.prepare(image, {}).given for image in images]
    scores, boxes = [], []
    for answer in operator._engine.detect(items):
        spread = np.full((*answer.scores.shape[:2], len(operator._asked)), np.nan)
        spread[..., answer.prompts] = answer.scores
        scores.append(spread)
        boxes.append(answer.boxes)
    return np.concatenate(scores, axis=1), np.concatenate(boxes, axis=1)


@pytest.fixture(scope="module", params=list(RANDOM))
def card(request: pytest.FixtureRequest) -> ModelCard:
    return RANDOM[request.param]


@pytest.fixture(scope="module")
def operator(card: ModelCard) -> Detect:
    return detect(card)


def saved(card: ModelCard, folder: Path, **changes: Any) -> ModelCard:
    """The random card's model as a folder that transformers wrote, and a card that knows no sizes of its own."""
    model = engine.build(card)
    model.save_pretrained(folder)
    engine.tokenizer(card).save_pretrained(folder)
    extra = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    source = {"path": str(folder / "model.safetensors"), "extra_files": extra}
    return card.model_copy(update={"weights": card.weights.model_validate(source), "config": {}, **changes})


# ---------------------------------------------------------------- the model and its input


@pytest.mark.parametrize("size", SIZES)
def test_scores_and_boxes_are_transformers_own(card: ModelCard, operator: Detect, size: tuple[int, int]) -> None:
    """Its processor and model, unwrapped, and its own map from tokens to phrases."""
    from transformers import GroundingDinoImageProcessor, GroundingDinoProcessor
    from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps

    image = picture(*size)
    given = operator._engine._size
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor(size={"shortest_edge": given.short, "longest_edge": given.long}),
        engine.tokenizer(card),
    )
    (caption,) = operator._engine.captions
    texts = [operator._asked[index][0].replace(".", " ") for index in caption.phrases]
    inputs = processor(images=image.pil(), text=[texts], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == list(caption.ids)

    item = operator.prepare(image, {})
    pixels = (item.given.float() - operator._engine._mean) / operator._engine._std
    torch.testing.assert_close(pixels, inputs["pixel_values"][0], atol=1e-5, rtol=0)

    with torch.no_grad():
        outputs = engine.build(card)(**inputs)
    (maps,) = build_label_maps(outputs.logits, inputs["input_ids"])
    tokens = outputs.logits.sigmoid()[0]
    expected = torch.stack([tokens[:, positive.bool()].mean(dim=1) for positive in maps], dim=1).numpy()
    scores, boxes = answers(operator, [image])
    np.testing.assert_allclose(scores[0][:, list(caption.phrases)], expected, atol=1e-5)
    from transformers.image_transforms import center_to_corners_format

    np.testing.assert_allclose(boxes[0], center_to_corners_format(outputs.pred_boxes[0]).numpy(), atol=1e-5)
    assert expected.std() > 0.01
    assert boxes[0].std() > 0.05


@pytest.mark.parametrize("size", [*SIZES, (800, 800), (1, 1), (2000, 1500), (1201, 801), (333, 200)])
def test_resize_is_the_image_processor_s(size: tuple[int, int]) -> None:
    from transformers import GroundingDinoImageProcessor

    full = load_card(FOLDER / "grounding-dino-tiny.yaml")
    small = PLAIN.model_copy(update={"preprocess": full.preprocess})
    given = detect(small)._engine
    image = picture(*size)
    item = given.prepare(image.pixels)
    expected = GroundingDinoImageProcessor()(images=image.pil(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close((item.float() - given._mean) / given._std, expected, atol=1e-5, rtol=0)
    assert given.bucket(item) == tuple(expected.shape)


def test_a_batch_gives_what_single_images_give(operator: Detect) -> None:
    shapes = set()
    for size in SIZES[:4]:
        images = [picture(*size, seed) for seed in range(2)]
        together = answers(operator, images)
        for index, image in enumerate(images):
            alone = answers(operator, [image])
            np.testing.assert_allclose(together[0][index], alone[0][0], atol=1e-4)
            np.testing.assert_allclose(together[1][index], alone[1][0], atol=1e-4)
        shapes.add(operator.bucket(operator.prepare(images[0], {})))
    assert len(shapes) > 2


def test_permuting_the_phrases_of_a_caption_changes_scores_little(operator: Detect) -> None:
    image = picture(320, 240)
    before, _ = answers(operator, [image])
    (caption,) = operator._engine.captions
    order = np.random.default_rng(1).permutation(len(caption.phrases))
    ids, spans = [caption.ids[0]], []
    for column in order:
        start, end = caption.spans[column]
        spans.append((len(ids), len(ids) + end - start))
        ids += caption.ids[start : end + 1]
    permuted = Caption((*ids, caption.ids[-1]), tuple(caption.phrases[column] for column in order), tuple(spans))
    assert sorted(permuted.ids) == sorted(caption.ids)
    assert permuted.ids != caption.ids
    operator._engine.captions = [permuted]
    operator._engine._texts.forget()
    try:
        after, _ = answers(operator, [image])
    finally:
        operator._engine.captions = [caption]
        operator._engine._texts.forget()
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_the_order_of_classes_changes_nothing(card: ModelCard, operator: Detect) -> None:
    image = picture(320, 240)
    other = detect(card, dict(reversed(ONTOLOGY.items())))
    assert other.infer([other.prepare(image, {})]) == operator.infer([operator.prepare(image, {})])


def test_1203_names_are_all_asked_and_the_image_is_encoded_once() -> None:
    letters = "abcdefghijk"
    operator = detect(ontology=[f"{a}{b}{c}" for a in letters for b in letters for c in letters][:1203])
    given = operator._engine
    calls = {"images": 0, "texts": 0}
    for name, wrapper in (("images", given._images), ("texts", given._texts)):
        wrapper.backbone.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    item = operator.prepare(picture(160, 160), {}).given
    asked: list[int] = []
    for answer in given.detect([item]):
        assert answer.scores.shape[2] == len(answer.prompts)
        assert answer.scores.min() > 0
        assert answer.scores.max() < 1
        asked += answer.prompts.tolist()
    assert sorted(asked) == list(range(1203))
    assert calls == {"images": 1, "texts": len(given.captions)}
    assert len(given.captions) > 10
    assert {name for _, name in operator._asked} == set(operator.params.ontology.classes)

    next(given.detect([item, item]))
    assert calls == {"images": 2, "texts": len(given.captions)}


def test_many_captions_give_what_each_gives_alone(card: ModelCard) -> None:
    names = [f"a rather long name for a thing {index}" for index in range(20)]
    operator, image = detect(card, names), picture(320, 240)
    assert len(operator._engine.captions) > 1
    together, _ = answers(operator, [image])
    width = together.shape[1] // len(operator._engine.captions)
    for index, caption in enumerate(operator._engine.captions):
        alone = detect(card, [operator._asked[phrase][0] for phrase in caption.phrases])
        scores, _ = answers(alone, [image])
        part = together[0, index * width : (index + 1) * width]
        np.testing.assert_allclose(part[:, list(caption.phrases)], scores[0], atol=1e-5)


def test_image_features_are_let_go(operator: Detect, monkeypatch: pytest.MonkeyPatch) -> None:
    item = operator.prepare(picture(160, 160), {})
    operator.infer([item])
    assert operator._engine._images.kept is None
    monkeypatch.setattr(operator._engine, "_mean", torch.zeros(7))
    with pytest.raises(RuntimeError):
        operator.infer([item])
    assert operator._engine._images.kept is None


def test_the_same_twice_and_the_generator_untouched(card: ModelCard, operator: Detect) -> None:
    image, state = picture(320, 240), torch.get_rng_state()
    again = detect(card)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.infer([again.prepare(image, {})]) == operator.infer([operator.prepare(image, {})])
    other = detect(card.model_copy(update={"weights": card.weights.model_copy(update={"random": 1})}))
    assert other.infer([other.prepare(image, {})]) != operator.infer([operator.prepare(image, {})])


def test_half_precision_stays_near(card: ModelCard, operator: Detect) -> None:
    image = picture(320, 240)
    full, half = answers(operator, [image])[0], answers(detect(card, dtype="bfloat16"), [image])[0]
    assert np.abs(np.sort(full.max(axis=2)) - np.sort(half.max(axis=2))).max() < 0.1
    assert not np.array_equal(full, half)


@pytest.mark.parametrize("size", [(4000, 3), (3, 4000)])
def test_an_image_that_is_a_thread_fails_its_row(operator: Detect, size: tuple[int, int]) -> None:
    with pytest.raises(RowError, match=rf"an image of {size[0]} × {size[1]} is too long and thin"):
        operator.prepare(picture(*size), {})


def test_places_are_those_that_the_model_chooses_from(operator: Detect) -> None:
    given = operator._engine
    for size in [(160, 160), (17, 266), (266, 33), (1, 266)]:
        pixels = torch.zeros(1, 3, *size)
        with given._images.one_batch(), torch.no_grad():
            given._texts.use(0)
            outputs = given.model(pixel_values=pixels, input_ids=torch.tensor([given.captions[0].ids]))
        assert outputs.enc_outputs_class.shape[1] == given.places(*size)


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
    rows = found.result(ASKED)
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
    assert found.result(ASKED) == {"detections": []}


def test_ties_do_not_depend_on_the_order_of_answers() -> None:
    one = answer([[0.5, 0.5]] * 3, [[0.2, 0, 1, 1], [0.1, 0, 1, 1], [0.1, 0, 0.9, 1]])
    two = answer([[0.5]] * 2, [[0.3, 0, 1, 1], [0, 0, 1, 1]], [2])
    results = []
    for order in ((one, two), (two, one)):
        found = Found(Item(None, 10, 10), 0.1, 7)
        for part in order:
            found.add(part, 0)
        results.append(found.result(ASKED))
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
    data = [image.data for image in images] + [picture(4000, 3).data, images[0].data[:50]]
    rows = pa.table({"image_id": range(1, 9), "key": [str(row) for row in range(8)]})
    rows = rows.set_column(0, "image_id", rows.column("image_id").cast(pa.int64()))
    shard = ShardImages([str(row) for row in range(8)], lambda uri: data[int(uri)])
    table, _ = apply(Job(Worker(operator), rows, np.array([True] * 8)), shard)
    assert table.column("decision").to_pylist() == ["kept"] * 6 + ["failed"] * 2
    assert "too long and thin" in table.column("decision.reason")[6].as_py()
    found = table.column("detections")
    assert found.is_null().to_pylist() == [False] * 6 + [True] * 2
    for index, image in enumerate(images):
        (alone,) = operator.infer([operator.prepare(image, {})])
        assert isinstance(alone, dict)
        scores = [row["score"] for row in found[index].as_py()]
        np.testing.assert_allclose(scores, [row["score"] for row in alone["detections"]], atol=1e-4)


# ---------------------------------------------------------------- weights


def test_a_folder_that_transformers_wrote_gives_the_same(card: ModelCard, operator: Detect, tmp_path: Path) -> None:
    loaded, image = detect(saved(card, tmp_path)), picture(320, 240)
    assert loaded.infer([loaded.prepare(image, {})]) == operator.infer([operator.prepare(image, {})])


def test_weights_in_half_precision_are_used_in_full(card: ModelCard, operator: Detect, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    half = saved(card, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    loaded, image = detect(half), picture(320, 240)
    assert {parameter.dtype for parameter in loaded._engine.model.parameters()} == {torch.float32}
    full, rounded = answers(operator, [image])[0], answers(loaded, [image])[0]
    assert np.abs(np.sort(full.max(axis=2)) - np.sort(rounded.max(axis=2))).max() < 0.02


def test_tables_that_old_versions_saved_are_no_obstacle(operator: Detect, card: ModelCard, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole, path = saved(card, tmp_path), tmp_path / "model.safetensors"
    block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self"
    tables = {
        f"{block}.relative_position_index": torch.zeros(25, 25, dtype=torch.long),
        "model.text_backbone.embeddings.position_ids": torch.arange(256)[None],
    }
    save_file({**load_file(path), **tables}, path)
    loaded, image = detect(whole), picture(320, 240)
    assert loaded.infer([loaded.prepare(image, {})]) == operator.infer([operator.prepare(image, {})])


def test_weights_that_do_not_fit(card: ModelCard, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole, path = saved(card, tmp_path), tmp_path / "model.safetensors"
    state = load_file(path)
    state.pop("model.text_projection.weight")
    state["model.enc_output.weight"] = torch.zeros(3, 3)
    state["something.else"] = torch.zeros(1)
    save_file(state, path)
    with pytest.raises(ModelError) as error:
        detect(whole)
    assert f"must fit {card.architecture} but: 1 missing (model.text_projection.weight)" in str(error.value)
    assert "1 unexpected (something.else)" in str(error.value)
    assert "model.enc_output.weight must be (96, 96) but is (3, 3)" in str(error.value)


def test_weights_of_the_other_architecture(tmp_path: Path) -> None:
    plain = saved(PLAIN, tmp_path)
    sizes = RANDOM["mm-grounding-dino-random"].config
    other = plain.model_copy(update={"architecture": "MMGroundingDinoForObjectDetection", "config": sizes})
    with pytest.raises(ModelError, match=r"must fit MMGroundingDinoForObjectDetection but: .*class_embed"):
        detect(other)


def test_missing_and_corrupt_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=r"not here \(model.safetensors, config.json, .*run `labelmill models pull gr"):
        detect(load_card(FOLDER / "grounding-dino-tiny.yaml"))

    whole = saved(PLAIN, tmp_path / "whole")
    for name, message in (
        ("model.safetensors", "cannot be read from"),
        ("config.json", "config cannot be built"),
        ("tokenizer.json", "tokenizer cannot be read from"),
    ):
        folder = tmp_path / f"broken {name}"
        shutil.copytree(tmp_path / "whole", folder)
        source = {**whole.weights.model_dump(exclude_none=True), "path": str(folder / "model.safetensors")}
        broken = whole.model_copy(update={"weights": whole.weights.model_validate(source)})
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
        with pytest.raises(ModelError, match=message):
            detect(broken)
        (folder / name).unlink()
        with pytest.raises(ModelError, match="there is no such file"):
            detect(broken)


def test_a_tokenizer_with_other_ids(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    whole = saved(PLAIN, tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"ids of \[CLS\] \[SEP\] \. \? must be \[101, 102, 1012, 1029\] but are"):
        detect(whole)


def test_a_tokenizer_that_is_larger_than_the_model() -> None:
    sizes = PLAIN.config["model"]
    smaller = {**sizes, "text_config": {**sizes["text_config"], "vocab_size": 1000}}
    with pytest.raises(ModelError, match="must have at most the model's 1000 tokens but gives token 1012"):
        detect(PLAIN.model_copy(update={"config": {**PLAIN.config, "model": smaller}}))


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "DetrForObjectDetection"}, "architecture must be one of GroundingDino.* but is Detr"),
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
        (["car", "?"], "must have more than dots"),
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


def test_a_card_for_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be a model card for detection with engine transformers but "):
        Detect.Params(model=load_card(FOLDER / "clip-random.yaml"), ontology=ONTOLOGY)


def test_fingerprint_holds_the_digest_and_not_the_card() -> None:
    operator = Detect(Detect.Params(model=PLAIN, ontology=["car"], batch=7))
    expected = {"ontology": {"car": ["car"]}, "floor": 0.1, "max_detections": 300, "dtype": "auto"}
    assert operator.params.result_params() == expected
    assert operator.digest() == PLAIN.digest()
    assert operator.batch == 7

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.engines.text import doctr as engine
from labelmill.operators.engines.text import doctr_model
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.images.decoded import DecodedImage, decode
from labelmill.operators.miniatures.words import held_out
from labelmill.operators.miniatures.world import Scene, World
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from labelmill.operators.read import LINE, SIDES, WORD, Read

FOLDER = ROOT / "conf" / "models"
DETECTION = load_card(FOLDER / "doctr-detection-miniature.yaml")
RECOGNITION = load_card(FOLDER / "doctr-recognition-miniature.yaml")
EMPTY = {"words": [], "lines": [], "text": ""}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(pixels: np.ndarray) -> DecodedImage:
    return decode(png(pixels))


def read(**params: Any) -> Read:
    operator = Read(Read.Params(**{"model": DETECTION, "recognition": RECOGNITION, **params}))
    operator.check({"detections": DETECTIONS} if params.get("inside") else {})
    operator.load()
    return operator


def rows(operator: Read, images: list[np.ndarray], row: dict[str, Any] | None = None) -> list[Any]:
    return operator.infer([operator.prepare(picture(pixels), row or {}) for pixels in images])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """The first six that have words, of a world that nothing is measured on."""
    world, found = World(11, words="held_out"), []
    for index in range(100):
        scene = world.scene(index)
        if scene.words:
            found.append(scene)
        if len(found) == 6:
            break
    return found


@pytest.fixture(scope="module")
def images(scenes: list[Scene]) -> list[np.ndarray]:
    """Square, wide and tall, smaller and larger than the model's input, one without a word."""
    sizes = [(320, 320), (320, 200), (210, 320), (480, 480), (400, 300), (300, 300)]
    cut = []
    for scene, (width, height) in zip(scenes, sizes, strict=True):
        pixels = scene.pixels
        if max(width, height) > 320:
            pixels = np.array(Image.fromarray(pixels).resize((480, 480), Image.Resampling.BICUBIC))
        boxes = np.array([word.box for word in scene.words]) * len(pixels) / 320
        x, y = boxes[:, 0].min(), boxes[:, 1].min()
        left, top = int(min(x, pixels.shape[1] - width)), int(min(y, pixels.shape[0] - height))
        cut.append(np.ascontiguousarray(pixels[top : top + height, left : left + width]))
    return [*cut, np.full((240, 320, 3), 128, np.uint8)]


@pytest.fixture(scope="module")
def operator() -> Read:
    return read()


@pytest.fixture(scope="module")
def found(operator: Read, images: list[np.ndarray]) -> list[dict[str, Any]]:
    return rows(operator, images)


def test_columns_are_those_that_it_promises(operator: Read, found: list[dict[str, Any]]) -> None:
    assert operator.writes() == pa.schema(
        [pa.field("words", pa.list_(WORD)), pa.field("lines", pa.list_(LINE)), pa.field("text", pa.string())]
    )
    table = pa.Table.from_pylist(found, schema=operator.writes())
    assert sum(map(len, table.column("words").to_pylist())) >= 6
    assert operator.reads() == ()
    assert operator.needs().gpu
    assert operator.needs().memory_gb == pytest.approx(DETECTION.memory_gb + RECOGNITION.memory_gb)


def test_words_and_lines_are_docTR_s(found: list[dict[str, Any]], images: list[np.ndarray]) -> None:
    """The same two models in docTR's own predictor, image by image."""
    from doctr.models import detection_predictor, recognition_predictor
    from doctr.models.predictor import OCRPredictor

    predictor = OCRPredictor(
        detection_predictor(doctr_model.build(DETECTION), assume_straight_pages=False),
        recognition_predictor(doctr_model.build(RECOGNITION)),
        assume_straight_pages=False,
        disable_crop_orientation=True,
        disable_page_orientation=True,
    )
    several = 0
    for pixels, row in zip(images, found, strict=True):
        page = predictor([pixels]).pages[0]
        assert row["text"] == page.render(block_break="\n")
        lines = [line for block in page.blocks for line in block.lines]
        assert [line["text"] for line in row["lines"]] == [line.render() for line in lines]
        words = [(number, word) for number, line in enumerate(lines) for word in line.words]
        assert len(row["words"]) == len(words)
        several += len(words) > 1
        for ours, (number, word) in zip(row["words"], words, strict=True):
            assert (ours["text"], ours["line"]) == (word.value, number)
            assert ours["confidence"] == pytest.approx(word.confidence, abs=1e-4)
            corners = np.array(word.geometry) * pixels.shape[1::-1]
            np.testing.assert_allclose(np.reshape(ours["quad"], (4, 2)), corners, atol=1e-3)
    assert several


def test_boxes_are_around_corners_and_inside_the_image(found: list[dict[str, Any]], images: list[np.ndarray]) -> None:
    for pixels, row in zip(images, found, strict=True):
        height, width = pixels.shape[:2]
        for word in row["words"]:
            quad = np.reshape(word["quad"], (4, 2))
            box = [word[side] for side in SIDES]
            np.testing.assert_allclose(box, [*quad.min(axis=0), *quad.max(axis=0)], atol=1e-4)
            assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
            assert 0 <= word["confidence"] <= 1
            assert quad[0, 0] < quad[1, 0] and quad[1, 1] < quad[2, 1]  # from the top left, clockwise
        for number, line in enumerate(row["lines"]):
            own = [word for word in row["words"] if word["line"] == number]
            assert line["text"] == " ".join(word["text"] for word in own)
            assert line["x1"] == min(word["x1"] for word in own) and line["y2"] == max(word["y2"] for word in own)
        assert row["text"] == "\n".join(line["text"] for line in row["lines"])


def test_what_it_reads_is_there(operator: Read, scenes: list[Scene]) -> None:
    right = total = 0
    for scene, row in zip(scenes, rows(operator, [scene.pixels for scene in scenes]), strict=True):
        assert all(held_out(word.text) for word in scene.words)
        total += len(scene.words)
        right += sum(
            any(
                word.text == seen["text"] and np.abs(np.subtract(word.box, [seen[side] for side in SIDES])).max() < 8
                for seen in row["words"]
            )
            for word in scene.words
        )
    assert total >= 8
    assert right >= 0.75 * total


def test_a_batch_gives_what_single_images_give(
    operator: Read, found: list[dict[str, Any]], images: list[np.ndarray]
) -> None:
    for pixels, together in zip(images, found, strict=True):
        (alone,) = rows(operator, [pixels])
        assert alone["text"] == together["text"]
        assert len(alone["words"]) == len(together["words"])
        for one, other in zip(alone["words"], together["words"], strict=True):
            assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
            np.testing.assert_allclose(one["quad"], other["quad"], atol=1e-4)


def test_an_image_without_text_has_empty_columns(operator: Read, found: list[dict[str, Any]]) -> None:
    assert found[-1] == EMPTY
    assert rows(operator, [np.zeros((4, 900, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)]) == [EMPTY, EMPTY]


def test_the_same_twice_and_the_generator_untouched(found: list[dict[str, Any]], images: list[np.ndarray]) -> None:
    state = torch.get_rng_state()
    again = read()
    assert torch.equal(torch.get_rng_state(), state)
    assert rows(again, images) == found


def test_half_precision_stays_near(found: list[dict[str, Any]], images: list[np.ndarray]) -> None:
    half = rows(read(dtype="bfloat16"), images)
    same = [
        one["text"] == other["text"]
        for row, near in zip(found, half, strict=True)
        for one, other in zip(row["words"], near["words"], strict=True)
    ]
    assert np.mean(same) > 0.8
    assert half != found


def detection(name: str, x1: float, y1: float, x2: float, y2: float) -> dict[str, Any]:
    box = dict(zip(SIDES, (x1, y1, x2, y2), strict=True))
    return {**box, "class": name, "score": 0.9, "prompt": name, "mask": None}


def test_only_inside_boxes_of_chosen_classes(found: list[dict[str, Any]], images: list[np.ndarray]) -> None:
    operator = read(inside=["sign", "car"])
    assert operator.reads() == ("detections",)
    index = next(index for index, row in enumerate(found) if len(row["words"]) > 1)
    words, pixels = found[index]["words"], images[index]
    first = words[0]
    box = [first["x1"] - 1, first["y1"] - 1, first["x2"] + 1, first["y2"] + 1]

    def texts(*detections: dict[str, Any]) -> list[str]:
        (row,) = rows(operator, [pixels], {"detections": list(detections)})
        return [word["text"] for word in row["words"]]

    assert texts(detection("sign", *box)) == [first["text"]]
    assert texts(detection("cup", *box), detection("car", 0, 0, 1000, 1000)) == [word["text"] for word in words]
    middle = (first["x1"] + first["x2"]) / 2
    assert texts(detection("sign", box[0], box[1], middle - 2, box[3])) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator._reader, "read", lambda items: pytest.fail("there is nothing to look at"))
        assert texts(detection("cup", *box)) == []
        assert texts() == []
        (row,) = rows(operator, [pixels], {"detections": None})
    assert row == {"words": None, "lines": None, "text": None}


def test_some_images_with_boxes_and_some_without(images: list[np.ndarray], found: list[dict[str, Any]]) -> None:
    operator = read(inside=["sign"], detections="boxes.detections")
    assert operator.reads() == ("boxes.detections",)
    everywhere = [detection("sign", 0, 0, 1000, 1000)]
    given: list[Any] = [everywhere, None, [], everywhere]
    items = [
        operator.prepare(picture(pixels), {"boxes.detections": each})
        for pixels, each in zip(images[:4], given, strict=True)
    ]
    result = operator.infer(items)
    assert isinstance(result[0], dict) and isinstance(result[3], dict)
    assert [row["text"] for row in (result[0], result[3])] == [found[0]["text"], found[3]["text"]]
    assert result[1] == {"words": None, "lines": None, "text": None}
    assert result[2] == EMPTY


def test_a_shard_with_a_broken_file(operator: Read, images: list[np.ndarray], found: list[dict[str, Any]]) -> None:
    files = [png(images[0]), b"no image", png(images[1])]
    given = pa.table({"image_id": pa.array([1, 2, 3], pa.int64()), "key": ["a", "b", "c"]})
    shard = ShardImages(["0", "1", "2"], lambda uri: files[int(uri)])
    table, _ = apply(Job(Worker(operator), given, np.ones(3, bool)), shard)
    assert table.column("decision").to_pylist() == ["kept", "failed", "kept"]
    assert table.column("text").to_pylist() == [found[0]["text"], None, found[1]["text"]]


@pytest.mark.parametrize("part", ["_detector", "_recogniser"])
def test_values_that_are_not_finite_fail_the_row(part: str, images: list[np.ndarray]) -> None:
    operator = read()
    model = getattr(operator._reader, part).model
    last = model.prob_head[-1] if part == "_detector" else model.linear
    last.bias.fill_(torch.nan)
    seen, blank = rows(operator, [images[0], images[-1]])
    assert isinstance(seen, RowError) and "not finite" in str(seen)
    assert isinstance(blank, RowError) if part == "_detector" else blank == EMPTY


def test_cards_of_another_task_are_refused() -> None:
    with pytest.raises(
        ValidationError, match="for text-detection with engine doctr or for ocr with engine rapidocr but"
    ):
        Read.Params(model=RECOGNITION, recognition=RECOGNITION)
    with pytest.raises(ValidationError, match="must be a model card for text-recognition with engine doctr but"):
        Read.Params(model=DETECTION, recognition=load_card(FOLDER / "clip-random.yaml"))
    with pytest.raises(
        OperatorError, match=r"recognition must name a text-recognition card, .* but is not given"
    ) as error:
        Read(Read.Params(model=DETECTION)).check({})
    assert error.value.param == ("recognition",)
    with pytest.raises(OperatorError, match=r"must be DBNet or one of db_resnet34.* but is 'CRNN'"):
        read(model=DETECTION.model_copy(update={"architecture": "CRNN"}))
    with pytest.raises(OperatorError, match=r"preprocess.size must be multiples of 32 .* but is \[300, 320\]"):
        read(model=DETECTION.model_copy(update={"preprocess": {"size": [300, 320]}}))
    with pytest.raises(OperatorError, match=r"must be CRNN or one of crnn_vgg16_bn.* but is 'tesseract'"):
        read(recognition=RECOGNITION.model_copy(update={"architecture": "tesseract"}))


def elsewhere(card: ModelCard, path: Path, **changes: Any) -> ModelCard:
    return card.model_copy(update={"weights": card.weights.model_validate({"path": str(path)}), **changes})


@pytest.mark.parametrize("name", ["model", "recognition"])
def test_wrong_weights_are_refused(name: str, tmp_path: Path) -> None:
    card = {"model": DETECTION, "recognition": RECOGNITION}[name]
    path = tmp_path / "weights.safetensors"
    params = {"model": DETECTION, "recognition": RECOGNITION, name: elsewhere(card, path)}
    moved = Read(Read.Params.model_validate(params))
    with pytest.raises(OperatorError, match=r"must be at .*weights\.safetensors but there is no such file"):
        moved.ready()
    path.write_bytes(b"no weights")
    moved.ready()
    with pytest.raises(ModelError, match="cannot be read"):
        moved.load()
    state = doctr_model.build(card).state_dict()
    dropped = sorted(state)[0]
    save_file({key: tensor for key, tensor in state.items() if key != dropped}, path)
    with pytest.raises(ModelError, match=f"1 missing \\({dropped}\\)"):
        moved.load()


def test_either_card_changes_the_digest(tmp_path: Path) -> None:
    digests = {Read(Read.Params(model=DETECTION, recognition=RECOGNITION)).digest()}
    for name, card in (("model", DETECTION), ("recognition", RECOGNITION)):
        changed = card.model_copy(update={"preprocess": {**card.preprocess, "mean": [0.4, 0.4, 0.4]}})
        params = {"model": DETECTION, "recognition": RECOGNITION, name: changed}
        digests.add(Read(Read.Params.model_validate(params)).digest())
    assert len(digests) == 3


def test_a_model_that_docTR_pushed_to_a_hub_brings_its_characters(tmp_path: Path) -> None:
    from doctr.models.recognition import crnn_mobilenet_v3_small

    model = crnn_mobilenet_v3_small(pretrained=False, pretrained_backbone=False, vocab="abcXYZ")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"vocab": "abcXYZ", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_shape": [3, 32, 96]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    source = {"path": str(tmp_path / "pytorch_model.bin"), "extra_files": ["config.json"]}
    plain = RECOGNITION.model_copy(
        update={
            "architecture": "crnn_mobilenet_v3_small",
            "config": {},
            "preprocess": {},
            "weights": RECOGNITION.weights.model_validate(source),
        }
    )
    built = doctr_model.build(plain)
    assert built.vocab == "abcXYZ"
    assert tuple(built.cfg["mean"]) == (0.1, 0.2, 0.3) and tuple(built.cfg["input_shape"]) == (3, 32, 96)
    without = plain.model_copy(update={"weights": plain.weights.model_copy(update={"extra_files": ()})})
    with pytest.raises(ModelError, match="of another shape"):
        doctr_model.build(without)
    given = without.model_copy(update={"config": {"vocab": "abcXYZ"}})
    assert doctr_model.build(given).vocab == "abcXYZ"
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="must hold a mapping but holds list"):
        doctr_model.build(plain)


@pytest.mark.parametrize("name", ["doctr-db-resnet50", "doctr-crnn-vgg16", "doctr-parseq-multilingual"])
def test_full_size_preprocessing_is_docTR_s(name: str) -> None:
    from doctr.models.detection.differentiable_binarization.pytorch import default_cfgs as detectors
    from doctr.models.recognition.crnn.pytorch import default_cfgs as crnns
    from doctr.models.recognition.parseq.pytorch import default_cfgs as parseqs

    card = load_card(FOLDER / f"{name}.yaml")
    doctr_model.check(card)
    shipped = {**detectors, **crnns, **parseqs}[card.architecture]
    given = card.section("preprocess", doctr_model.Preprocess)
    assert given.size == tuple(shipped["input_shape"][1:])
    assert (given.mean, given.std) == (shipped["mean"], shipped["std"])
    if card.weights.path is not None:
        assert Path(card.weights.path).name in shipped["url"]


def test_a_fast_detector_runs_as_docTR_runs_it() -> None:
    """Its layers are merged after loading; nothing else changes."""
    card = DETECTION.model_copy(
        update={
            "architecture": "fast_tiny",
            "config": {},
            "preprocess": {"size": [64, 64]},
            "weights": DETECTION.weights.model_validate({"random": 3}),
        }
    )
    merged, plain = doctr_model.build(card), doctr_model.initial(card, 3).eval()
    assert sum(1 for _ in merged.modules()) < sum(1 for _ in plain.modules())
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = [model(x, return_model_output=True)["out_map"] for model in (merged, plain)]
    torch.testing.assert_close(maps[0], maps[1], atol=1e-4, rtol=0)


def test_words_per_call_of_the_recognition_model(operator: Read, images: list[np.ndarray]) -> None:
    """The words of all images of a batch go through the recognition model together."""
    calls: list[int] = []
    hook = operator._reader._recogniser.model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    result = rows(operator, images)
    hook.remove()
    assert calls == [sum(len(row["words"]) for row in result)]
    assert calls[0] <= engine.CROPS

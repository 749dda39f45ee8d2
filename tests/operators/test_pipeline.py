from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from PIL import Image
from pycocotools import mask as coco

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.columns.schemas import DETECTIONS, embedding
from labelmill.operators.engines.any_pipeline.pipeline_tasks import CLASSES, ENTITY
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.pipeline import Pipeline
from tests.operators.engines.any_pipeline import tiny_pipelines as tiny
from tests.operators.engines.image_text_to_text import tiny_vlms

TEXTS = ["A red cup stands on the table.", "dog", "this is a photo of the blue sign ."]
ENTAILS = {"id2label": {0: "no", 1: "entailment"}, "label2id": {"no": 0, "entailment": 1}}

Make = Callable[[Path], Path]
MODELS: dict[str, tuple[Make, dict[str, Any]]] = {
    "image-classification": (tiny.vit, {}),
    "zero-shot-image-classification": (tiny.clip, {"candidate_labels": ["dog", "red cup"]}),
    "object-detection": (tiny.yolos, {"threshold": 0.2}),
    "image-segmentation": (tiny.segformer, {}),
    "depth-estimation": (tiny.depth, {}),
    "image-feature-extraction": (tiny.features, {}),
    "text-classification": (lambda folder: tiny.bert(folder, "BertForSequenceClassification"), {}),
    "zero-shot-classification": (
        lambda folder: tiny.bert(folder, "BertForSequenceClassification", **ENTAILS),
        {"candidate_labels": ["dog", "cup"]},
    ),
    "token-classification": (lambda folder: tiny.bert(folder, "BertForTokenClassification"), {}),
    "fill-mask": (lambda folder: tiny.bert(folder, "BertForMaskedLM"), {}),
    "feature-extraction": (lambda folder: tiny.bert(folder, "BertModel"), {}),
    "text-generation": (tiny.gpt2, {"max_new_tokens": 4}),
}
OVER_TEXT = [task for task in MODELS if "image" not in task and task not in ("object-detection", "depth-estimation")]
OVER_IMAGES = [task for task in MODELS if task not in OVER_TEXT]


def picture(height: int, width: int, seed: int) -> DecodedImage:
    """Coloured rectangles, not noise: models shall see differences."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.uint8)
    for _ in range(4):
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        pixels[top : top + height // 2, left : left + width // 2] = rng.integers(0, 256, 3)
    return DecodedImage(pixels, b"", "PNG", "RGB", 1, 1)


PICTURES = [picture(*size, seed) for seed, size in enumerate([(40, 60), (40, 60), (64, 48), (40, 60)])]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(task: str) -> Path:
        if task not in made:
            made[task] = MODELS[task][0](tmp_path_factory.mktemp(task))
        return made[task]

    return folder


def step(task: str, folder: Path, load: bool = True, **params: Any) -> Pipeline:
    if task in OVER_TEXT:
        params.setdefault("column", "caption.text")
    operator = Pipeline(
        Pipeline.Params.model_validate(
            {"task": task, "model": str(folder), "options": MODELS.get(task, (None, {}))[1], **params}
        )
    )
    operator.check({"caption.text": pa.string()} if task in OVER_TEXT else {})
    if load:
        operator.ready()
        operator.load()
    return operator


def look(operator: Pipeline, items: list[Any]) -> list[Any]:
    """Texts or images together; images bucket by bucket, as `apply` does."""
    given = [
        operator.prepare(PICTURES[0], {"caption.text": item}) if operator.params.column else operator.prepare(item, {})
        for item in items
    ]
    results: list[Any] = [None] * len(given)
    for bucket in dict.fromkeys(operator.bucket(item) for item in given):
        indices = [index for index, item in enumerate(given) if operator.bucket(item) == bucket]
        for index, row in zip(indices, operator.infer([given[index] for index in indices]), strict=True):
            results[index] = row
    return results


def inputs(task: str) -> list[Any]:
    if task == "fill-mask":
        return ["a [MASK] cup", "the dog stands on the [MASK] .", "[MASK]"]
    return TEXTS if task in OVER_TEXT else list(PICTURES)


def near(one: Any, other: Any, tolerance: float) -> bool:
    """Equal but for numbers, which differ by no more than `tolerance`."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key], tolerance) for key in one)
    if isinstance(one, (list, np.ndarray)):
        return len(one) == len(other) and all(near(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, (float, np.floating)):
        return abs(float(one) - float(other)) <= tolerance
    return bool(one == other)


def depth(row: dict[str, Any]) -> np.ndarray:
    grey = np.asarray(Image.open(io.BytesIO(row["depth"]))).astype(np.float64)
    values: np.ndarray = row["depth_min"] + grey / 65535 * (row["depth_max"] - row["depth_min"])
    return values


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize("task", MODELS)
def test_columns_are_those_that_it_promises_and_a_batch_is_as_single_ones(
    task: str, folders: Callable[[str], Path]
) -> None:
    operator = step(task, folders(task))
    rows = look(operator, inputs(task))
    table = pa.Table.from_pylist(rows, schema=operator.writes())
    assert table.num_rows == len(inputs(task)) and not any(column.null_count for column in table.columns)
    for item, together in zip(inputs(task), rows, strict=True):
        (alone,) = look(operator, [item])
        if task == "depth-estimation":
            np.testing.assert_allclose(depth(alone), depth(together), atol=1e-4 + together["depth_max"] / 65535)
        else:
            assert near(alone, together, 1e-4 if task != "image-feature-extraction" else 1e-3)  # float16
    assert near(look(operator, inputs(task)), rows, 0)
    assert len({str(row) for row in rows}) > 1


@pytest.mark.parametrize(
    ("task", "schema"),
    [
        ("zero-shot-classification", CLASSES),
        ("fill-mask", CLASSES),
        ("object-detection", pa.schema([("detections", DETECTIONS)])),
        ("image-segmentation", pa.schema([("detections", DETECTIONS)])),
        ("image-feature-extraction", pa.schema([("embedding", embedding(32))])),
        ("token-classification", pa.schema([("entities", pa.list_(ENTITY))])),
        ("text-generation", pa.schema([("text", pa.string())])),
        (
            "depth-estimation",
            pa.schema([("depth", pa.binary()), ("depth_min", pa.float32()), ("depth_max", pa.float32())]),
        ),
    ],
)
def test_schemas(task: str, schema: pa.Schema, folders: Callable[[str], Path]) -> None:
    assert step(task, folders(task), load=False).writes().equals(schema)


def test_classes_are_the_pipeline_s_own(folders: Callable[[str], Path]) -> None:
    folder = folders("image-classification")
    own = transformers.pipeline("image-classification", str(folder), device="cpu")
    (row,) = look(step("image-classification", folder), [PICTURES[2]])
    wanted = own(PICTURES[2].pil())
    assert (row["label"], row["labels"]) == (wanted[0]["label"], [one["label"] for one in wanted])
    assert sorted(row["labels"]) == sorted(tiny.LABELS.values())
    assert row["score"] == row["scores"][0] == pytest.approx(wanted[0]["score"], abs=1e-6)
    (top,) = look(step("image-classification", folder, options={"top_k": 1}), [PICTURES[2]])
    assert top["labels"] == row["labels"][:1]


def test_objects_are_the_pipeline_s_own_and_inside_the_image(folders: Callable[[str], Path]) -> None:
    folder = folders("object-detection")
    own = transformers.pipeline("object-detection", str(folder), device="cpu")
    rows = look(step("object-detection", folder), PICTURES)
    assert sum(len(row["detections"]) for row in rows) > 4
    for image, row in zip(PICTURES, rows, strict=True):
        scores = [one["score"] for one in row["detections"]]
        assert scores == sorted(scores, reverse=True)
        raw = own(image.pil(), threshold=0.2)
        boxes = {tuple(one["box"].values()) for one in raw}
        for one in row["detections"]:
            assert 0 <= one["x1"] < one["x2"] <= image.width and 0 <= one["y1"] < one["y2"] <= image.height
            assert one["class"] in tiny.LABELS.values() and one["prompt"] is None and one["mask"] is None
            inside = [one[side] for side in ("x1", "y1", "x2", "y2")]
            limits = [image.width, image.height] * 2
            assert any(np.array_equal(np.clip(box, 0, limits), inside) for box in boxes)


def test_segments_cover_the_image_once(folders: Callable[[str], Path]) -> None:
    rows = look(step("image-segmentation", folders("image-segmentation")), PICTURES)
    for image, row in zip(PICTURES, rows, strict=True):
        covered = np.zeros((image.height, image.width), int)
        for one in row["detections"]:
            mask = coco.decode({"size": [image.height, image.width], "counts": one["mask"].encode()})
            ys, xs = np.nonzero(mask)
            extent = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert (one["x1"], one["y1"], one["x2"], one["y2"]) == extent
            assert one["score"] is None and one["class"] in tiny.LABELS.values()
            covered += mask
        assert (covered == 1).all()


def test_depth_is_the_pipeline_s_own(folders: Callable[[str], Path]) -> None:
    folder = folders("depth-estimation")
    own = transformers.pipeline("depth-estimation", str(folder), device="cpu")
    (row,) = look(step("depth-estimation", folder), [PICTURES[2]])
    wanted = own(PICTURES[2].pil())["predicted_depth"].squeeze().numpy()
    assert depth(row).shape == (PICTURES[2].height, PICTURES[2].width)
    np.testing.assert_allclose(depth(row), wanted, atol=np.ptp(wanted) / 65535 + 1e-6)


def test_vectors_are_means_over_positions_or_what_the_pooler_gives(folders: Callable[[str], Path]) -> None:
    folder = folders("image-feature-extraction")
    own = transformers.pipeline("image-feature-extraction", str(folder), device="cpu")
    for pool in (False, True):
        raw = np.array(own(PICTURES[0].pil(), pool=pool))[0]
        vector = raw if pool else raw.mean(axis=0)
        (row,) = look(step("image-feature-extraction", folder, options={"pool": pool}), [PICTURES[0]])
        np.testing.assert_allclose(row["embedding"], vector / np.linalg.norm(vector), atol=1e-3)


def test_entities_say_where_they_are(folders: Callable[[str], Path]) -> None:
    rows = look(step("token-classification", folders("token-classification")), TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        assert row["entities"]
        for entity in row["entities"]:
            there = text[entity["start"] : entity["end"]].lower()
            assert there.replace(" ", "") == entity["text"].replace(" ", "")
            assert entity["label"] in tiny.LABELS.values() and 0 < entity["score"] <= 1


def test_masks_are_objects(tmp_path: Path) -> None:
    options = {"points_per_crop": 4, "pred_iou_thresh": -1e9, "stability_score_thresh": 0.0}
    operator = step("mask-generation", tiny.sam(tmp_path), options=options)
    (row,) = look(operator, [PICTURES[2]])
    pa.Table.from_pylist([row], schema=operator.writes())
    assert row["detections"]
    for one in row["detections"]:
        assert one["class"] == "object" and coco.decode({"size": [64, 48], "counts": one["mask"].encode()}).any()


def test_a_vision_language_model_is_asked_in_its_own_chat_and_never_draws_lots(tmp_path: Path) -> None:
    tiny_vlms.idefics3(tmp_path)  # its own settings ask for sampling
    operator = step("image-text-to-text", tmp_path, options={"text": "what is there ?", "max_new_tokens": 6})
    rows = look(operator, PICTURES[:2])
    own = transformers.pipeline("image-text-to-text", str(tmp_path), device="cpu")
    for image, row in zip(PICTURES, rows, strict=False):
        content = [{"type": "image", "image": image.pil()}, {"type": "text", "text": "what is there ?"}]
        chat = [{"role": "user", "content": content}]
        wanted = own(text=chat, return_full_text=False, generate_kwargs={"do_sample": False, "max_new_tokens": 6})
        assert row == {"text": wanted[0]["generated_text"]}
        assert row["text"]
    assert look(operator, PICTURES[:2]) == rows


def test_another_task_gives_json(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that somebody has registered with transformers."""

    class Brightness(transformers.ImageClassificationPipeline):
        def postprocess(self, outputs: Any, **options: Any) -> Any:
            return {"logits": outputs.logits[0], "best": outputs.logits.argmax().item(), "above": np.float32(0.5)}

    known = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
    entry = {**known["image-classification"], "impl": Brightness}
    monkeypatch.setitem(known, "image-brightness", entry)
    operator = step("image-brightness", folders("image-classification"))
    assert operator.writes() == pa.schema([("output", pa.string())])
    first, second = look(operator, PICTURES[:2])
    told = json.loads(first["output"])
    assert set(told) == {"logits", "best", "above"} and len(told["logits"]) == 3
    assert told["best"] == int(np.argmax(told["logits"])) and first != second


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("task", OVER_TEXT)
def test_rows_without_a_text_have_nulls(task: str, folders: Callable[[str], Path]) -> None:
    operator = step(task, folders(task))
    nothing = dict.fromkeys(operator.writes().names)
    assert look(operator, [None, None]) == [nothing, nothing]
    some = inputs(task)[0]
    first, second, third = look(operator, [None, some, None])
    assert (first, third) == (nothing, nothing) and near(second, look(operator, [some])[0], 1e-4)


def test_a_shard_with_a_broken_file_and_images_of_several_sizes(folders: Callable[[str], Path]) -> None:
    def png(image: DecodedImage) -> bytes:
        file = io.BytesIO()
        image.pil().save(file, "PNG")
        return file.getvalue()

    operator = step("image-classification", folders("image-classification"), load=False)
    files = [png(PICTURES[0]), b"no image", *map(png, PICTURES[1:])]
    ids = list(range(1, len(files) + 1))
    given = pa.table({"image_id": pa.array(ids, pa.int64()), "key": [str(number) for number in ids]})
    worker = Worker(operator)
    operator.load()
    table, _ = apply(
        Job(worker, given, np.ones(len(files), bool)), ShardImages([*map(str, range(5))], lambda uri: files[int(uri)])
    )
    assert table.column("decision").to_pylist() == ["kept", "failed", *["kept"] * 3]
    wanted = [row["label"] for row in look(operator, PICTURES)]
    assert table.column("label").to_pylist() == [wanted[0], None, *wanted[1:]]


def test_half_precision_stays_near(folders: Callable[[str], Path]) -> None:
    for task, bound in (("image-classification", 0.05), ("text-classification", 0.05)):
        full, half = (look(step(task, folders(task), dtype=dtype), inputs(task)) for dtype in ("float32", "bfloat16"))
        assert full != half
        for one, other in zip(full, half, strict=True):
            a, b = (dict(zip(row["labels"], row["scores"], strict=True)) for row in (one, other))
            assert a.keys() == b.keys() and max(abs(a[label] - b[label]) for label in a) < bound
    folder = folders("depth-estimation")
    full, half = (
        look(step("depth-estimation", folder, dtype=dtype), PICTURES[:1]) for dtype in ("float32", "bfloat16")
    )
    assert np.abs(depth(full[0]) - depth(half[0])).max() < 0.05 * np.abs(depth(full[0])).max()


def test_values_that_are_not_numbers_fail_the_row(folders: Callable[[str], Path]) -> None:
    operator = step("object-detection", folders("object-detection"))
    next(operator._engine._pipe.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not numbers; try dtype: float32"):
        look(operator, PICTURES[:1])


def test_a_text_with_two_masks_fails(folders: Callable[[str], Path]) -> None:
    (row,) = look(step("fill-mask", folders("fill-mask")), ["a [MASK] on the [MASK]"])
    assert isinstance(row, RowError) and "must hold one mask but holds 2" in str(row)


def test_long_texts_are_cut_off(folders: Callable[[str], Path]) -> None:
    for task in ("text-classification", "feature-extraction"):
        (row,) = look(step(task, folders(task)), ["red cup " * 50])
        assert isinstance(row, dict)


def test_only_what_is_in_the_folder_is_used(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither loading nor looking touches the network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a run must not use the network"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("a run must not use the network"))
    for task in ("object-detection", "text-classification", "zero-shot-image-classification"):
        assert all(isinstance(row, dict) for row in look(step(task, folders(task)), inputs(task)))

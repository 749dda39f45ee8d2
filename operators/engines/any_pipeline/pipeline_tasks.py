"""Tasks of ``transformers.pipeline``: what each looks at, which arguments it takes, and its output as columns.

The outputs are those of transformers 5 (https://huggingface.co/docs/transformers/main_classes/pipelines). A task that
has no columns of its own here gives `output`, its output as a JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from labelmill.operators.columns.schemas import DETECTIONS, SIDES, embedding
from labelmill.operators.errors import RowError

Size = tuple[int, int] | None
"""Height and width of the image; None for a text."""

CLASSES = pa.schema(
    [
        pa.field("label", pa.string()),  # the best one
        pa.field("score", pa.float32()),
        pa.field("labels", pa.list_(pa.string())),  # best first
        pa.field("scores", pa.list_(pa.float32())),
    ]
)
OBJECTS = pa.schema([pa.field("detections", DETECTIONS)])
TEXT = pa.schema([pa.field("text", pa.string())])
DEPTH = pa.schema(
    [
        pa.field("depth", pa.binary()),  # a grey 16-bit PNG of the image's size
        pa.field("depth_min", pa.float32()),  # what its 0 means
        pa.field("depth_max", pa.float32()),  # what its 65535 means
    ]
)
ENTITY = pa.struct(
    [
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("text", pa.string()),
        pa.field("start", pa.int32()),  # the first of its characters in the text, from 0; null: the tokenizer
        pa.field("end", pa.int32()),  # the first one behind it                           does not know
    ]
)
ENTITIES = pa.schema([pa.field("entities", pa.list_(ENTITY))])
OUTPUT = pa.schema([pa.field("output", pa.string())])


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        over: What it looks at.
        columns: What its output becomes; None for a vector, whose size is the model's.
        convert: From the output for one image or text, and the image's size, to the values of the columns.
        options: Arguments that it takes; None where that is not known here.
        required: Those of them that it does not work without.
        defaults: Arguments that have other defaults than transformers'.
        batched: Whether several images or texts at a time give what each gives alone.
        generates: Whether it writes text, token by token.
    """

    over: Literal["images", "text"]
    columns: pa.Schema | None
    convert: Callable[[Any, Size], dict[str, Any]]
    options: tuple[str, ...] | None
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = False
    generates: bool = False

    def schema(self, dimensions: int | None) -> pa.Schema:
        """The columns; `dimensions` is the size of the model's vectors."""
        if self.columns is not None:
            return self.columns
        assert dimensions is not None
        return pa.schema([pa.field("embedding", embedding(dimensions))])


def _classes(output: Any, size: Size) -> dict[str, Any]:
    if isinstance(output, Mapping):  # zero-shot-classification has two lists already
        labels, scores = list(output["labels"]), list(output["scores"])
    else:
        labels, scores = [one["label"] for one in output], [one["score"] for one in output]
    return {"label": labels[0], "score": scores[0], "labels": labels, "scores": scores}


def _filled(output: Any, size: Size) -> dict[str, Any]:
    if isinstance(output[0], list):
        raise RowError(f"the text must hold one mask but holds {len(output)}")
    labels, scores = [one["token_str"] for one in output], [one["score"] for one in output]
    return {"label": labels[0], "score": scores[0], "labels": labels, "scores": scores}


def _objects(output: Any, size: Size) -> dict[str, Any]:
    return {"detections": _detections(output, size, asked=False)}


def _asked_objects(output: Any, size: Size) -> dict[str, Any]:
    return {"detections": _detections(output, size, asked=True)}


def _detections(output: Any, size: Size, asked: bool) -> list[dict[str, Any]]:
    assert size is not None
    found = []
    for one in output:
        box = [one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
        x1, y1, x2, y2 = np.clip(box, 0, [size[1], size[0]] * 2).tolist()
        if x2 > x1 and y2 > y1:
            found.append(_detection((x1, y1, x2, y2), one["label"], one["score"], one["label"] if asked else None))
    return sorted(found, key=lambda one: -one["score"])


def _segments(output: Any, size: Size) -> dict[str, Any]:
    found = [_masked(np.asarray(one["mask"]) > 0, one["label"], one["score"]) for one in output if np.any(one["mask"])]
    return {"detections": sorted(found, key=lambda one: -(one["score"] or 0))}


def _masks(output: Any, size: Size) -> dict[str, Any]:
    pairs = zip(output["masks"], output["scores"], strict=True)
    found = [_masked(np.asarray(mask) > 0, "object", float(score)) for mask, score in pairs if np.any(np.asarray(mask))]
    return {"detections": sorted(found, key=lambda one: -one["score"])}


def _masked(mask: np.ndarray, label: str | None, score: float | None) -> dict[str, Any]:
    from pycocotools import mask as coco

    encoded: Any = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    x, y, width, height = coco.toBbox(encoded).tolist()
    return _detection((x, y, x + width, y + height), label, score, None, encoded["counts"].decode("ascii"))


def _detection(
    box: tuple[float, float, float, float],
    label: str | None,
    score: float | None,
    prompt: str | None,
    mask: str | None = None,
) -> dict[str, Any]:
    return {**dict(zip(SIDES, box, strict=True)), "class": label, "score": score, "prompt": prompt, "mask": mask}


def _depth(output: Any, size: Size) -> dict[str, Any]:
    from PIL import Image

    depth = output["predicted_depth"].float().squeeze().numpy()
    low, high = float(depth.min()), float(depth.max())
    grey = np.round((depth - low) / ((high - low) or 1) * 65535).astype(np.uint16)
    file = BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return {"depth": file.getvalue(), "depth_min": low, "depth_max": high}


def _vector(output: Any, size: Size) -> dict[str, Any]:
    values = np.asarray(output, np.float32)[0]
    if values.ndim == 2:  # tokens, dimensions
        values = values.mean(axis=0)
    elif values.ndim == 3:  # dimensions, rows, columns: a convolutional model
        values = values.mean(axis=(1, 2))
    length = float(np.linalg.norm(values))
    if not 0 < length < np.inf:
        raise RowError("the model gave a vector that is not finite or has no length")
    return {"embedding": (values / length).astype(np.float16)}


def _entities(output: Any, size: Size) -> dict[str, Any]:
    found = [
        {
            "label": one.get("entity_group", one.get("entity")),
            "score": float(one["score"]),
            "text": one["word"],
            "start": one["start"],
            "end": one["end"],
        }
        for one in output
    ]
    return {"entities": found}


def _text(output: Any, size: Size) -> dict[str, Any]:
    return {"text": output[0]["generated_text"]}


def _json(output: Any, size: Size) -> dict[str, Any]:
    try:
        return {"output": json.dumps(output, default=_plain, ensure_ascii=False, allow_nan=False, sort_keys=True)}
    except (TypeError, ValueError) as error:
        raise RowError(f"the output cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """A JSON value for a tensor, an array, a number of NumPy's, or an object that is a mapping."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"it holds {type(value).__name__}")


_GENERATION = ("max_new_tokens", "generate_kwargs", "stop_sequence", "return_full_text", "skip_special_tokens")
_NEW = {"max_new_tokens": 128, "return_full_text": False}

TASKS: dict[str, Task] = {
    "image-classification": Task(
        "images", CLASSES, _classes, ("top_k", "function_to_apply"), defaults={"top_k": 5}, batched=True
    ),
    "zero-shot-image-classification": Task(
        "images",
        CLASSES,
        _classes,
        ("candidate_labels", "hypothesis_template", "tokenizer_kwargs"),
        ("candidate_labels",),
    ),
    "object-detection": Task("images", OBJECTS, _objects, ("threshold",), batched=True),
    "zero-shot-object-detection": Task(
        "images", OBJECTS, _asked_objects, ("candidate_labels", "threshold", "top_k"), ("candidate_labels",)
    ),
    "image-segmentation": Task(
        "images",
        OBJECTS,
        _segments,
        ("subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold"),
        batched=True,
    ),
    "mask-generation": Task("images", OBJECTS, _masks, None),
    "depth-estimation": Task("images", DEPTH, _depth, (), batched=True),
    "image-feature-extraction": Task(
        "images", None, _vector, ("pool", "image_processor_kwargs"), defaults={"pool": False}, batched=True
    ),
    "image-text-to-text": Task("images", TEXT, _text, ("text", *_GENERATION), ("text",), defaults=_NEW, generates=True),
    "document-question-answering": Task("images", OUTPUT, _json, None, ("question",)),
    "text-classification": Task(
        "text",
        CLASSES,
        _classes,
        ("top_k", "function_to_apply", "truncation", "max_length"),
        defaults={"top_k": 5, "truncation": True},
        batched=True,
    ),
    "zero-shot-classification": Task(
        "text",
        CLASSES,
        _classes,
        ("candidate_labels", "hypothesis_template", "multi_label"),
        ("candidate_labels",),
    ),
    "token-classification": Task(
        "text",
        ENTITIES,
        _entities,
        ("aggregation_strategy", "ignore_labels", "stride"),
        defaults={"aggregation_strategy": "simple"},
        batched=True,
    ),
    "fill-mask": Task(
        "text", CLASSES, _filled, ("top_k", "targets", "tokenizer_kwargs"), defaults={"top_k": 5}, batched=True
    ),
    "feature-extraction": Task("text", None, _vector, ("truncation", "tokenize_kwargs"), defaults={"truncation": True}),
    "text-generation": Task("text", TEXT, _text, _GENERATION, defaults=_NEW, generates=True),
}
"""Every task that has columns of its own, or an input that its name does not tell."""

ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "image-to-text": "image-text-to-text",
}

ELSEWHERE = ("audio", "video", "speech", "table", "keypoint-matching")
"""Parts of the names of tasks that look at something else than one image or one text."""


def other(over: Literal["images", "text"]) -> Task:
    """A task that is not in `TASKS`."""
    return Task(over, OUTPUT, _json, None)

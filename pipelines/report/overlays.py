"""What is drawn over the pictures of labelled images: boxes, masks, words and looks, in pixels of the upright image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.gaze import GAZES
from labelmill.operators.read import WORD
from labelmill.pipelines.exports.masks import Mask, MaskError, read_mask
from labelmill.pipelines.report.limits import LARGE, OVERLAY_PARTS, TEXT
from labelmill.pipelines.report.pictures import Picture
from labelmill.pipelines.report.quality import Mistakes
from labelmill.pipelines.report.run_reader import Figures, RunReader
from labelmill.pipelines.steps import Input

GOLDEN_ANGLE = 137.508


class Overlays:
    """Draws labels over pictures.

    Args:
        run: The run.
        labels: The column of its labels.
        mistakes: By image_id what is wrong, where there is truth.
    """

    def __init__(self, run: RunReader, labels: Input, mistakes: Mapping[int, Mistakes]) -> None:
        self._run, self._labels, self._mistakes = run, labels, mistakes
        self._words = _last(run.columns(lambda _, field: field.type.equals(pa.list_(WORD))))
        self._gaze = _last(run.columns(lambda _, field: field.type.equals(GAZES)))
        self._caption = _last(run.columns(lambda step, field: step.operator_name == "ask" and field.name == "answer"))

    def draw(self, ids: Sequence[int], pictures: Mapping[int, Picture], classes: Sequence[str]) -> list[Figures]:
        """One drawing for each image that has a picture; the rest have none.

        Args:
            ids: image_ids.
            pictures: What there is of them.
            classes: All classes; the place of a class decides on its colour.
        """
        shown = [image_id for image_id in ids if image_id in pictures and pictures[image_id].url]
        hues = {name: round(number * GOLDEN_ANGLE) % 360 for number, name in enumerate(sorted(classes))}
        labels = self._run.values(shown, self._labels)
        words, gaze, captions = (
            {} if column is None else self._run.values(shown, column)
            for column in (self._words, self._gaze, self._caption)
        )
        return [
            self._one(image_id, pictures[image_id], labels[image_id] or [], words.get(image_id) or [],
                      gaze.get(image_id) or [], captions.get(image_id), hues)
            for image_id in shown
        ]  # fmt: skip

    def _one(
        self,
        image_id: int,
        picture: Picture,
        labels: list[dict[str, Any]],
        words: list[dict[str, Any]],
        gaze: list[dict[str, Any]],
        caption: str | None,
        hues: Mapping[str, int],
    ) -> Figures:
        mistakes = self._mistakes.get(image_id, Mistakes())
        wrong = set(mistakes.wrong)
        scores = [label["score"] for label in labels if label["score"] is not None]
        text = " ".join(word["text"] or "" for word in words)
        return {
            "image": image_id,
            "width": picture.width,
            "height": picture.height,
            "boxes": [
                _box(label, picture, hues.get(label["class"] or "", 0), number in wrong)
                for number, label in enumerate(labels[:OVERLAY_PARTS]) if _drawable(label)
            ],
            "missed": [{"class": name, **_rectangle(box)} for name, box in mistakes.missed[:OVERLAY_PARTS]],
            "words": [
                {"text": _short(word["text"] or ""), "confidence": word["confidence"], "points": _points(word["quad"])}
                for word in words[:OVERLAY_PARTS] if word["quad"] is not None and _finite(word["quad"])
            ],
            "looks": [
                _look(face) for face in gaze[:OVERLAY_PARTS]
                if _drawable(face) and _finite([face["yaw"], face["pitch"]])
            ],
            "labels": len(labels),
            "classes": sorted({label["class"] or "" for label in labels}),
            "lowest": min(scores) if scores else None,
            "wrong": len(mistakes.wrong),
            "missing": len(mistakes.missed),
            "text": _short(text),
            "caption": _short(caption or ""),
        }  # fmt: skip


def mask_path(mask: Mask, tolerance: float) -> str:
    """The outlines of a mask as an SVG path, parts and holes, to be filled by the even-odd rule.

    Args:
        mask: The mask; an empty one gives an empty path.
        tolerance: Pixels by which the outlines may be simplified (Douglas-Peucker).
    """
    import cv2

    if not mask.area:
        return ""
    crop, left, top = mask.crop()
    # A contour runs through the middles of pixels; of pixels doubled in size it runs along their edges.
    contours, _ = cv2.findContours(crop.repeat(2, 0).repeat(2, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        corners = np.asarray(cv2.approxPolyDP(contour, 2 * tolerance, True)).reshape(-1, 2)
        if len(corners) >= 3:
            points = ((corners + 1) // 2 + np.array([left, top])).tolist()
            parts.append("M" + "L".join(f"{x} {y}" for x, y in points) + "Z")
    return "".join(parts)


def _box(label: dict[str, Any], picture: Picture, hue: int, wrong: bool) -> Figures:
    path = ""
    if label["mask"]:
        try:
            mask = read_mask(label["mask"], picture.height, picture.width)
            path = mask_path(mask, max(0.75, max(picture.width, picture.height) / LARGE / 2))
        except MaskError:
            pass  # the export counts labels whose mask is broken; here the box is shown alone
    return {"class": label["class"] or "", "score": label["score"], "hue": hue, "wrong": wrong, "mask": path,
            **_rectangle([label[side] for side in SIDES])}  # fmt: skip


def _rectangle(box: Sequence[float]) -> dict[str, float]:
    x1, y1, x2, y2 = (round(float(value), 1) for value in box)
    return {"x": x1, "y": y1, "w": round(max(0.0, x2 - x1), 1), "h": round(max(0.0, y2 - y1), 1)}


def _points(quad: Sequence[float]) -> str:
    return " ".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in zip(quad[::2], quad[1::2], strict=True))


def _look(face: dict[str, Any]) -> dict[str, float]:
    """A line from the middle of a face to where it looks, as long as the face is wide for one that looks aside."""
    x, y = (face["x1"] + face["x2"]) / 2, (face["y1"] + face["y2"]) / 2
    yaw, pitch = math.radians(face["yaw"]), math.radians(face["pitch"])
    length = face["x2"] - face["x1"]
    ahead = {"x2": x - length * math.sin(yaw) * math.cos(pitch), "y2": y - length * math.sin(pitch)}
    return {name: round(value, 1) for name, value in {"x1": x, "y1": y, **ahead}.items()}


def _drawable(box: Mapping[str, Any]) -> bool:
    return _finite([box[side] for side in SIDES])


def _finite(values: Sequence[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _short(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _last(columns: list[Input]) -> Input | None:
    return columns[-1] if columns else None

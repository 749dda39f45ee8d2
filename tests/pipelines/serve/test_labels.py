"""Masks, classes, words, gaze and answers are those of a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from labelmill.operators.ask import Ask
from labelmill.operators.classify import Classify
from labelmill.operators.columns.schemas import DETECTIONS, embedding
from labelmill.operators.gaze import Gaze
from labelmill.operators.images.decoded import decode
from labelmill.operators.read import Read
from labelmill.operators.segment import Segment
from labelmill.pipelines.config.cards import find_card
from tests.pipelines.serve.serving import as_in_a_run, sent
from tests.pipelines.serve.test_answers import CLASSES, detected, embedded


def test_instance_masks(server: TestClient, scenes: list[bytes]) -> None:
    found = detected(scenes, score=0.4, nms=0.3, containment=None, max_per_image=300)
    operator = Segment(Segment.Params(model=find_card("sam-miniature"), batch=1))
    expected = as_in_a_run(operator, scenes, detections=pa.array(found, DETECTIONS))
    compared = 0
    for data, own in zip(scenes, expected, strict=True):
        body = {"image": sent(data), "class_filter": CLASSES, "response_mask_format": "rle"}
        exact = server.post("/infer/instance_segmentation", json=body).json()["predictions"]
        outline = server.post("/infer/instance_segmentation", json={**body, "response_mask_format": "polygon"}).json()
        assert [each["rle"]["counts"] for each in exact] == [each["mask"] for each in own["detections"]]
        for rle, polygon in zip(exact, outline["predictions"], strict=True):
            points = [value for point in polygon["points"] for value in (point["x"], point["y"])]
            if len(points) < 6:
                continue
            height, width = rle["rle"]["size"]
            drawn = coco_mask.decode(coco_mask.frPyObjects([points], height, width)[0])
            mask = coco_mask.decode(rle["rle"])
            assert drawn.sum() <= mask.sum() * 1.1
            compared += 1
    assert compared > 5


def test_classes_and_probabilities(server: TestClient, scenes: list[bytes]) -> None:
    card = find_card("clip-miniature")
    vectors = pa.array(list(embedded(scenes, 1).astype(np.float16)), embedding(128))
    operator = Classify(Classify.Params.model_validate({"model": card, "ontology": CLASSES}))
    for data, own in zip(scenes, as_in_a_run(operator, scenes, embedding=vectors), strict=True):
        body = {"image": sent(data), "model_id": "clip-miniature", "class_filter": CLASSES}
        answer = server.post("/infer/classification", json=body).json()
        assert answer["top"] == own["class"]
        by_class = {each["class"]: each["confidence"] for each in answer["predictions"]}
        np.testing.assert_allclose([by_class[name] for name in CLASSES], own["probabilities"], atol=1e-5)
        assert answer["predictions"][0]["confidence"] == answer["confidence"]


def test_words(server: TestClient, scenes: list[bytes]) -> None:
    cards = {"model": find_card("doctr-detection-miniature"), "recognition": find_card("doctr-recognition-miniature")}
    expected = as_in_a_run(Read(Read.Params.model_validate({**cards, "batch": 1})), scenes)
    assert sum(len(own["words"]) for own in expected) > 2
    for data, own in zip(scenes, expected, strict=True):
        answer = server.post("/doctr/ocr", json={"image": sent(data), "generate_bounding_boxes": True}).json()
        assert answer["result"] == " ".join(word["text"] for word in own["words"])
        assert [each["class"] for each in answer["predictions"]] == [word["text"] for word in own["words"]]
        for got, word in zip(answer["predictions"], own["words"], strict=True):
            assert got["x"] == pytest.approx((word["x1"] + word["x2"]) / 2, abs=0.01)
            assert got["confidence"] == pytest.approx(word["confidence"], abs=1e-4)
    many = server.post("/doctr/ocr", json={"image": [sent(each) for each in scenes[:2]]}).json()
    assert [set(each) for each in many] == [{"result", "time", "parent_id"}] * 2


def test_pp_ocr_reads_without_a_card_named(server: TestClient, scenes: list[bytes]) -> None:
    body = {"image": sent(scenes[0]), "pp_ocr_version_id": "pp-ocrv6-small"}
    answer = server.post("/ocr/pp-ocr", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model-id"] == "pp-ocrv6-small"


def test_gaze_in_radians_of_the_faces_that_the_detector_finds(server: TestClient, scenes: list[bytes]) -> None:
    answers = server.post("/gaze/gaze_detection", json={"image": [sent(each) for each in scenes]}).json()
    looks = [(place, each) for place, one in enumerate(answers) for each in one["predictions"]]
    assert len(looks) > 1
    card = find_card("l2cs-miniature")
    for place, look in looks:
        face = look["face"]
        left, top = face["x"] - face["width"] / 2, face["y"] - face["height"] / 2
        box = {"x1": left, "y1": top, "x2": left + face["width"], "y2": top + face["height"], "class": "face"}
        rows = as_in_a_run(Gaze(Gaze.Params(model=card)), [scenes[place]], detections=pa.array([[box]], DETECTIONS))
        assert math.degrees(look["yaw"]) == pytest.approx(rows[0]["gaze"][0]["yaw"], abs=0.5)
        assert math.degrees(look["pitch"]) == pytest.approx(rows[0]["gaze"][0]["pitch"], abs=0.5)
    whole = server.post("/gaze/gaze_detection", json={"image": sent(scenes[0]), "do_run_face_detection": False}).json()
    face = whole[0]["predictions"][0]["face"]
    size = decode(scenes[0])
    assert (face["width"], face["height"]) == (size.width, size.height)


def asked(scenes: list[bytes], prompt: str) -> list[str]:
    operator = Ask(Ask.Params(model=find_card("vlm-miniature"), prompt=prompt, batch=1))
    return [row["answer"] for row in as_in_a_run(operator, scenes)]


def test_answers_of_a_vision_language_model(server: TestClient, scenes: list[bytes]) -> None:
    for prompt in ("Describe the image.", "Is there a face?"):
        body = {"image": [sent(each) for each in scenes[:3]], "prompt": prompt, "model_id": "vlm-miniature"}
        answers = server.post("/infer/lmm", json=body).json()
        assert [each["response"] for each in answers] == asked(scenes[:3], prompt)
    body = {"image": sent(scenes[0]), "prompt": "Is there a face?"}
    by_path = server.post("/infer/lmm/vlm-miniature", json=body)
    assert by_path.json()["response"] == asked(scenes[:1], "Is there a face?")[0]
    assert server.post("/infer/lmm/vlm-miniature", json={**body, "model_id": "smolvlm-256m"}).status_code == 422


def test_masks_of_boxes(server: TestClient, scenes: list[bytes]) -> None:
    found = detected(scenes[:3], score=0.4)
    operator = Segment(Segment.Params(model=find_card("sam-miniature"), batch=1))
    expected = as_in_a_run(operator, scenes[:3], detections=pa.array(found, DETECTIONS))
    for data, own in zip(scenes, expected, strict=False):
        prompts = [
            {
                "box": {
                    "x": (each["x1"] + each["x2"]) / 2,
                    "y": (each["y1"] + each["y2"]) / 2,
                    "width": each["x2"] - each["x1"],
                    "height": each["y2"] - each["y1"],
                }
            }
            for each in own["detections"]
        ]
        body = {"image": sent(data), "prompts": {"prompts": prompts}, "sam2_version_id": "hiera_tiny", "format": "rle"}
        answer = server.post("/sam2/segment_image", json=body)
        assert answer.status_code == 200, answer.text
        for got, mask, predicted in zip(
            answer.json()["predictions"],
            (each["mask"] for each in own["detections"]),
            own["predicted_iou"],
            strict=True,
        ):
            height, width = got["masks"]["size"]
            one, other = (
                coco_mask.decode({"size": [height, width], "counts": each}) for each in (got["masks"]["counts"], mask)
            )
            assert np.abs(one.astype(int) - other).mean() < 0.001
            assert got["confidence"] == pytest.approx(predicted, abs=1e-3)
        seen = server.post("/sam2/embed_image", json={"image": sent(data), "image_id": "seen"}).json()
        again = {"image_id": seen["image_id"], "prompts": prompts, "format": "json"}
        polygons = server.post("/sam2/segment_image", json=again).json()["predictions"]
        assert len(polygons) == len(prompts)
        assert all(each["format"] == "polygon" for each in polygons)


def test_prompts_that_cannot_be_asked(server: TestClient, scenes: list[bytes]) -> None:
    def refused(status: int, word: str, route: str = "/sam2/segment_image", **body: Any) -> None:
        answer = server.post(route, json=body)
        assert answer.status_code == status, answer.text
        assert word in answer.json()["message"]

    image = sent(scenes[0])
    points = [{"points": [{"x": 5, "y": 5, "positive": True}]}]
    refused(400, "boxes only", image=image, prompts=points)
    refused(422, "one of the two", image=image, prompts=[{}])
    refused(422, "width", image=image, prompts=[{"box": {"x": 1, "y": 1, "width": -3, "height": 2}}])
    refused(404, "send the image again", image_id="never", prompts=[])
    refused(422, "image_id", prompts=[])
    refused(422, "label", "/sam/segment_image", image=image)
    refused(501, "class_filter", "/sam3/concept_segment", image=image)


def test_points_with_a_model_that_knows_them(server: TestClient, scenes: list[bytes], points_card: str) -> None:
    """Drawn weights: the masks mean nothing, but a second point must change them, and the best comes first."""
    one = {"image": sent(scenes[0]), "sam_version_id": points_card, "point_coords": [[90, 60]], "point_labels": [1]}
    answer = server.post("/sam/segment_image", json=one)
    assert answer.status_code == 200, answer.text
    scores = answer.json()["scores"]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    two = {**one, "point_coords": [[90, 60], [20, 20]], "point_labels": [1, 0]}
    assert server.post("/sam/segment_image", json=two).json()["scores"] != scores
    padded = {**one, "point_coords": [[90, 60], [0, 0]], "point_labels": [1, -1]}
    assert server.post("/sam/segment_image", json=padded).json()["scores"] == scores
    seen = server.post("/sam/embed_image", json={"image": sent(scenes[0]), "sam_version_id": points_card}).json()
    assert np.array(seen["embeddings"]).ndim == 4
    again = {**{name: value for name, value in one.items() if name != "image"}, "image_id": seen["image_id"]}
    assert server.post("/sam/segment_image", json=again).json()["scores"] == pytest.approx(scores, abs=1e-5)

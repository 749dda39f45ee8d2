"""The server's answers are those of a run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detect import Detect
from labelmill.operators.embed import Embed
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.images.decoded import decode
from labelmill.operators.select import Select
from labelmill.pipelines.config.cards import find_card
from tests.pipelines.serve.serving import as_in_a_run, client, sent

CLASSES = ["car", "face", "sign", "tree"]


def embedded(files: list[bytes], batch: int) -> np.ndarray:
    rows = as_in_a_run(Embed(Embed.Params(model=find_card("clip-miniature"), batch=batch)), files)
    return np.array([row["embedding"] for row in rows], np.float32)


def detected(files: list[bytes], **select: Any) -> list[list[dict[str, Any]]]:
    card = find_card("grounding-dino-miniature")
    given = {"model": card, "ontology": CLASSES, "batch": 1}
    raw = [row["detections"] for row in as_in_a_run(Detect(Detect.Params.model_validate(given)), files)]
    rows = as_in_a_run(Select(Select.Params(**select)), files, detections=pa.array(raw, DETECTIONS))
    return [row["detections"] for row in rows]


def test_a_batch_of_one_request_gives_a_runs_vectors_bit_for_bit(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), batch=len(scenes), wait=10) as server:
        answer = server.post("/clip/embed_image", json={"image": [sent(each) for each in scenes]})
    assert answer.status_code == 200
    assert answer.headers["x-model-id"] == "clip-miniature"
    assert np.array_equal(np.array(answer.json()["embeddings"], np.float32), embedded(scenes, len(scenes)))


def test_one_image_at_a_time_gives_a_runs_vectors_bit_for_bit(server: TestClient, scenes: list[bytes]) -> None:
    found = [server.post("/clip/embed_image", json={"image": sent(each)}).json()["embeddings"][0] for each in scenes]
    assert np.array_equal(np.array(found, np.float32), embedded(scenes, 1))


def test_requests_of_many_clients_share_batches_and_give_the_same_to_a_last_place(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), wait=0.2) as server, ThreadPoolExecutor(24) as pool:
        files = scenes * 4

        def ask(data: bytes) -> list[float]:
            return server.post("/clip/embed_image", json={"image": sent(data)}).json()["embeddings"][0]

        found = np.array(list(pool.map(ask, files)), np.float32)
        figures = server.get("/metrics").text
    calls = float(next(line for line in figures.splitlines() if "labelmill_batch_images_count" in line).split()[-1])
    assert calls < len(files) / 2
    # A BLAS adds up in another order for another number of rows: the last place of a float16 may differ, no more.
    np.testing.assert_allclose(found, np.tile(embedded(scenes, 1), (4, 1)), atol=2e-4)


def test_labels_are_those_of_detect_and_select(server: TestClient, scenes: list[bytes]) -> None:
    expected = detected(scenes, score=0.4, nms=0.3, containment=None, max_per_image=300)
    assert sum(map(len, expected)) > 5
    for data, own in zip(scenes, expected, strict=True):
        body = {"model_id": "grounding-dino-miniature", "image": sent(data), "class_filter": CLASSES}
        answer = server.post("/infer/object_detection", json=body).json()
        size = decode(data)
        assert answer["image"] == {"width": size.width, "height": size.height}
        assert [(each["class"], each["confidence"]) for each in answer["predictions"]] == [
            (each["class"], each["score"]) for each in own
        ]
        for got, wanted in zip(answer["predictions"], own, strict=True):
            assert got["class_id"] == CLASSES.index(got["class"])
            assert got["x"] - got["width"] / 2 == pytest.approx(wanted["x1"], abs=1e-4)
            assert got["y"] + got["height"] / 2 == pytest.approx(wanted["y2"], abs=1e-4)


def test_questions_of_two_clients_do_not_mix(server: TestClient, scenes: list[bytes]) -> None:
    """They share one model: what one asks for must never come out of the other's request."""

    def ask(text: str) -> list[dict[str, Any]]:
        body = {"image": sent(scenes[0]), "text": [text], "box_threshold": 0.1}
        answer = server.post("/grounding_dino/infer", json=body)
        assert answer.status_code == 200, answer.text
        return [{**each, "detection_id": ""} for each in answer.json()["predictions"]]

    alone = {text: ask(text) for text in CLASSES}
    assert len({str(found) for found in alone.values()}) > 1
    with ThreadPoolExecutor(8) as pool:
        texts = CLASSES * 6
        for text, found in zip(texts, pool.map(ask, texts), strict=True):
            assert [each["class"] for each in found] == [text] * len(found)
            assert len(found) == len(alone[text])
            for got, wanted in zip(found, alone[text], strict=True):
                assert got["confidence"] == pytest.approx(wanted["confidence"], abs=1e-5)


def test_class_ids_are_places_in_the_text(server: TestClient, scenes: list[bytes]) -> None:
    body = {"image": [sent(each) for each in scenes], "text": ["tree", " Tree", "face", "car"], "box_threshold": 0.3}
    answers = server.post("/grounding_dino/infer", json=body).json()
    assert len(answers) == len(scenes)
    pairs = {(each["class"], each["class_id"]) for one in answers for each in one["predictions"]}
    assert pairs
    assert pairs <= {("tree", 0), ("face", 2), ("car", 3)}


def test_texts_and_comparisons(server: TestClient, scenes: list[bytes]) -> None:
    texts = ["a red car", "a face"]
    vectors = server.post("/clip/embed_text", json={"text": texts}).json()["embeddings"]
    own = encoder.text_encoder(find_card("clip-miniature")).encode(texts)
    np.testing.assert_allclose(vectors, own, atol=1e-6)
    image = np.array(server.post("/clip/embed_image", json={"image": sent(scenes[0])}).json()["embeddings"])[0]
    by_list = server.post("/clip/compare", json={"subject": sent(scenes[0]), "prompt": texts}).json()["similarity"]
    np.testing.assert_allclose(by_list, own @ image / np.linalg.norm(image), atol=1e-5)
    named = {"subject": sent(scenes[0]), "prompt": dict(zip("ab", texts, strict=True)), "prompt_type": "text"}
    assert list(server.post("/clip/compare", json=named).json()["similarity"]) == ["a", "b"]
    images = {"subject": sent(scenes[0]), "prompt": [sent(scenes[0]), sent(scenes[1])], "prompt_type": "image"}
    same, other = server.post("/clip/compare", json=images).json()["similarity"]
    assert same == pytest.approx(1, abs=1e-5) and other < same


def test_a_form_is_as_good_as_json(server: TestClient, scenes: list[bytes]) -> None:
    by_json = server.post(
        "/grounding_dino/infer", json={"image": sent(scenes[1]), "text": ["face", "car"], "box_threshold": 0.2}
    ).json()
    by_form = server.post(
        "/grounding_dino/infer",
        files={"file": ("a.jpg", scenes[1])},
        data={"text": '["face", "car"]', "box_threshold": "0.2"},
    ).json()
    assert len(by_form["predictions"]) == len(by_json["predictions"])
    assert [each["confidence"] for each in by_form["predictions"]] == [
        each["confidence"] for each in by_json["predictions"]
    ]

"""Models come when they are asked for and go when there is no room."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from labelmill.pipelines.errors import UserError
from labelmill.pipelines.serve.app import create_app
from labelmill.pipelines.serve.settings import Settings
from tests.pipelines.serve.serving import client, sent


def loaded(server: TestClient) -> list[str]:
    return [each["model_id"] for each in server.get("/model/registry").json()["models"]]


def test_models_come_and_the_least_recently_used_goes(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), keep=2) as server:
        assert loaded(server) == ["clip-miniature"]
        added = server.post("/model/add", json={"model_id": "grounding-dino-miniature", "api_key": None}).json()
        assert {each["model_id"]: each["task_type"] for each in added["models"]} == {
            "clip-miniature": "classification",
            "grounding-dino-miniature": "object-detection",
        }
        assert server.post("/clip/embed_image", json={"image": sent(scenes[0])}).status_code == 200
        server.post("/model/add", json={"model_id": "sam-miniature"})
        assert loaded(server) == ["clip-miniature", "sam-miniature"]
        server.post("/model/remove", json={"model_id": "clip-miniature"})
        assert loaded(server) == ["sam-miniature"]
        # It is still the server's own model for embedding: it comes again.
        assert server.post("/clip/embed_image", json={"image": sent(scenes[0])}).status_code == 200
        assert server.post("/model/clear").json()["models"] == []
        listed = {each["id"]: each["loaded"] for each in server.get("/v1/models").json()["data"]}
        assert listed == {"clip-miniature": False}


def test_models_stay_within_memory() -> None:
    with client(cards=("clip-miniature",), memory_gb=0.45) as server:
        server.post("/model/add", json={"model_id": "l2cs-miniature"})
        assert loaded(server) == ["l2cs-miniature"]
        answer = server.post("/model/add", json={"model_id": "sam-miniature"})
        assert answer.status_code == 507
        assert "0.5 GB" in answer.json()["message"]
        assert loaded(server) == ["l2cs-miniature"]


def test_only_the_named_cards() -> None:
    with client(cards=("clip-miniature",), cards_on_demand=False) as server:
        answer = server.post("/model/add", json={"model_id": "sam-miniature"})
        assert answer.status_code == 404
        assert loaded(server) == ["clip-miniature"]


def test_weights_that_are_not_here_are_told_with_the_command_that_gets_them() -> None:
    with client() as server:
        answer = server.post("/model/add", json={"model_id": "clip-vit-b-32"})
        assert answer.status_code == 404
        assert "labelmill models pull clip-vit-b-32" in answer.json()["message"]
        assert server.get("/readiness").status_code == 200
        answer = server.post("/clip/embed_text", json={"text": "x"})
        assert answer.status_code == 404
        assert "/model/add" in answer.json()["message"]


@pytest.mark.parametrize("name", ["clip-vit-b-32", "no-such-card"])
def test_a_server_does_not_start_without_what_it_is_to_serve(name: str) -> None:
    with pytest.raises(Exception, match=name) as caught:
        create_app(Settings(cards=(name,)))
    assert isinstance(caught.value, UserError)

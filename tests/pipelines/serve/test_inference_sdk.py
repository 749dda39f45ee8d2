"""Roboflow Inference's own client works unchanged. It wants packages of other versions: an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.serve.serving import CARDS, listening

PYTHON = os.environ.get("INFERENCE_SDK_PYTHON", "")
WHY = "INFERENCE_SDK_PYTHON must name the Python of an environment that has inference-sdk 1.8"

pytestmark = pytest.mark.skipif(not PYTHON, reason=WHY)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, scenes: list[bytes]) -> dict[str, Any]:
    image = tmp_path_factory.mktemp("sdk") / "scene.jpg"
    image.write_bytes(scenes[0])
    # The client sends no classes with a classification: they are the server's.
    cards = tuple(card for card in CARDS if card != "sam-miniature")
    with listening(cards=cards, ontology={"face": "face", "car": "car"}) as address:
        script = str(Path(__file__).with_name("sdk_calls.py"))
        ran = subprocess.run([PYTHON, script, address, str(image)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_models_are_listed_loaded_and_unloaded(told: dict[str, Any]) -> None:
    assert told["info"] == "labelmill"
    assert "sam-miniature" not in told["before"] + told["after"]
    assert "sam-miniature" in told["added"]
    assert "no-such/1" in told["unknown"]


def test_every_method_gets_what_it_needs(told: dict[str, Any]) -> None:
    assert {each["class"] for each in told["detection"]["predictions"]} <= {"face", "car"}
    assert [len(each["predictions"]) for each in told["two"]] == [len(told["detection"]["predictions"])] * 2
    assert told["classification"]["top"] in ("face", "car")
    assert len(told["compare"]["similarity"]) == 2
    image = told["image"][0] if isinstance(told["image"], list) else told["image"]
    assert len(image["embeddings"][0]) == len(told["texts"]["embeddings"][0]) == 128
    assert len(told["ocr"]["predictions"]) == len(told["ocr"]["result"].split())
    assert told["sam2"]["predictions"][0]["format"] == "polygon"
    assert told["lmm"]["response"] in ("yes", "no")

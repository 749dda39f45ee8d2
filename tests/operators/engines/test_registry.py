"""A card's task and engine are the path of the code that builds it; an engine may be a user's own."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelmill import CONF, ROOT
from labelmill.operators.detect import Detect
from labelmill.operators.engines.registry import engine, path_of, require
from labelmill.operators.models.card import ModelCard, ModelError, load_card
from labelmill.operators.models.engines import BUILT_IN

CARDS = [load_card(path) for path in sorted((CONF / "models").glob("*.yaml"))]

OWN = '''
import numpy as np
from labelmill.operators.engines.detection.detector import Answer

class Middle:
    """Finds every prompt in the middle of the image."""
    architectures, extra = ("any",), None
    def __init__(self, card, dtype): self.asked = []
    @staticmethod
    def check(card, ontology): pass
    def ask(self, ontology):
        self.asked = list(ontology.prompts())
        return self.asked
    def prepare(self, pixels): return pixels
    def bucket(self, item): return None
    def detect(self, items):
        shape = (len(items), 1, len(self.asked))
        boxes = np.tile(np.float32([0.25, 0.25, 0.75, 0.75]), (len(items), 1, 1))
        yield Answer(np.arange(len(self.asked)), np.full(shape, 0.9, np.float32), boxes)
'''


def card(**changes: Any) -> ModelCard:
    given = {"name": "mine", "task": "detection", "engine": "my_engine:Middle", "architecture": "any"}
    return ModelCard.model_validate({**given, "weights": {"random": 0}, "licence": "none", "memory_gb": 0.1, **changes})


@pytest.fixture
def own(working_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = working_directory / "my_engine.py"
    path.write_text(OWN)
    monkeypatch.syspath_prepend(str(working_directory))
    monkeypatch.delitem(sys.modules, "my_engine", raising=False)
    return path


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_task_and_engine_are_the_path(card: ModelCard) -> None:
    assert (ROOT / Path(*path_of(card.task, card.engine).split(".")[1:])).with_suffix(".py").is_file()
    assert require(card.task)(card) is card
    assert any(hasattr(engine(card), name) for name in ("check", "check_cards"))


def test_every_engine_that_is_named_is_there() -> None:
    for task, names in BUILT_IN.items():
        for name in names:
            assert find_spec(path_of(task, name)) is not None, (task, name)


def test_a_users_own_engine_detects(own: Path) -> None:
    detect = Detect(Detect.Params(model=card(), ontology={"cup": ["cup", "mug"]}, floor=0.5))
    detect.check({})
    detect.ready()
    detect.load()
    pixels = np.zeros((40, 80, 3), np.uint8)
    (row,) = detect.infer([detect.prepare(type("Image", (), {"pixels": pixels})(), {"image_id": 1, "key": "a"})])
    (found, other) = row["detections"]
    assert (found["class"], other["class"]) == ("cup", "cup")
    assert [found[side] for side in ("x1", "y1", "x2", "y2")] == [20, 10, 60, 30]


def test_an_edit_of_it_is_another_model(own: Path) -> None:
    before = card().digest()
    assert card().digest() == before
    own.write_text(OWN + "# edited\n")
    assert card().digest() != before


def test_one_that_is_not_there_is_told(own: Path) -> None:
    with pytest.raises(ModelError, match=r"engine nowhere:Middle cannot be imported: No module named 'nowhere'"):
        engine(card(engine="nowhere:Middle"))
    with pytest.raises(ModelError, match=r"module my_engine has no 'Other'"):
        engine(card(engine="my_engine:Other"))
    with pytest.raises(ModelError, match=r"engine must be transformers or groundingdino but is onnxruntime"):
        engine(card(engine="onnxruntime"))


def test_a_card_for_something_else_is_refused() -> None:
    message = (
        "must be a model card for text-detection with engine doctr or for ocr with engine rapidocr but mine is for"
    )
    with pytest.raises(ValueError, match=message):
        require("text-detection", "ocr")(card())

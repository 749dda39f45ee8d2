from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelmill.operators.ask import Ask
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard, ModelError
from labelmill.operators.models.card import Weights
from tests.drawing import picture
from tests.operators.engines.image_text_to_text import tiny_vlms
from tests.operators.test_ask import SIZES, ask, rows

IMAGES = [picture(*size) for size in SIZES[:4]]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return tiny_vlms.florence2(tmp_path_factory.mktemp("florence2"))


class Reference:
    """transformers alone, as its documentation shows."""

    def __init__(self, card: ModelCard) -> None:
        import transformers

        folder = Path(str(card.weights.path)).parent
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.model = transformers.Florence2ForConditionalGeneration.from_pretrained(folder).eval()

    def inputs(self, image: DecodedImage, prompt: str) -> Any:
        return self.processor(text=prompt, images=image.pil(), return_tensors="pt")

    def ids(self, image: DecodedImage, prompt: str) -> Any:
        return self.model.generate(**self.inputs(image, prompt), max_new_tokens=16)

    def text(self, image: DecodedImage, prompt: str) -> str:
        said = self.processor.batch_decode(self.ids(image, prompt), skip_special_tokens=True)
        return str(said[0]).strip()

    def parsed(self, image: DecodedImage, prompt: str, task: str) -> Any:
        said = self.processor.batch_decode(self.ids(image, prompt), skip_special_tokens=False)[0]
        return self.processor.post_process_generation(said, task=task, image_size=(image.width, image.height))[task]

    @torch.no_grad()
    def likelihood(self, image: DecodedImage, prompt: str, answer: str, end: bool) -> float:
        """One token at a time, from the start each time."""
        said, total = [1, 2], 0.0
        tokens = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        for token in [*tokens, *([tiny_vlms.ANSWER_ENDS] if end else [])]:
            logits = self.model(**self.inputs(image, prompt), decoder_input_ids=torch.tensor([said])).logits[0, -1]
            total += float(logits.double().log_softmax(0)[token])
            said.append(token)
        return total


def test_texts_boxes_and_probabilities_are_transformers_own(card: ModelCard) -> None:
    reference = Reference(card)
    texts = [reference.text(image, "<CAPTION>") for image in IMAGES]
    assert len(set(texts)) > 1
    assert [row["answer"] for row in rows(ask(card, prompt="<CAPTION>", max_tokens=16), IMAGES)] == texts
    found = 0
    for task, more in (("<OD>", ""), ("<OPEN_VOCABULARY_DETECTION>", "a red car")):
        for image, row in zip(IMAGES, rows(ask(card, prompt=task + more, max_tokens=16), IMAGES), strict=True):
            expected = reference.parsed(image, task + more, task)
            assert json.loads(row["answer"]) == json.loads(json.dumps(expected))
            found += len(expected["bboxes"])
    assert found
    for answers in (("yes", "no"), ("red", "a red car", "blue")):
        end = any(" " in answer for answer in answers)
        for image, row in zip(IMAGES, rows(ask(card, prompt="<VQA> car", answers=answers), IMAGES), strict=True):
            scores = np.array([reference.likelihood(image, "<VQA> car", answer, end) for answer in answers])
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            assert row["answer"] == answers[int(shares.argmax())]
            assert row["probability"] == pytest.approx(shares.max(), abs=1e-4)


def test_a_batch_gives_what_single_images_give(card: ModelCard) -> None:
    for params in ({"prompt": "<CAPTION>"}, {"prompt": "<OD>"}, {"prompt": "<VQA>", "answers": ["red", "a red car"]}):
        operator = ask(card, max_tokens=16, **params)
        together = rows(operator, IMAGES)
        for image, row in zip(IMAGES, together, strict=True):
            (alone,) = rows(operator, [image])
            assert row["answer"] == alone["answer"]
            assert row["probability"] == pytest.approx(alone["probability"], abs=1e-4)


def test_answers_of_different_length_share_a_batch(card: ModelCard) -> None:
    """What fills the shorter one up is no part of it."""
    operator = ask(card, prompt="<CAPTION>")
    engine = operator._engine
    for ids in ([1, 2, 115, 1], [1, 2, 115, 1, 0, 0]):
        assert engine._text(ids, (9, 9)) == engine._processor.tokenizer.decode([115])
    boxes = ask(card, prompt="<OD>")._engine
    ids = [1, 2, 115, 4, 5, 54, 55, 1]
    assert json.loads(boxes._text(ids, (100, 100)))["bboxes"] == [[0, 1, 50, 51]]
    assert boxes._text([*ids, 0, 0], (100, 100)) == boxes._text(ids, (100, 100))


def test_the_same_twice_and_half_precision_near(card: ModelCard) -> None:
    params: dict[str, Any] = {"prompt": "<VQA> car", "answers": ["yes", "no"]}
    full, again, half = (rows(ask(card, dtype=dtype, **params), IMAGES) for dtype in ("float32", "float32", "bfloat16"))
    assert full == again
    shares = [
        [row["probability"] if row["answer"] == "yes" else 1 - row["probability"] for row in part]
        for part in (full, half)
    ]
    assert 0 < np.abs(np.subtract(*shares)).max() < 0.05


def test_a_model_that_gives_no_numbers_fails_its_rows(card: ModelCard) -> None:
    for params in ({"prompt": "<CAPTION>"}, {"prompt": "<VQA>", "answers": ["yes", "no"]}):
        operator = ask(card, **params)
        with torch.no_grad():
            operator._engine.model.get_output_embeddings().weight.fill_(float("nan"))
        (row,) = rows(operator, IMAGES[:1])
        assert isinstance(row, RowError)
        assert "not finite" in str(row)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "prompt must begin with a task that Florence-2 learned, such as <CAPTION>"),
        ({"prompt": "<OD> cars"}, "Task token <OD> should be the only content"),
        ({"prompt": "<CAPTION>", "schema": {"type": "object"}}, "schema must not be given"),
    ],
)
def test_what_the_model_cannot_be_asked_is_refused(card: ModelCard, params: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        ask(card, **params)


def test_cards_and_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "florence2"
    given = tiny_vlms.florence2(folder)
    for changes in ({"config": {"model": {}}}, {"preprocess": {"size": 3}}, {"weights": Weights(random=0)}):
        with pytest.raises(ModelError, match="config and preprocess must be empty and weights not random"):
            Ask(Ask.Params(model=given.model_copy(update=changes), prompt="<OD>")).check({})
    other = Path(str(tiny_vlms.idefics3(tmp_path / "other").weights.path)).read_bytes()
    for name, content, message in (
        (
            "model.safetensors",
            other,
            "must fit Florence2ForConditionalGeneration but",
        ),
        ("model.safetensors", b"corrupt", "cannot be read"),
        ("config.json", b"{", "cannot be read"),
        ("tokenizer.json", b"{", "processor cannot be read"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            ask(given, prompt="<OD>")
        (folder / name).write_bytes(whole)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="there is no such file"):
        ask(given, prompt="<OD>")

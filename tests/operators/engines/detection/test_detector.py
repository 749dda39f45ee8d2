"""From names as people write them to classes: none is lost, and none becomes another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labelmill.operators.detect import Detect
from labelmill.operators.engines.detection import captions, owlv2
from labelmill.operators.engines.detection.detector import Answer
from labelmill.operators.models import ModelCard
from labelmill.operators.ontology import Ontology
from tests.drawing import picture
from tests.operators.engines.detection.test_captions import HARD, TOKENISER, names, ontologies
from tests.operators.engines.detection.tiny_detectors import (
    CARDS,
    ONTOLOGY,
    OWLV2,
    PLAIN,
    ROOTS,
    card_of,
    detect,
    lvis_like,
)

LVIS = lvis_like(1203)


@pytest.fixture(scope="module", params=CARDS)
def card(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    found = card_of(request.param, tmp_path_factory.mktemp("weights"))
    if found.config.get("tokenizer") == "ascii":  # whole words make the captions fewer
        found = found.model_copy(update={"config": {**found.config, "words": ROOTS}})
    return found


def test_the_names_are_as_awkward_as_lvis() -> None:
    assert len(set(LVIS)) == 1203
    for mark in "./()_-?'&":
        assert sum(mark in name for name in LVIS) > 50
    assert sum(name != name.lower() for name in LVIS) > 300
    inside = sum(one.lower() in other.lower() for one in ROOTS for other in LVIS)
    assert inside > 3000


def test_1203_names_are_all_asked_and_found(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = detect(card, LVIS, floor=0, max_detections=10**6)
    assert sorted(operator._asked) == sorted((name, name) for name in LVIS)
    look, asked = operator._engine.detect, []

    def listening(items: list[Any]) -> Iterator[Answer]:
        for answer in look(items):
            asked.extend(answer.prompts.tolist())
            assert answer.scores.shape[2] == len(answer.prompts)
            yield answer

    monkeypatch.setattr(operator._engine, "detect", listening)
    (row,) = operator.infer([operator.prepare(picture(160, 160), {})])
    assert sorted(asked) == list(range(1203))
    assert isinstance(row, dict)
    assert {found["class"] for found in row["detections"]} == set(LVIS)
    assert all(found["class"] == found["prompt"] for found in row["detections"])


def test_the_image_is_encoded_once_and_each_text_once() -> None:
    operator = detect(PLAIN, LVIS[:200])
    engine = operator._engine
    calls = {"images": 0, "texts": 0}
    for name, wrapper in (("images", engine._images), ("texts", engine._texts)):  # type: ignore[attr-defined]
        wrapper.backbone.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    item = operator.prepare(picture(160, 160), {}).given
    texts = sum(1 for _ in engine.detect([item]))
    assert texts > 5
    assert calls == {"images": 1, "texts": texts}
    next(engine.detect([item, item]))
    assert calls == {"images": 2, "texts": texts}


@cache
def loaded(card_name: str) -> Detect:
    return detect({"plain": PLAIN, "owlv2": OWLV2}[card_name], ONTOLOGY, floor=0.5)


@given(ontologies(), st.data())
@settings(deadline=None)
def test_a_detection_has_the_class_whose_words_fired(ontology: Ontology, data: st.DataObject) -> None:
    """Grounding DINO whose model answers to one phrase, wherever it stands between delimiters."""
    operator = loaded("plain")
    operator._asked = operator._engine.ask(ontology)
    prompt, name = data.draw(st.sampled_from(list(ontology.prompts())))
    wanted = TOKENISER.encode(captions.clean(prompt), add_special_tokens=False)

    def look(pixels: torch.Tensor, caption: captions.Caption) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.full((len(pixels), 1, 256), -20.0)
        start = 1
        for place, token in enumerate(caption.ids):
            if token == captions.DOT:
                if list(caption.ids[start:place]) == wanted:
                    logits[..., start:place] = 20
                start = place + 1
        return logits, torch.full((len(pixels), 1, 4), 0.5)

    with patch.object(operator._engine, "_look", look):
        (row,) = operator.infer([operator.prepare(picture(160, 160), {})])
    assert isinstance(row, dict)
    (found,) = row["detections"]
    assert found["class"] == name
    assert found["score"] == pytest.approx(1)
    assert captions.clean(found["prompt"]) == captions.clean(prompt)


@given(st.lists(st.one_of(names, st.sampled_from(HARD)), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_owlv2_knows_each_prompt_by_its_own_text(prompts: list[str]) -> None:
    different = {owlv2.clean(prompt): prompt for prompt in prompts if owlv2.clean(prompt)} or {"car": "car"}
    ontology = {f"class {index}": prompt for index, prompt in enumerate(different.values())}
    classes = {prompt.strip(): name for name, prompt in ontology.items()}
    operator = loaded("owlv2")
    longest = owlv2.clean("a photo of the large {}.")
    assume(all(len(operator._engine.tokenizer(longest + " " + text)["input_ids"]) <= 16 for text in different))  # type: ignore[attr-defined]
    asked = operator._engine.ask(Ontology(ontology))
    together = operator._engine._texts  # type: ignore[attr-defined]
    assert len(asked) == len(together) == len(ontology)
    for index, (prompt, name) in enumerate(asked):
        assert classes[prompt] == name
        operator._engine.ask(Ontology({name: prompt}))
        np.testing.assert_allclose(together[index], operator._engine._texts[0], atol=1e-5)  # type: ignore[attr-defined]

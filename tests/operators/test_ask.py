from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.ask import Ask
from labelmill.operators.engines.image_text_to_text import transformers_model as engine
from labelmill.operators.engines.image_text_to_text import word_tokenizer
from labelmill.operators.engines.image_text_to_text.json_answer import JsonAnswer
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT, Weights
from tests.drawing import picture
from tests.operators.engines.image_text_to_text import tiny_vlms

FOLDER = ROOT / "conf" / "models"
MINIATURE = load_card(FOLDER / "vlm-miniature.yaml")
RANDOM = MINIATURE.model_copy(update={"weights": Weights(random=0)})
SIDE, PLACES = RANDOM.preprocess["size"], RANDOM.config["model"]["image_seq_length"]
SIZES = [(320, 240), (97, 203), (128, 128), (500, 90), (1, 1)]  # width, height
QUESTION = "Is there a red car?"


def ask(card: ModelCard = RANDOM, **params: Any) -> Ask:
    operator = Ask(Ask.Params(model=card, **{"max_tokens": 8, **params}))
    operator.check({})
    operator.ready()
    operator.load()
    return operator


def rows(operator: Ask, images: list[DecodedImage]) -> list[Any]:
    """In micro-batches as `apply` makes them: never two buckets in one."""
    items = [operator.prepare(image, {}) for image in images]
    found: list[Any] = [None] * len(items)
    for bucket in {operator.bucket(item) for item in items}:
        places = [index for index, item in enumerate(items) if operator.bucket(item) == bucket]
        for place, row in zip(places, operator.infer([items[place] for place in places]), strict=True):
            found[place] = row
    return found


@pytest.fixture(scope="module", params=["miniature", "idefics3", "qwen3_vl"])
def card(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    if request.param == "miniature":
        return RANDOM
    make: Any = getattr(tiny_vlms, request.param)
    given: ModelCard = make(tmp_path_factory.mktemp(request.param))
    return given


# ---------------------------------------------------------------- the model and its input


class Reference:
    """transformers alone, as its documentation shows."""

    def __init__(self, card: ModelCard, prompt: str) -> None:
        import transformers

        folder = Path(str(card.weights.path)).parent
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.prompt = prompt

    def inputs(self, image: DecodedImage) -> Any:
        content = [{"type": "image", "image": image.pil()}, {"type": "text", "text": self.prompt}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def text(self, image: DecodedImage, limit: int) -> str:
        given = self.inputs(image)
        ids = self.model.generate(**given, max_new_tokens=limit, do_sample=False)
        said = self.processor.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        return str(said[0]).strip()

    @torch.no_grad()
    def likelihood(self, image: DecodedImage, answer: str, end: bool) -> float:
        """One token at a time, from the start each time."""
        given = dict(self.inputs(image))
        tokens = self.processor.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        total = 0.0
        for token in [*tokens, *([tiny_vlms.ANSWER_ENDS] if end else [])]:
            logits = self.model(**given).logits[0, -1].double()
            total += float(logits.log_softmax(0)[token])
            one = torch.tensor([[token]])
            given["input_ids"] = torch.cat([given["input_ids"], one], dim=1)
            given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(one)], dim=1)
            if "mm_token_type_ids" in given:
                given["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(one)], dim=1)
        return total


@pytest.mark.parametrize("make", [tiny_vlms.idefics3, tiny_vlms.qwen3_vl])
def test_texts_and_probabilities_are_transformers_own(make: Any, tmp_path: Path) -> None:
    given = make(tmp_path / "vlm")
    images = [picture(*size) for size in SIZES[:4]]
    reference = Reference(given, QUESTION)
    texts = [reference.text(image, 8) for image in images]
    assert len(set(texts)) > 1
    assert [row["answer"] for row in rows(ask(given, prompt=QUESTION), images)] == texts
    for answers in (("yes", "no"), ("red", "a red car", "blue")):
        end = any(" " in answer for answer in answers)
        for image, row in zip(images, rows(ask(given, prompt=QUESTION, answers=answers), images), strict=True):
            scores = np.array([reference.likelihood(image, answer, end) for answer in answers])
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            assert row["answer"] == answers[int(shares.argmax())]
            assert row["probability"] == pytest.approx(shares.max(), abs=1e-4)


def test_the_words_are_those_of_transformers_forward() -> None:
    """The miniature's input, made by hand: resized, normalised, the image's tokens first."""
    from torchvision.transforms.v2.functional import resize

    image = picture(320, 240)
    tokenizer = word_tokenizer.word_tokenizer(engine.check(RANDOM).words)
    pixels = resize(torch.from_numpy(image.pixels.copy()).permute(2, 0, 1), [SIDE, SIDE], antialias=True).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((pixels - mean[:, None, None]) / std[:, None, None])[None]
    ids = [word_tokenizer.IMAGE] * PLACES + tokenizer.encode("describe the image").ids
    model = engine.build(RANDOM)
    said: list[int] = []
    with torch.no_grad():
        for _ in range(8):
            said.append(int(model(pixel_values=pixels, input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
    if word_tokenizer.END in said:
        said = said[: said.index(word_tokenizer.END)]
    assert rows(ask(prompt="Describe the image"), [image])[0]["answer"] == tokenizer.decode(said)


def test_a_batch_gives_what_single_images_give(card: ModelCard) -> None:
    images = [picture(*size, seed) for size in SIZES for seed in range(2)]
    for params in ({}, {"answers": ["yes", "no"]}, {"answers": ["red", "a red car"]}):
        operator = ask(card, prompt=QUESTION, **params)
        together = rows(operator, images)
        for image, row in zip(images, together, strict=True):
            (alone,) = rows(operator, [image])
            assert row["answer"] == alone["answer"]
            assert row["probability"] == pytest.approx(alone["probability"], abs=1e-4)


def test_the_same_twice_and_the_generator_untouched(card: ModelCard) -> None:
    image, state = picture(320, 240), torch.get_rng_state()
    first, second = (rows(ask(card, prompt=QUESTION), [image]) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_images_and_prompts_matter(card: ModelCard) -> None:
    images = [picture(320, 240, seed) for seed in range(3)]
    given = {
        (prompt, index): row["probability"] if row["answer"] == "yes" else 1 - row["probability"]
        for prompt in (QUESTION, "Is there a blue cup?")
        for index, row in enumerate(rows(ask(card, prompt=prompt, answers=["yes", "no"]), images))
    }
    assert len({round(value, 6) for value in given.values()}) == 6


def test_probabilities_of_the_choices_add_up_in_any_order(card: ModelCard) -> None:
    image = picture(320, 240)
    (row,) = rows(ask(card, prompt=QUESTION, answers=["red", "green", "blue"]), [image])
    (again,) = rows(ask(card, prompt=QUESTION, answers=["blue", "red", "green"]), [image])
    assert row["answer"] == again["answer"]
    assert row["probability"] == pytest.approx(again["probability"], abs=1e-5)
    assert 1 / 3 <= row["probability"] <= 1
    # Of two, the one that is not chosen has the rest.
    (pair,) = rows(ask(card, prompt=QUESTION, answers=["red", "green"]), [image])
    assert pair["probability"] >= 0.5


def test_an_answer_is_cut_off(card: ModelCard) -> None:
    image = picture(320, 240)
    long, short = (rows(ask(card, max_tokens=limit), [image])[0]["answer"] for limit in (12, 3))
    assert len(short.split()) <= 3
    assert long.startswith(short)


def test_half_precision_stays_near() -> None:
    images = [picture(*size) for size in SIZES]
    full, half = (
        rows(ask(prompt=QUESTION, answers=["yes", "no"], dtype=dtype), images) for dtype in ("float32", "bfloat16")
    )
    shares = [
        [row["probability"] if row["answer"] == "yes" else 1 - row["probability"] for row in part]
        for part in (full, half)
    ]
    assert 0 < np.abs(np.subtract(*shares)).max() < 0.02


# ---------------------------------------------------------------- JSON


def test_json_is_read_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose only words are digits: what one of them writes is JSON by chance."""
    monkeypatch.setattr(tiny_vlms, "WORDS", [str(digit) for digit in range(10)])
    cards = [tiny_vlms.idefics3(tmp_path / "idefics3"), tiny_vlms.qwen3_vl(tmp_path / "qwen3_vl")]
    outcomes = set()
    for given, most in itertools.product(cards, (2, 5)):
        schema = {"type": "integer", "maximum": most}
        prompt = f"Count\n{JsonAnswer(schema).instruction}"
        (said,) = rows(ask(given, prompt=prompt, max_tokens=1), [picture(97, 203)])
        (row,) = rows(ask(given, prompt="Count", schema=schema, max_tokens=1), [picture(97, 203)])
        text = said["answer"]
        if text.isdigit() and int(text) <= most:
            assert row == {"answer": text, "probability": None}
            outcomes.add("fits")
        else:
            outcome = "does not fit the schema: at $" if text else "is not JSON"
            assert isinstance(row, RowError)
            assert outcome in str(row)
            assert ("cut off after max_tokens" in str(row)) == bool(text)  # without words it had come to an end
            outcomes.add(outcome)
    assert len(outcomes) == 3


def test_a_model_of_few_words_writes_no_json() -> None:
    with pytest.raises(ModelError, match="writes no JSON"):
        ask(schema={"type": "object"})


# ---------------------------------------------------------------- what is written


def test_rows_are_what_writes_promises() -> None:
    operator = ask()
    schema = pa.schema([pa.field("answer", pa.string()), pa.field("probability", pa.float32())])
    assert operator.writes() == schema
    assert operator.needs().gpu
    assert operator.needs().memory_gb > 0
    (said,) = rows(operator, [picture(64, 64)])
    assert said["probability"] is None
    (chosen,) = rows(ask(answers=["yes", "no"]), [picture(64, 64)])
    assert pa.Table.from_pylist([said, chosen], schema=schema).column("answer").null_count == 0


def test_a_shard_with_a_broken_file() -> None:
    good = picture(64, 48).data
    files = {"a.png": good, "broken.png": good[: len(good) // 2], "c.png": good}
    shard = pa.table({"image_id": [1, 2, 3], "key": list(files)})
    operator = ask(prompt=QUESTION, answers=("yes", "no"), batch=2)
    images = ShardImages(list(files), files.__getitem__)
    table, _ = apply(Job(Worker(operator), shard, np.array([True] * 3)), images)
    first, broken, last = table.to_pylist()
    assert first["answer"] == last["answer"]
    assert first["answer"] in ("yes", "no")
    assert (broken["answer"], broken["probability"], broken["decision"]) == (None, None, "failed")


def test_a_model_that_gives_no_numbers_fails_its_rows(card: ModelCard) -> None:
    for params in ({}, {"answers": ["yes", "no"]}):
        operator = ask(card, **params)
        with torch.no_grad():
            operator._engine.model.get_output_embeddings().weight.fill_(float("nan"))
        (row,) = rows(operator, [picture(64, 64)])
        assert isinstance(row, RowError)
        assert "not finite" in str(row)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"answers": ["yes"]}, "two or more different answers"),
        ({"answers": []}, "two or more different answers"),
        ({"answers": ["yes", "yes"]}, "two or more different answers"),
        ({"answers": ["yes", ""]}, "at least 1 character"),
        ({"answers": ["yes", " no"]}, "should match pattern"),
        ({"prompt": ""}, "at least 1 character"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"schema": {"type": "objekt"}}, "must be a JSON schema but at"),
        ({"schema": {"$ref": "https://example.org/a"}}, "refers to https://example.org/a, which is not in it"),
        ({"schema": {"$ref": "#/$defs/a"}}, "refers to #/.defs/a, which is not in it"),
        ({"schema": {"type": "object"}, "answers": ["yes", "no"]}, "answers or a schema, not both"),
        ({"timeout": 0}, "greater than 0"),
    ],
)
def test_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Ask.Params(model=RANDOM, **params)


def test_cards_of_other_tasks_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be a model card for image-text-to-text with engine transformers"):
        Ask.Params(model=load_card(FOLDER / "clip-random.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "ViTModel"}, "architecture must be a class of transformers for image-text-to-text"),
        (
            {"architecture": "UdopForConditionalGeneration"},
            "must be a decoder, .* but Udop",
        ),
        ({"architecture": "CogVLMForCausalLM"}, "but is CogVLMForCausalLM; .* behind an endpoint"),
        ({"config": {}}, "must have model and words when weights are random"),
        ({"config": {**RANDOM.config, "words": []}}, "must have both model and words"),
        ({"config": {**RANDOM.config, "size": 3}}, "config.size"),
        ({"preprocess": {}}, "preprocess.size"),
        ({"config": {**RANDOM.config, "words": ["a", "a"]}}, "'a' is there twice"),
        ({"config": {**RANDOM.config, "words": ["red car"]}}, "single words in small letters"),
        ({"config": {**RANDOM.config, "model": {"model_type": "llava"}}}, "model_type must be fast_vlm"),
        (
            {"config": {**RANDOM.config, "model": {**RANDOM.config["model"], "image_seq_length": 65}}},
            f"must be {PLACES}",
        ),
    ],
)
def test_cards_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ask(RANDOM.model_copy(update=changes))


@pytest.mark.parametrize("params", [{"prompt": "Is there a zebra?"}, {"answers": ["yes", "maybe"]}])
def test_words_that_a_miniature_does_not_know_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(OperatorError, match=r"words that model vlm-miniature knows but have '(zebra|maybe)'"):
        ask(**params)


def test_weights_that_are_missing_corrupt_or_of_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "vlm"
    given = tiny_vlms.idefics3(folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        ask(given)
    path.write_bytes(whole)
    with pytest.raises(ModelError, match="must fit FastVlmForConditionalGeneration but"):
        ask(RANDOM.model_copy(update={"weights": Weights(path=str(path))}))
    with pytest.raises(ModelError, match="preprocess must be empty"):
        ask(given.model_copy(update={"preprocess": {"size": 64}}))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="processor cannot be read"):
        ask(given)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="there is no such file"):
        ask(given)


def test_full_size_cards_say_enough() -> None:
    for name in ("smolvlm-256m", "qwen3-vl-2b", "florence-2-base"):
        given = load_card(FOLDER / f"{name}.yaml")
        operator = Ask(Ask.Params(model=given, prompt="<CAPTION>"))
        operator.check({})
        assert len(operator.digest()) == 64
        with pytest.raises(ModelError, match=f"labelmill models pull {name}"):
            operator.ready()


def test_architectures_that_are_known_to_fit_do_and_are_those_of_the_cards() -> None:
    fitting = load_card(FOLDER / "vlm-miniature.yaml")
    for architecture in engine.FITTING:
        engine._check_architecture(fitting.model_copy(update={"architecture": architecture}))
    cards = [load_card(path) for path in sorted(FOLDER.glob("*.yaml"))]
    ours = {card.architecture for card in cards if (card.task, card.engine) == ("image-text-to-text", "transformers")}
    assert ours - {"Florence2ForConditionalGeneration"} == engine.FITTING

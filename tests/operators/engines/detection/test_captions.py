from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.operators.engines.detection import captions
from labelmill.operators.engines.detection.wordpiece import SIZE, ascii_tokenizer, vocabulary
from labelmill.operators.errors import OperatorError
from labelmill.operators.ontology import Ontology

TOKENISER = ascii_tokenizer()
HARD = ("car", "carton", "Fire", "fire hydrant", "T.V.", "a/c", "U.S. mail-box?", "bow_(weapon)", "stop sign", "cart")


def captions_of(ontology: Ontology, limit: int = 256) -> tuple[list[captions.Phrase], list[captions.Caption]]:
    asked = captions.phrases(ontology)
    return asked, captions.build_captions(asked, TOKENISER, limit)


def many(count: int) -> Ontology:
    """Distinct names of one to three words, of very different lengths."""
    words = ["red", "x", "aerosol can", "Air_conditioner", "T.V. set", "bow (weapon)", "hot-air balloon", "a/c unit"]
    return Ontology([f"{words[index % len(words)]} {index}" for index in range(count)])


names = st.text(st.sampled_from("abcABC019 ./?-_()'&,:[]#é"), min_size=1, max_size=25)


@st.composite
def ontologies(draw: st.DrawFn) -> Ontology:
    """Ontologies whose prompts stay different after cleaning, as `phrases` demands."""
    prompts = draw(st.lists(st.one_of(names, st.sampled_from(HARD)), min_size=1, max_size=40))
    classes: dict[str, str] = {}
    for prompt in prompts:
        text = TOKENISER.decode(TOKENISER.encode(captions.clean(prompt), add_special_tokens=False))
        if captions.clean(prompt):
            classes.setdefault(text, prompt)
    return Ontology({f"class {index}": prompt for index, prompt in enumerate(classes.values())} or ["car"])


@given(ontologies(), st.integers(40, 256))
def test_every_prompt_owns_exactly_its_tokens(ontology: Ontology, limit: int) -> None:
    asked, built = captions_of(ontology, limit)
    assert [(phrase.prompt, phrase.name) for phrase in asked] == sorted(
        ontology.prompts(), key=lambda pair: captions.clean(pair[0])
    )
    seen: list[int] = []
    for caption in built:
        seen += caption.phrases
        assert len(caption.ids) <= limit
        assert (caption.ids[0], caption.ids[-2], caption.ids[-1]) == (captions.START, captions.DOT, captions.END)
        positive = caption.positive_map()
        assert positive.shape == (len(caption.ids), len(caption.phrases))
        owned = positive.astype(bool)
        assert (owned.sum(axis=1) <= 1).all()  # a token speaks for one prompt
        delimiters = np.isin(caption.ids, [captions.START, captions.END, captions.DOT, captions.QUESTION])
        assert (owned.any(axis=1) == ~delimiters).all()
        np.testing.assert_allclose(positive.sum(axis=0), 1, rtol=1e-6)
        for column, index in enumerate(caption.phrases):
            own = [token for token, mine in zip(caption.ids, owned[:, column], strict=True) if mine]
            assert own == TOKENISER.encode(asked[index].text, add_special_tokens=False)
    assert sorted(seen) == list(range(len(asked)))


@given(ontologies())
def test_the_tokens_are_those_of_the_whole_caption(ontology: Ontology) -> None:
    asked, built = captions_of(ontology)
    for caption in built:
        text = " . ".join(asked[index].text for index in caption.phrases) + " ."
        assert list(caption.ids) == TOKENISER(text).input_ids


@given(ontologies(), st.randoms(use_true_random=False))
def test_the_order_of_classes_changes_nothing(ontology: Ontology, random: object) -> None:
    items = list(ontology.root.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert captions_of(Ontology(dict(items))) == captions_of(ontology)


@given(ontologies(), st.data())
def test_a_prompt_s_score_is_the_mean_over_its_own_tokens(ontology: Ontology, data: st.DataObject) -> None:
    _asked, built = captions_of(ontology)
    caption = data.draw(st.sampled_from(built))
    column = data.draw(st.integers(0, len(caption.phrases) - 1))
    start, end = caption.spans[column]
    probabilities = np.zeros((1, len(caption.ids)), dtype=np.float32)
    probabilities[0, start:end] = np.linspace(0.2, 0.8, end - start)
    scores = (probabilities @ caption.positive_map())[0]
    assert scores[column] == pytest.approx(np.mean(probabilities[0, start:end]), abs=1e-6)
    assert np.delete(scores, column).max(initial=0) == 0


def test_1203_names_are_all_asked_in_captions_of_like_length() -> None:
    _asked, built = captions_of(many(1203))
    assert sorted(index for caption in built for index in caption.phrases) == list(range(1203))
    lengths = [len(caption.ids) for caption in built]
    assert max(lengths) <= 256
    assert min(lengths) > 0.7 * max(lengths)
    tokens = sum(len(caption.ids) - 2 for caption in built)
    assert len(built) <= -(-tokens // 254) * 1.2


@pytest.mark.parametrize(("second", "count"), [(40, 1), (41, 2)])
def test_a_caption_is_filled_to_its_last_token(second: int, count: int) -> None:
    _, built = captions_of(Ontology(["a " * 56, "b " * second]), limit=100)
    assert len(built) == count
    if count == 1:
        assert len(built[0].ids) == 100


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("T.V.", "t v"),
        ("Fire_Hydrant", "fire hydrant"),
        ("a/c", "a/c"),
        ("  What?  Who? ", "what who"),
        ("bow (weapon)", "bow (weapon)"),
        ("3.5 inch", "3 5 inch"),
        ("tab\tor\nline", "tab or line"),
    ],
)
def test_clean(prompt: str, text: str) -> None:
    assert captions.clean(prompt) == text


@pytest.mark.parametrize("prompt", ["...", "?", " . ? _ "])
def test_nothing_left_of_a_prompt(prompt: str) -> None:
    with pytest.raises(OperatorError, match="must have more than dots, question marks and underscores") as error:
        captions.phrases(Ontology({"thing": ["thing", prompt]}))
    assert error.value.param == ("ontology", "thing")


def test_two_classes_that_are_asked_alike() -> None:
    with pytest.raises(OperatorError, match=r"'T\.V\.' of 'set' and 't v' of 'letters' must differ") as error:
        captions.phrases(Ontology({"set": "T.V.", "letters": "t v"}))
    assert error.value.param == ("ontology", "letters")
    asked = captions.phrases(Ontology({"cup": "café", "shop": "cafe"}))
    with pytest.raises(OperatorError, match="must differ in more than case, accents, dots"):
        captions.build_captions(asked, TOKENISER)


def test_synonyms_of_one_class_that_are_asked_alike_are_asked_once() -> None:
    asked = captions.phrases(Ontology({"set": ["T.V.", "t v", "television"]}))
    assert [(phrase.prompt, phrase.name) for phrase in asked] == [("T.V.", "set"), ("television", "set")]


def test_prompts_that_the_model_cannot_read() -> None:
    fits = captions.phrases(Ontology(["x " * 253]))
    (caption,) = captions.build_captions(fits, TOKENISER)
    assert len(caption.ids) == 256
    with pytest.raises(OperatorError, match=r"must have at most 253 tokens but has 254"):
        captions.build_captions(captions.phrases(Ontology(["x " * 254])), TOKENISER)
    with pytest.raises(OperatorError, match="must have a word that the model's vocabulary knows"):
        captions.build_captions(captions.phrases(Ontology(["car", "汽车"])), TOKENISER)


def test_special_tokens_in_a_name_are_ordinary_text() -> None:
    (caption,) = captions_of(Ontology(["[SEP] [CLS] [PAD]"]))[1]
    assert caption.ids.count(captions.END) == caption.ids.count(captions.START) == 1


def test_vocabulary() -> None:
    words = vocabulary()
    assert sorted(words.values()) == list(range(SIZE))
    assert len(words) == SIZE
    known = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    assert {word: words[word] for word in known} == known
    printable = "".join(map(chr, range(32, 127)))
    assert captions.UNKNOWN not in TOKENISER(f"{printable} {printable[::-1]}").input_ids
    assert TOKENISER.convert_tokens_to_ids(list(known)) == list(known.values())

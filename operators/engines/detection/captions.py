"""Captions for Grounding DINO: which text is asked, and which of its tokens belong to which prompt.

A caption is ``[CLS] phrase . phrase . [SEP]``. The model splits it at the ids of ``[CLS] [SEP] . ?`` alone: inside
a phrase all tokens see each other, phrases do not, and positions restart, so their order does not matter. The last
dot is as needed as the others. What follows from it (Liu et al. 2023, section 3.4, and the authors' code):

* a dot or question mark inside a name would split it, so it becomes a space;
* a caption holds 256 tokens, dots and specials included, and a longer one is cut off silently, so prompts are
  spread over as many captions as they need;
* a prompt's score is the mean over its own tokens, found by position. No text is ever decoded and matched.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from labelmill.operators.engines.detection import detector
from labelmill.operators.engines.detection.detector import Phrase, refuse_collision
from labelmill.operators.errors import OperatorError
from labelmill.operators.ontology import Ontology

UNKNOWN, START, END, DOT, QUESTION = 100, 101, 102, 1012, 1029
"""Ids of ``[UNK] [CLS] [SEP] . ?`` in BERT's vocabulary; transformers hard-codes the last four."""

DROPPED = "dots, question marks and underscores"
"""What `clean` leaves out of a prompt besides case, in words."""


class Tokeniser(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Caption:
    """One text that the model sees.

    Attributes:
        ids: Token ids, specials included.
        phrases: Index of each phrase, in the caption's order.
        spans: First and one past the last token of each.
    """

    ids: tuple[int, ...]
    phrases: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def positive_map(self) -> np.ndarray:
        """float32 (tokens, phrases): token probabilities times this are the phrases' means over their tokens."""
        positive = np.zeros((len(self.ids), len(self.phrases)), dtype=np.float32)
        for column, (start, end) in enumerate(self.spans):
            positive[start:end, column] = 1 / (end - start)
        return positive


def clean(prompt: str) -> str:
    """A prompt as it stands in a caption: lower case, with spaces for what splits phrases and for underscores."""
    return " ".join(re.sub(r"[.?_]", " ", prompt.lower()).split())


def phrases(ontology: Ontology) -> list[Phrase]:
    """See `operators.engines.detection.detector.phrases`."""
    return detector.phrases(ontology, clean, DROPPED)


def check_phrases(ontology: Ontology) -> None:
    """Refuse prompts that cannot be asked, as far as that is known without the vocabulary, which has no accents.

    Raises:
        OperatorError: See `phrases`; also where two classes differ by accents alone.
    """
    plain: dict[str, Phrase] = {}
    for phrase in phrases(ontology):
        text = "".join(char for char in unicodedata.normalize("NFD", phrase.text) if not unicodedata.combining(char))
        refuse_collision(plain.setdefault(text, phrase), phrase, DROPPED)


def build_captions(asked: Sequence[Phrase], tokeniser: Tokeniser, limit: int = 256) -> list[Caption]:
    """Spread phrases over as few captions as hold them, of about equal length.

    Args:
        asked: The phrases.
        tokeniser: The model's.
        limit: Tokens that the model reads.

    Raises:
        OperatorError: A phrase does not fit into a caption, has no token that the model knows, or has the same
            tokens as one of another class.
    """
    tokens = [_tokens(phrase, tokeniser, limit) for phrase in asked]
    owners: dict[tuple[int, ...], Phrase] = {}
    for phrase, ids in zip(asked, tokens, strict=True):
        refuse_collision(owners.setdefault(ids, phrase), phrase, DROPPED)

    sizes = [len(ids) + 1 for ids in tokens]
    few = len(_pack(sizes, limit - 2))
    low, high = max(sizes, default=0), limit - 2
    while low < high:  # the smallest captions that are no more in number: a lone last phrase would have no rivals
        middle = (low + high) // 2
        low, high = (low, middle) if len(_pack(sizes, middle)) == few else (middle + 1, high)
    return [_caption(members, tokens) for members in _pack(sizes, low)]


def _tokens(phrase: Phrase, tokeniser: Tokeniser, limit: int) -> tuple[int, ...]:
    ids = tuple(tokeniser.encode(phrase.text, add_special_tokens=False))
    where = ("ontology", phrase.name)
    if len(ids) + 3 > limit:
        raise OperatorError(f"prompt {phrase.prompt!r} must have at most {limit - 3} tokens but has {len(ids)}", where)
    if all(token == UNKNOWN for token in ids):
        raise OperatorError(f"prompt {phrase.prompt!r} must have a word that the model's vocabulary knows", where)
    if {START, END, DOT, QUESTION} & set(ids):
        raise OperatorError(f"prompt {phrase.prompt!r} must not contain a special token of the model", where)
    return ids


def _pack(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Indices in order, as many to a group as its room holds."""
    groups: list[list[int]] = []
    left = 0
    for index, size in enumerate(sizes):
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(index)
        left -= size
    return groups


def _caption(members: Sequence[int], tokens: Sequence[tuple[int, ...]]) -> Caption:
    ids, spans = [START], []
    for member in members:
        spans.append((len(ids), len(ids) + len(tokens[member])))
        ids += [*tokens[member], DOT]
    return Caption((*ids, END), tuple(members), tuple(spans))

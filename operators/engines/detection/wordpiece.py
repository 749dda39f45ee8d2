"""A WordPiece vocabulary for small Grounding DINO models, made without a hub."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertTokenizer

SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
"""Ids in BERT's uncased vocabulary, which transformers' Grounding DINO hard-codes."""

SIZE = 1030


def vocabulary(whole: Sequence[str] = ()) -> dict[str, int]:
    """Every printable ASCII character as a word, letters and digits also as the rest of one: all names tokenise.

    Args:
        whole: Lower-case words that are one token each.
    """
    inner = string.ascii_lowercase + string.digits
    pieces = [*inner, *(f"##{character}" for character in inner), *string.punctuation, *whole]
    free = (index for index in range(104, SIZE) if index not in SPECIAL.values())
    words = {piece: next(free) for piece in pieces if piece not in SPECIAL}
    known = {**SPECIAL, **words}
    taken = set(known.values())
    known |= {f"[unused{index}]": index for index in range(SIZE) if index not in taken}
    return dict(sorted(known.items(), key=lambda item: item[1]))


def ascii_tokenizer(whole: Sequence[str] = ()) -> BertTokenizer:
    """BERT's uncased tokenizer over `vocabulary`."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab=vocabulary(whole))

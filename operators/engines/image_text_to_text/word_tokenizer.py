"""A tokenizer of whole words for small language models, made without a hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<image>", "<end>", "<unknown>")
PAD, IMAGE, END, UNKNOWN = range(4)
"""Ids: filling, one place of an image, the end of an answer, a word that is not known."""


def size(words: Sequence[str]) -> int:
    """How many ids there are."""
    return len(SPECIAL) + len(words)


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """One token per word or punctuation mark; capitals are read as small letters.

    Args:
        words: In the order of their ids.

    Raises:
        ValueError: A word is there twice, or is more than one token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {token: number for number, token in enumerate((*SPECIAL, *words))}
    if len(ids) < size(words):
        raise ValueError(f"words must be different but {next(w for w in words if words.count(w) > 1)!r} is there twice")
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # no space before a comma
    for word in words:
        if tokenizer.encode(word).ids != [ids[word]]:
            raise ValueError(f"words must be single words in small letters but one is {word!r}")
    return tokenizer

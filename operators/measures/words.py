"""Words that were read against words that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labelmill.operators.measures.detections import bbox, match

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Read:
    """A word and its upright box, xyxy in pixels, in one image."""

    image: int
    text: str
    box: Box


@dataclass(frozen=True)
class WordScores:
    """How well words were found and read.

    Attributes:
        there, found, matched: How many words; matched ones overlap with an IoU of at least 0.5.
        edits: Characters to insert, delete or replace (Levenshtein) to turn what was read in matched words into what
            is there; case counts.
        characters: Of the matched words, as they are there.
    """

    there: int
    found: int
    matched: int
    edits: int
    characters: int

    @property
    def recall(self) -> float:
        """Share of the words there that were found; NaN if there are none."""
        return self.matched / self.there if self.there else float("nan")

    @property
    def precision(self) -> float:
        """Share of the words found that are there; NaN if none was found."""
        return self.matched / self.found if self.found else float("nan")

    @property
    def character_error_rate(self) -> float:
        """Edits per character of the matched words; NaN if there are none."""
        return self.edits / self.characters if self.characters else float("nan")


def word_scores(truth: Sequence[Read], found: Sequence[Read]) -> WordScores:
    """Match words one to one by their boxes, whatever they say, and compare what they say."""
    from rapidfuzz.distance import Levenshtein

    there, read = ([_label(word) for word in words] for words in (truth, found))
    pairs = match(there, read)
    edits = sum(Levenshtein.distance(found[pair.found].text, truth[pair.truth].text) for pair in pairs)
    return WordScores(len(truth), len(found), len(pairs), edits, sum(len(truth[pair.truth].text) for pair in pairs))


def _label(word: Read) -> dict[str, Any]:
    return {"image_id": word.image, "category_id": 1, "bbox": bbox(*word.box)}

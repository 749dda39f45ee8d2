"""Lines as RapidOCR finds them: which to read, how they lie, and the words in them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from labelmill.operators.engines.text.reader import Word


def touching(quads: np.ndarray, boxes: np.ndarray | None) -> np.ndarray:
    """Which lines, (n,), could have a word inside the boxes; the others need not be read."""
    if boxes is None:
        return np.ones(len(quads), bool)
    low, high = quads.min(axis=1)[:, None], quads.max(axis=1)[:, None]
    could: np.ndarray = ((low <= boxes[:, 2:]) & (high >= boxes[:, :2])).all(axis=2).any(axis=1)
    return could


def areas(quads: np.ndarray) -> np.ndarray:
    """Of the upright boxes around quads, (n,)."""
    found: np.ndarray = np.ptp(quads, axis=1).prod(axis=1)
    return found


def from_top_left(quad: np.ndarray, box: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """The corners of a line in the order of its text: RapidOCR turns tall cut-outs a quarter to the left.

    Args:
        quad: (4, 2), clockwise from the corner at the top left.
        box: The same in pixels of the image it was cut out of.
        crop: The cut-out, turned or not.
    """
    sides = np.linalg.norm(box - np.roll(box, -1, axis=0), axis=1)
    turned = sides[1::2].max() > sides[::2].max() and crop.shape[1] > crop.shape[0]
    return np.roll(quad, -1, axis=0) if turned else quad


def split_words(quad: np.ndarray, text: str, info: Any, line: int) -> list[Word]:
    """Cut a line into words at its spaces.

    Args:
        quad: (4, 2), the line's corners in pixels.
        text: What it says.
        info: RapidOCR's notes of where along the line its characters are, and how sure they are.
        line: Its number.
    """
    steps = iter([step for word in info.word_cols for step in word])  # of every character that is not a space
    runs: list[list[tuple[str, float, float]]] = [[]]
    for character, sure in zip(text, info.confs, strict=True):
        if not character.isspace():
            runs[-1].append((character, sure, (next(steps) + 0.5) / info.line_txt_len))
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    between = [b[2] - a[2] for run in runs for a, b in pairwise(run)]
    half = float(np.mean(between)) / 2 if between else 1.0
    edges = [0.0]
    for before, after in pairwise(runs):
        last, first = before[-1][2], after[0][2]
        edges += [min(last + half, (last + first) / 2), max(first - half, (last + first) / 2)]
    spans = np.clip([*edges, 1.0], 0, 1).reshape(-1, 2)
    top, bottom = quad[1] - quad[0], quad[2] - quad[3]
    return [
        Word(
            "".join(character for character, _, _ in run),
            float(np.mean([sure for _, sure, _ in run])),
            np.array(
                [quad[0] + top * start, quad[0] + top * end, quad[3] + bottom * end, quad[3] + bottom * start],
                np.float32,
            ),
            line,
        )
        for run, (start, end) in zip(runs, spans, strict=True)
    ]

"""How right the miniatures of docTR are on the drawn world: words found and read on signs that no training saw."""

from __future__ import annotations

from labelmill import CONF
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.measures.words import Read as Seen
from labelmill.operators.measures.words import word_scores
from labelmill.operators.miniatures.evaluation import SEED
from labelmill.operators.miniatures.training.scenes import SIDE
from labelmill.operators.miniatures.world import World
from labelmill.operators.models.card import ModelCard, load_card
from labelmill.operators.read import SIDES, Read

RECOGNITION = CONF / "models" / "doctr-recognition-miniature.yaml"
BATCH = 16


def evaluate(card: ModelCard, scenes: int = 1000, recognition: ModelCard | None = None) -> dict[str, float]:
    """Read scenes with held-out words by `read`, and compare.

    Args:
        card: The detection model.
        scenes: How many scenes of 320 × 320 pixels; about five of six as many words.
        recognition: The recognition model; the miniature if None.

    Returns:
        As in `operators.measures.words`: ``recall`` and ``precision`` of words at an IoU of 0.5 of their upright boxes,
        and ``character_error_rate``: the edits that turn what was read of matched words into what is there, for each
        character there; case counts. ``words``: how many there are; ``matched``: how many of them were found.
    """
    world = World(SEED, SIDE, words="held_out")
    operator = Read(Read.Params(model=card, recognition=recognition or load_card(RECOGNITION)))
    operator.load()
    truth: list[Seen] = []
    found: list[Seen] = []
    for start in range(0, scenes, BATCH):
        indices = range(start, min(start + BATCH, scenes))
        items = []
        for index in indices:
            scene = world.scene(index)
            truth += [Seen(index, word.text, word.box) for word in scene.words]
            items.append(operator.prepare(DecodedImage(scene.pixels, b"", "PNG", "RGB", 1, 1), {}))
        for index, row in zip(indices, operator.infer(items), strict=True):
            words = row["words"] if isinstance(row, dict) else []
            found += [Seen(index, word["text"], tuple(word[side] for side in SIDES)) for word in words]
    scores = word_scores(truth, found)
    return {
        "recall": scores.recall,
        "precision": scores.precision,
        "character_error_rate": scores.character_error_rate,
        "words": float(scores.there),
        "matched": float(scores.matched),
    }

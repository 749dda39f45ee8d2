"""Which miniatures there are: how each is trained and measured, and what it must reach."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from labelmill import CONF
from labelmill.operators.models.card import ModelCard, load_card

CARDS = CONF / "models"
WEIGHTS = Path(__file__).parent / "weights"
SCORES = Path(__file__).parent / "scores.json"
"""Scores of the committed weights by number of scenes: on `SCENES`, and on the `FEW` that the tests have time for."""
SCENES, FEW = 1000, 100
README = Path(__file__).parent / "README.md"
"""Has the table of scores between ``<!-- scores -->`` and ``<!-- end -->``."""
LARGEST = 25_000_000
"""Bytes of all weights together."""


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        name: Its module in `operators.miniatures.training`, and its weights file.
        card: The card that uses the weights.
    """

    name: str
    card: str

    @property
    def weights(self) -> Path:
        """Where its weights go."""
        return WEIGHTS / f"{self.name.replace('_', '-')}.safetensors"

    @property
    def module(self) -> Any:
        """With `NAME`, `SCENES`, `PLAN` and `run`."""
        return import_module(f"labelmill.operators.miniatures.training.{self.name}")

    def model_card(self) -> ModelCard:
        """The card, read."""
        return load_card(CARDS / f"{self.card}.yaml")


TRAININGS = (
    Training("grounding_dino", "grounding-dino-miniature"),
    Training("vlm", "vlm-miniature"),
    Training("sam", "sam-miniature"),
    Training("clip", "clip-miniature"),
    Training("doctr_detection", "doctr-detection-miniature"),
    Training("doctr_recognition", "doctr-recognition-miniature"),
    Training("gaze", "l2cs-miniature"),
)
"""The longest first."""


@dataclass(frozen=True)
class Goal:
    """A figure that an evaluation gives, and what it must be: at least `bound`, or at most if `most`."""

    key: str
    what: str
    bound: float
    most: bool = False

    def reached(self, value: float) -> bool:
        """Whether a figure is good enough."""
        return value <= self.bound if self.most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:g}"


GOALS: dict[str, tuple[Goal, ...]] = {
    "clip": (
        Goal("top1", "zero-shot top-1 of 160 names, objects alone, seen pairs", 0.90),
        Goal("top1_held_out", "the same, held-out pairs", 0.80),
        Goal("copies_ap", "copies against other scenes, average precision", 0.98),
    ),
    "grounding_dino": (
        Goal("ap50", "AP50, seen pairs", 0.95),
        Goal("ap", "AP, seen pairs", 0.75),
        Goal("ap50_held_out", "AP50, held-out pairs", 0.85),
    ),
    "sam": (Goal("iou", "mean IoU of masks from true boxes", 0.93),),
    "doctr": (
        Goal("recall", "word recall at IoU 0.5", 0.95),
        Goal("precision", "word precision at IoU 0.5", 0.95),
        Goal("character_error_rate", "character error rate of what is read", 0.05, most=True),
    ),
    "gaze": (Goal("angular_error", "mean angular error from true boxes, degrees", 5.0, most=True),),
    "vlm": (Goal("captions", "captions that name exactly what is there", 0.80),),
}
"""By module in `operators.miniatures.evaluation`."""


def evaluate(name: str, scenes: int = SCENES) -> dict[str, float]:
    """The scores of the committed weights, rounded to four decimals. `name` is a key of `GOALS`."""
    module = import_module(f"labelmill.operators.miniatures.evaluation.{name}")
    card = next(training for training in TRAININGS if training.name.startswith(name))
    return {key: round(value, 4) for key, value in module.evaluate(card.model_card(), scenes).items()}


def table(scores: dict[str, dict[str, float]]) -> str:
    """The scores as a Markdown table, beside what they must be."""
    lines = ["| model | what | goal | reached |", "|---|---|---|---|"]
    for name, goals in GOALS.items():
        for goal in goals:
            value = scores[name][goal.key] if name in scores else None
            reached = "not measured" if value is None else f"{value:.3f}" + ("" if goal.reached(value) else " (missed)")
            lines.append(f"| {name.replace('_', ' ')} | {goal.what} | {goal} | {reached} |")
    return "\n".join(lines) + "\n"

"""Detectors of transformers, by the architecture of the card."""

from __future__ import annotations

from labelmill.operators.engines.detection.detector import Detector
from labelmill.operators.engines.detection.grounding_dino import GroundingDino
from labelmill.operators.engines.detection.owlv2 import Owlv2
from labelmill.operators.engines.registry import by_architecture
from labelmill.operators.models.card import ModelCard


def engine_of(card: ModelCard) -> type[Detector]:
    """The detector that a card is for; see `by_architecture`."""
    found: type[Detector] = by_architecture(card, (GroundingDino, Owlv2))
    return found

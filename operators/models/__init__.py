"""Model cards: which weights a step uses, where they come from, and how they are checked before they are used."""

from labelmill.operators.models.card import Dtype, ModelCard, ModelError, Weights, load_card

__all__ = ["Dtype", "ModelCard", "ModelError", "Weights", "load_card"]

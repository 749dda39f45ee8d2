"""transformers' image-text-to-text models, built from a card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from labelmill.operators.engines import pretrained
from labelmill.operators.engines.image_text_to_text import word_tokenizer as words
from labelmill.operators.models import weights
from labelmill.operators.models.card import ModelCard, ModelError

if TYPE_CHECKING:
    import torch


FITTING = frozenset(
    ("FastVlmForConditionalGeneration", "Idefics3ForConditionalGeneration", "Qwen3VLForConditionalGeneration")
)
"""Architectures of this repository's cards, known to fit. Of others `check` must ask transformers, whose import alone
takes seconds: too long for each command that only opens a run."""


class Config(BaseModel):
    """The `config` section of a card.

    Attributes:
        model: Arguments of transformers' configuration, with its ``model_type``; without them, ``config.json`` beside
            the weights.
        words: The vocabulary of a small model, see `operators.engines.image_text_to_text.word_tokenizer`; without them,
            the processor's files beside the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: dict[str, Any] | None = None
    words: tuple[str, ...] = ()


def check(card: ModelCard) -> Config:
    """The `config` section of a card, refused if it cannot work; loads nothing.

    Raises:
        ModelError: The architecture is not one of transformers' classes for this, or the section does not say enough.
    """
    if card.architecture not in FITTING:
        _check_architecture(card)
    given = card.section("config", Config)
    if bool(given.words) != (given.model is not None):
        raise ModelError(f"model card {card.name}: config must have both model and words, or neither")
    if card.weights.random is not None and not given.words:
        raise ModelError(f"model card {card.name}: config must have model and words when weights are random")
    return given


def _check_architecture(card: ModelCard) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kinds = [kind for kind, name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items() if name == card.architecture]
    if not kinds:
        raise ModelError(
            f"model card {card.name}: architecture must be a class of transformers for image-text-to-text, such as "
            f"SmolVLMForConditionalGeneration, but is {card.architecture}; models that bring code of their own can "
            "answer behind an endpoint (engine: openai)"
        )
    if getattr(CONFIG_MAPPING[kinds[0]], "is_encoder_decoder", False):
        raise ModelError(
            f"model card {card.name}: architecture must be a decoder, such as SmolVLMForConditionalGeneration, or "
            f"Florence2ForConditionalGeneration, but {card.architecture} has an encoder for its text too"
        )


def build(card: ModelCard, dtype: torch.dtype | None = None) -> Any:
    """The card's model on the CPU, ready for inference.

    Args:
        card: A card that `check` accepts.
        dtype: Of its weights; float32 if None.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    import torch

    dtype = dtype or torch.float32
    if card.weights.random is not None:
        model = initial(card, card.weights.random)
    else:
        model = pretrained.pretrained(card, configuration(card), dtype)
    return model.to(dtype).eval().requires_grad_(False)


def initial(card: ModelCard, seed: int) -> Any:
    """A model of the card's sizes as training finds it, whatever the card's weights are.

    Raises:
        ModelError: Its sizes cannot be built.
    """
    return pretrained.initial(card, configuration(card), seed)


def configuration(card: ModelCard) -> Any:
    """transformers' configuration of the card's model.

    Raises:
        ModelError: It cannot be made, or describes a model of another class.
    """
    import transformers

    given = check(card)
    wanted = getattr(transformers, card.architecture).config_class
    try:
        if given.model is None:
            found = wanted.from_pretrained(folder(card), local_files_only=True)
        else:
            found = _small(wanted, given)
    except Exception as error:  # transformers and its validators have errors of many kinds
        raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error
    if found.is_encoder_decoder:
        raise ModelError(f"model card {card.name}: the model must be a decoder but has an encoder for its text too")
    return found


def _small(wanted: Any, given: Config) -> Any:
    """A configuration whose vocabulary is the card's words."""
    sizes = dict(given.model or {})
    kind = sizes.pop("model_type", None)
    if kind != wanted.model_type:
        raise ValueError(f"model_type must be {wanted.model_type} but is {kind}")
    text = {**sizes.pop("text_config", {}), "vocab_size": words.size(given.words)}
    ids = {"bos_token_id": None, "eos_token_id": words.END, "pad_token_id": words.PAD}
    found = wanted(**sizes, text_config={**text, **ids}, **ids)
    found.image_token_id = words.IMAGE
    if not isinstance(getattr(found, "image_seq_length", None), int):
        raise ValueError("image_seq_length must say how many tokens an image has")
    return found


def folder(card: ModelCard) -> Path:
    """Where the files of a card with weights are.

    Raises:
        ModelError: They are not on this machine.
    """
    return weights.files(card)[0].parent

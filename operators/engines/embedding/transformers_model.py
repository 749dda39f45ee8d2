"""transformers' models that turn an image into a vector, built from a card: SigLIP, SigLIP 2 and DINOv3.

SigLIP: Zhai et al. 2023; SigLIP 2: Tschannen et al. 2025; DINOv3: Siméoni et al. 2025.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.engines import pretrained
from labelmill.operators.models.card import ModelCard, ModelError

ARCHITECTURES = {
    "SiglipModel": "SiglipConfig",
    "Siglip2Model": "Siglip2Config",
    "DINOv3ViTModel": "DINOv3ViTConfig",
}
"""Classes of transformers that this engine builds, and of their configurations."""

WITH_TEXT = ("SiglipModel", "Siglip2Model")
FLEXIBLE = "Siglip2Model"
"""SigLIP 2 NaFlex, which sees an image in its own aspect; checkpoints of a fixed size are of the class SiglipModel."""

TOKENIZER = "tokenizer.json"
"""In `extra_files` of a card whose text side is used."""


class Config(BaseModel):
    """The `config` section of a card.

    Attributes:
        model: Arguments of transformers' configuration, as in the ``config.json`` beside the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: dict[str, Any]


class _Colours(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class Fixed(_Colours):
    """The `preprocess` section of a card whose model sees squares.

    Attributes:
        size: An image is resized to so many pixels square; its aspect is lost.
        mean: Of red, green and blue as 0…1, subtracted.
        std: Likewise, divided by.
        interpolation: How it is resized.
    """

    size: int = Field(ge=1)


class Flexible(_Colours):
    """The `preprocess` section of a card whose model sees an image in its own aspect.

    Attributes:
        patches: An image is resized until it has at most so many of the model's patches.
        mean: As in `Fixed`.
        std: As in `Fixed`.
        interpolation: How it is resized.
    """

    patches: int = Field(256, ge=1)


def check(card: ModelCard) -> None:
    """Refuse a card that cannot work; loads nothing.

    Raises:
        ModelError: The architecture is another, a section does not fit, or the model cannot see images of that size.
    """
    preprocess(card)
    dimensions(card)


def check_text(card: ModelCard) -> None:
    """Refuse a card whose model cannot read text; loads nothing.

    Raises:
        ModelError: It has no text side, or no tokenizer.
    """
    if card.architecture not in WITH_TEXT:
        raise ModelError(
            f"model card {card.name}: the model must read text but {card.architecture} has no text side; embed the "
            "images with a model that has one, such as clip-vit-b-32 or siglip2-base, and name the same model here"
        )
    if TOKENIZER not in card.weights.extra_files:
        raise ModelError(
            f"model card {card.name}: weights.extra_files must have {TOKENIZER} but has "
            f"{', '.join(card.weights.extra_files) or 'none'}"
        )


def preprocess(card: ModelCard) -> Fixed | Flexible:
    """The card's `preprocess` section.

    Raises:
        ModelError: It has an unknown key or value, or a size that the model does not take.
    """
    sizes = _image_side(card)
    if card.architecture == FLEXIBLE:
        return card.section("preprocess", Flexible)
    given = card.section("preprocess", Fixed)
    if card.architecture in WITH_TEXT and given.size != (wanted := sizes.get("image_size", 224)):
        raise ModelError(f"model card {card.name}: preprocess.size must be {wanted} but is {given.size}")
    if given.size % (patch := _whole(card, "patch_size", 16)):
        raise ModelError(
            f"model card {card.name}: preprocess.size must be a multiple of the patch size {patch} but is {given.size}"
        )
    return given


def dimensions(card: ModelCard) -> int:
    """Length of the model's vectors; loads nothing.

    Raises:
        ModelError: The card does not say.
    """
    return _whole(card, "hidden_size")


def build(card: ModelCard) -> Any:
    """The card's model, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    import torch
    import transformers

    check(card)
    try:
        config = getattr(transformers, ARCHITECTURES[card.architecture])(**card.section("config", Config).model)
    except Exception as error:  # transformers and its validators have errors of many kinds
        raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error
    if card.weights.random is not None:
        model = pretrained.initial(card, config, card.weights.random)
    else:
        model = pretrained.pretrained(card, config, torch.float32, constants=("position_ids",))
    return model.eval().requires_grad_(False)


def _image_side(card: ModelCard) -> dict[str, Any]:
    """Sizes of the image side."""
    if card.architecture not in ARCHITECTURES:
        raise ModelError(
            f"model card {card.name}: architecture must be one of {', '.join(ARCHITECTURES)} for embedding with engine "
            f"transformers but is {card.architecture}"
        )
    sizes: Any = card.section("config", Config).model
    if card.architecture in WITH_TEXT:
        sizes = sizes.get("vision_config")
        if not isinstance(sizes, dict) or not isinstance(card.config["model"].get("text_config"), dict):
            raise ModelError(f"model card {card.name}: config.model must have vision_config and text_config")
    return sizes


def _whole(card: ModelCard, key: str, default: int | None = None) -> int:
    """A size of the image side that must be a positive whole number."""
    found = _image_side(card).get(key, default)
    if not isinstance(found, int) or found < 1:
        where = "config.model.vision_config" if card.architecture in WITH_TEXT else "config.model"
        raise ModelError(f"model card {card.name}: {where}.{key} must be a positive whole number but is {found!r}")
    return found

"""transformers' Grounding DINO models, built from a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from labelmill.operators.engines import pretrained
from labelmill.operators.engines.detection import captions
from labelmill.operators.models import weights
from labelmill.operators.models.card import ModelCard, ModelError
from labelmill.operators.models.device import seeded

ARCHITECTURES = {
    "GroundingDinoForObjectDetection": "GroundingDinoConfig",
    "MMGroundingDinoForObjectDetection": "MMGroundingDinoConfig",
}
"""transformers' model classes and their configurations."""

TABLES = ("position_ids", "relative_position_index")
"""Constants that older versions of transformers saved among the weights."""


class Vocabulary(BaseModel):
    """What the `config` section of a card says of the tokenizer.

    Attributes:
        tokenizer: ``ascii`` for the vocabulary of `operators.engines.detection.wordpiece`; without it, the tokenizer's
            files beside the weights.
        words: Words that are one token each in the ``ascii`` vocabulary.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    tokenizer: Literal["ascii"] | None = None
    words: tuple[str, ...] = ()


class Config(Vocabulary):
    """The `config` section of a card.

    Attributes:
        model: Arguments of the configuration class; without them, ``config.json`` beside the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: dict[str, Any] | None = None


def build(card: ModelCard) -> Any:
    """The card's model, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    if card.weights.random is not None:
        model = initial(card, card.weights.random)
        with seeded(card.weights.random):
            _stir(model)
    else:
        model = pretrained.pretrained(card, _config(card), constants=TABLES)
    return model.float().eval().requires_grad_(False)


def initial(card: ModelCard, seed: int) -> Any:
    """A model of the card's sizes as training finds it, whatever the card's weights are.

    Raises:
        ModelError: Its sizes cannot be built.
    """
    return pretrained.initial(card, _config(card), seed)


def _config(card: ModelCard) -> Any:
    import transformers

    config_class = getattr(transformers, ARCHITECTURES[card.architecture])
    sizes = card.section("config", Config).model
    folder = _folder(card) if sizes is None else None
    try:
        return config_class(**(sizes or {})) if folder is None else config_class.from_pretrained(folder)
    except Exception as error:  # transformers and its validators have errors of many kinds
        raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error


def _stir(model: Any) -> None:
    """Move a freshly drawn model away from where training starts.

    There, the fusion of image and text is all but off, no box moves from its grid cell, and the original head's
    logits reach ±30; a test on such a model would not notice a wrong caption or box.
    """
    import torch

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("vision_param", "text_param")):
                tensor.fill_(0.1)
            elif "bbox_embed" in name and ".layers.2." in name:
                tensor.normal_(std=0.1)
            elif "class_embed" in name:
                tensor.fill_(-1.0)
        if type(model).__name__ == "GroundingDinoForObjectDetection":
            norm = model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
            norm.weight.mul_(model.config.d_model**-0.5)


def tokenizer(card: ModelCard) -> Any:
    """The card's tokenizer.

    Raises:
        ModelError: Its files are missing or corrupt, or it is not BERT's.
    """
    config = card.section("config", Vocabulary)
    if config.tokenizer == "ascii":
        from labelmill.operators.engines.detection.wordpiece import ascii_tokenizer

        return ascii_tokenizer(config.words)
    from transformers import BertTokenizer

    folder = _folder(card)
    try:
        found = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a corrupt file raises depends on the byte that is wrong
        raise ModelError(f"model card {card.name}: the tokenizer cannot be read from {folder}: {error}") from error
    wanted = [captions.START, captions.END, captions.DOT, captions.QUESTION]
    ids = found.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    if ids != wanted:
        raise ModelError(
            f"model card {card.name}: the tokenizer's ids of [CLS] [SEP] . ? must be {wanted} but are {ids}"
        )
    return found


def _folder(card: ModelCard) -> Path:
    paths = weights.files(card)
    if not paths:
        raise ModelError(f"model card {card.name}: config must have model and tokenizer when weights are random")
    return paths[0].parent


def share_backbones(model: Any) -> tuple[Any, Any]:
    """Put wrappers in front of the image and the text backbone that remember what they gave.

    Returns:
        The image wrapper: within ``one_batch()`` it encodes the first pixels it is shown, and gives the same features
        again afterwards. And the text wrapper, see `remember_texts`.
    """
    from torch import nn

    class Images(nn.Module):
        def __init__(self, backbone: Any) -> None:
            super().__init__()
            self.backbone = backbone
            self.position_embedding = backbone.position_embedding
            self.kept: Any = None

        @contextmanager
        def one_batch(self) -> Iterator[None]:
            try:
                yield
            finally:
                self.kept = None

        def forward(self, pixel_values: Any, pixel_mask: Any) -> Any:
            if self.kept is None:
                self.kept = self.backbone(pixel_values, pixel_mask)
            maps, positions = self.kept
            return list(maps), list(positions)  # the model appends to them

    inner = model.model
    inner.backbone, inner.text_backbone = Images(inner.backbone), remember_texts(inner.text_backbone)
    return inner.backbone, inner.text_backbone


def remember_texts(backbone: Any) -> Any:
    """Put a wrapper in front of a text backbone that remembers what it gave.

    Returns:
        After ``use(ids)``, those of a caption, it encodes the caption if it is a new one, and gives the same features
        to any number of images; ``forget()`` drops them all.
    """
    from torch import nn
    from transformers.modeling_outputs import BaseModelOutput

    class Texts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.forget()

        def forget(self) -> None:
            self.kept: dict[tuple[int, ...], Any] = {}

        def use(self, caption: tuple[int, ...]) -> None:
            self.caption = caption

        def forward(self, *inputs: Any, return_dict: bool = True, **named: Any) -> Any:
            if self.caption not in self.kept:
                one = {name: value[:1] for name, value in named.items()}
                given = self.backbone(*(value[:1] for value in inputs), **one, return_dict=return_dict)
                self.kept[self.caption] = given.last_hidden_state
            images = len(next(iter((*inputs, *named.values()))))
            return BaseModelOutput(last_hidden_state=self.kept[self.caption].expand(images, -1, -1))

    return Texts()

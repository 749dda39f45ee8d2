"""Grounding DINO (Liu et al. 2023) and MM-Grounding-DINO (Zhao et al. 2024) through transformers."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.engines.detection import captions
from labelmill.operators.engines.detection.detector import Answer
from labelmill.operators.engines.detection.grounding_dino_model import (
    ARCHITECTURES,
    Config,
    build,
    share_backbones,
    tokenizer,
)
from labelmill.operators.errors import RowError
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype
from labelmill.operators.ontology import Ontology

if TYPE_CHECKING:
    import torch


class Preprocess(BaseModel):
    """The `preprocess` section of a card: the image is resized until its short side is `short` pixels, or its long
    side `long` if that comes first, with its aspect kept; then normalised. Defaults are the authors'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    short: int = Field(800, ge=32)
    long: int = Field(1333, ge=32)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model's sizes allow.

    Attributes:
        queries: Candidates that it chooses per image.
        levels: Feature maps, at strides 8, 16, 32, ….
        vocabulary: Tokens that its text backbone knows.
        tokens: Tokens of a caption.
    """

    queries: int
    levels: int
    vocabulary: int
    tokens: int


class GroundingDino:
    """A `Detector`: transformers' models. The authors' own differs in `_build` and `_look` only.

    The image backbone does not see the text, nor the text backbone the image: the first runs once per batch, however
    many captions are asked, and the second once per caption, however many images are seen.
    """

    architectures: ClassVar[Collection[str]] = ARCHITECTURES
    extra: ClassVar[str | None] = None

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        import torch
        from torchvision.transforms.v2.functional import InterpolationMode, resize
        from transformers.image_transforms import get_size_with_aspect_ratio

        self._card = card
        self._target = get_size_with_aspect_ratio
        self._resize = partial(resize, interpolation=InterpolationMode.BILINEAR, antialias=True)
        self._size = card.section("preprocess", Preprocess)
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self.tokenizer = tokenizer(card)
        self._sizes = self._build()
        # Bytes are normalised on the device: they are a quarter of what floats would be to keep and to send.
        self._mean = 255 * torch.tensor(self._size.mean, device=self.device).view(3, 1, 1)
        self._std = 255 * torch.tensor(self._size.std, device=self.device).view(3, 1, 1)
        self.captions: list[captions.Caption] = []

    @staticmethod
    def check(card: ModelCard, ontology: Ontology) -> None:
        """See `Detector`."""
        config = card.section("config", Config)
        if card.weights.random is not None and (config.model is None or config.tokenizer is None):
            raise ModelError(f"model card {card.name}: config must have model and tokenizer when weights are random")
        check_input(card, ontology)

    def _build(self) -> Sizes:
        from labelmill.operators.engines.detection.grounding_dino_layers import simplify

        self.model = build(self._card).to(self.device)
        simplify(self.model, self.device)
        self._images, self._texts = share_backbones(self.model)
        config = self.model.config
        return Sizes(config.num_queries, config.num_feature_levels, config.text_config.vocab_size, config.max_text_len)

    def ask(self, ontology: Ontology) -> list[tuple[str, str]]:
        """See `Detector`. Prompts go into captions sorted, whatever the order of the ontology's classes."""
        asked = captions.phrases(ontology)
        self.captions = captions.build_captions(asked, self.tokenizer, self._sizes.tokens)
        known = self._sizes.vocabulary
        if (largest := max((max(caption.ids) for caption in self.captions), default=0)) >= known:
            raise ModelError(
                f"model card {self._card.name}: the tokenizer must have at most the model's {known} tokens "
                f"but gives token {largest}"
            )
        self._texts.forget()
        return [(phrase.prompt, phrase.name) for phrase in asked]

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize as transformers' GroundingDinoImageProcessor does.

        Returns:
            uint8, (3, height, width).

        Raises:
            RowError: The image is so long and thin that the model has fewer places to look at than it must choose.
        """
        import torch

        height, width = pixels.shape[:2]
        new_height, new_width = self._target((height, width), self._size.short, self._size.long)
        places, wanted = self.places(new_height, new_width), self._sizes.queries
        if places < wanted:
            raise RowError(
                f"an image of {width} × {height} is too long and thin: at {new_width} × {new_height} the model has "
                f"{places} places to choose {wanted} candidates from"
            )
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        resized: torch.Tensor = self._resize(image, [new_height, new_width])
        return resized

    def places(self, height: int, width: int) -> int:
        """Cells of the feature maps of an image, at strides 8, 16, 32, …: where the model looks for candidates."""
        strides = [8 << level for level in range(self._sizes.levels)]
        return sum(-(-height // stride) * -(-width // stride) for stride in strides)

    def bucket(self, item: torch.Tensor) -> Hashable:
        """Images of one shape share a batch, so none is padded and a neighbour changes nothing."""
        return tuple(item.shape)

    def detect(self, items: Sequence[torch.Tensor]) -> Iterator[Answer]:
        """See `Detector`: one answer per caption."""
        import torch

        with self._images.one_batch():
            batch = torch.stack(list(items)).to(self.device)
            for caption in self.captions:
                self._texts.use(tuple(caption.ids))
                with inference(self.device, self.dtype):
                    answer = self._detect(batch, caption)
                yield answer

    def _detect(self, batch: torch.Tensor, caption: captions.Caption) -> Answer:
        import torch

        logits, found = self._look((batch.float() - self._mean) / self._std, caption)
        with torch.autocast(self.device.type, enabled=False):
            tokens = logits[..., : len(caption.ids)].float().sigmoid()
            scores = tokens @ torch.from_numpy(caption.positive_map()).to(self.device)
            centre, size = found.float().split(2, dim=-1)
            boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        return Answer(np.array(caption.phrases), scores.cpu().numpy(), boxes.cpu().numpy())

    def _look(self, pixels: torch.Tensor, caption: captions.Caption) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model.

        Args:
            pixels: float32 (n, 3, height, width), normalised.
            caption: What is asked of all of them.

        Returns:
            A logit per candidate and token (n, queries, tokens or more), and the candidates' boxes (n, queries, 4):
            centre and size as fractions of the image.
        """
        import torch

        ids = torch.tensor(caption.ids, device=self.device).expand(len(pixels), -1)
        outputs = self.model(pixel_values=pixels, input_ids=ids)
        return outputs.logits, outputs.pred_boxes


def check_input(card: ModelCard, ontology: Ontology) -> None:
    """Refuse preprocessing or prompts that no Grounding DINO can work with.

    Raises:
        ModelError: The card's `preprocess` section.
        OperatorError: The prompts.
    """
    given = card.section("preprocess", Preprocess)
    if given.short > given.long:
        raise ModelError(f"model card {card.name}: preprocess.short must be at most {given.long} but is {given.short}")
    captions.check_phrases(ontology)

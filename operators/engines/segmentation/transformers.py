"""Segment Anything models through transformers: SAM, SAM 2.1 and SAM 3 (Kirillov et al. 2023, Ravi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from labelmill.operators.engines import pretrained
from labelmill.operators.engines.segmentation.prompted import Kind, Prompted
from labelmill.operators.errors import RowError
from labelmill.operators.models import weights
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one class of transformers have in common.

    Attributes:
        config: transformers' configuration class.
        square: Whether images are squashed into a square, or keep their shape and are padded.
        mean: Taken off pixels of 0…1, unless the card says otherwise.
        std: What the rest is divided by.
    """

    config: str
    square: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


ARCHITECTURES = {
    "SamModel": Family("SamConfig", False, *IMAGENET),
    "Sam2Model": Family("Sam2Config", True, *IMAGENET),
    "Sam3TrackerModel": Family("Sam3TrackerConfig", True, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""transformers' classes that take boxes and points on images."""


class Config(BaseModel):
    """The `config` section of a card.

    Attributes:
        model: Arguments of the configuration class; without them, ``config.json`` beside the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: dict[str, Any] | None = None


class Preprocess(BaseModel):
    """The `preprocess` section of a card: what is taken off and what it is divided by, in RGB of 0…1.

    Attributes:
        mean: The family's if None.
        std: The family's if None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def check(card: ModelCard) -> Config:
    """The `config` section of a card, refused if it cannot work; loads nothing.

    Raises:
        ModelError: The architecture is unknown, or a section has an unknown key.
    """
    if card.architecture not in ARCHITECTURES:
        raise ModelError(
            f"model card {card.name}: architecture must be {', '.join(ARCHITECTURES)} with engine transformers "
            f"but is {card.architecture!r}"
        )
    card.section("preprocess", Preprocess)
    given = card.section("config", Config)
    if card.weights.random is not None and given.model is None:
        raise ModelError(f"model card {card.name}: config must have model when weights are random")
    return given


def masks_of_point(card: ModelCard) -> int:
    """How many masks the model gives for a point."""
    decoder = (check(card).model or {}).get("mask_decoder_config", {})
    return int(decoder.get("num_multimask_outputs", 3))


def configuration(card: ModelCard) -> Any:
    """transformers' configuration of the card's model.

    Raises:
        ModelError: It cannot be made, or its parts do not fit together.
    """
    import transformers

    given = check(card).model
    wanted = getattr(transformers, ARCHITECTURES[card.architecture].config)
    folder = weights.files(card)[0].parent if given is None else None
    try:
        found = wanted(**(given or {})) if folder is None else wanted.from_pretrained(folder, local_files_only=True)
        inner = getattr(found, "tracker_config", None)  # SAM 3's file describes its detector and its tracker
        if inner is not None:
            found = wanted(**(inner if isinstance(inner, dict) else inner.to_dict()))
        vision, prompts = found.vision_config, found.prompt_encoder_config
        side, grid = prompts.image_size, prompts.image_size // prompts.patch_size
        images = getattr(vision, "backbone_config", vision).image_size
        maps = getattr(vision, "backbone_feature_sizes", None)
    except Exception as error:  # transformers and its validators have errors of many kinds
        raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error
    if images not in (side, [side, side], (side, side)):
        raise ModelError(
            f"model card {card.name}: config.model must have the same image_size in its vision and its prompt encoder "
            f"but has {images} and {side}"
        )
    if maps is not None and [list(each) for each in maps] != [[grid * factor] * 2 for factor in (4, 2, 1)]:
        raise ModelError(
            f"model card {card.name}: config.model.vision_config.backbone_feature_sizes must be "
            f"{[[grid * factor] * 2 for factor in (4, 2, 1)]} for images of {side} and patches of {prompts.patch_size} "
            f"but is {maps}"
        )
    return found


def build(card: ModelCard) -> Any:
    """The card's model, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    given = configuration(card)
    try:
        if card.weights.random is not None:
            model = pretrained.initial(card, given, card.weights.random)
        else:
            model = pretrained.pretrained(card, given)
    except ModelError:
        raise
    except Exception as error:  # sizes that do not divide each other fail in many places
        raise ModelError(f"model card {card.name}: the model cannot be built: {error}") from error
    return model.float().eval().requires_grad_(False)


def _drop_unused_map(model: Any) -> None:
    """Stop SAM 3's image encoder from making the coarsest map, which its tracker has no use for.

    transformers 5 adds the embedding that stands for an empty memory to the last map, and only then drops the coarsest.
    In the authors' predictor, as in transformers' tracker of videos, it reaches the map that masks are decoded from.
    """
    neck = model.vision_encoder.neck
    neck.fpn_layers = neck.fpn_layers[: len(model.backbone_feature_sizes)]


class TransformersSam(Prompted):
    """A model of transformers that turns boxes, or points, into masks.

    For a box the single mask is taken, as the models' authors do. SAM 2 and 3 replace it by the best of the several
    others where it depends on its threshold.

    Args:
        card: A card whose engine is transformers.
        dtype: Arithmetic of the image encoder and the mask decoder. Prompts are encoded in float32, because half
            precision moves them by whole pixels.

    Raises:
        ModelError: The card cannot be built, or the weights are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        import torch

        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self._model = build(card).to(self.device)
        if card.architecture == "Sam3TrackerModel":
            _drop_unused_map(self._model)
        if card.architecture != "SamModel" and self.device.type == "cpu" and self.dtype == torch.float32:
            from labelmill.operators.engines.segmentation.sam2_decoder import MaskDecoder

            self._model.mask_decoder = MaskDecoder(self._model.mask_decoder)
        self._side = int(self._model.config.prompt_encoder_config.image_size)
        family, look = ARCHITECTURES[card.architecture], card.section("preprocess", Preprocess)
        self._square = family.square
        mean, std = look.mean or family.mean, look.std or family.std
        self._mean, self._std = (torch.tensor(each, device=self.device)[:, None, None] * 255 for each in (mean, std))

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize to the model's size.

        Args:
            pixels: uint8 (h, w, 3), RGB.

        Returns:
            uint8 (3, h', w'): both sides the model's for SAM 2 and 3, the longer one for SAM.

        Raises:
            RowError: The image is so narrow that nothing would be left of its shorter side.
        """
        import torch
        from PIL import Image
        from torchvision.transforms.v2 import functional

        height, width = pixels.shape[:2]
        size = self._input_size(height, width)
        if min(size) < 1:
            raise RowError(f"the image is too narrow for the model: {width} x {height} pixels")
        if self._square:
            return functional.resize(torch.tensor(pixels).permute(2, 0, 1), list(size), antialias=True).contiguous()
        resized = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
        return torch.from_numpy(resized).permute(2, 0, 1).contiguous()

    def encode(self, items: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Embed prepared images, of any sizes.

        Returns:
            For each image float32 maps (1, c, h, w) on the model's device, the finest first; SAM has one, the others
            three.
        """
        import torch
        from torch.nn.functional import pad

        with inference(self.device, self.dtype):
            pixels = torch.stack(
                [
                    pad((item.to(self.device) - self._mean) / self._std, (0, self._side - wide, 0, self._side - high))
                    for item in items
                    for high, wide in [item.shape[1:]]
                ]
            )
            maps = self._model.get_image_embeddings(pixels)
            maps = [each.float() for each in ([maps] if isinstance(maps, torch.Tensor) else maps)]
        return [[each[index : index + 1] for each in maps] for index in range(len(items))]

    def _predict(
        self,
        embedded: list[torch.Tensor],
        prompts: np.ndarray,
        kind: Kind,
        size: tuple[int, int],
        labels: np.ndarray | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        model = self._model
        (high, wide), (height, width) = self._input_size(*size), size
        scaled = prompts.reshape(len(prompts), -1, 2) * np.array([wide / width, high / height])
        given = torch.from_numpy(scaled).float().to(self.device)[None]
        with inference(self.device, torch.float32):
            if kind == "box":
                sparse, dense = model.get_prompt_embeddings(input_boxes=given.flatten(2))
            else:
                told = torch.ones(given.shape[:3], dtype=torch.int, device=self.device)
                if labels is not None:
                    told = torch.from_numpy(labels).int().to(self.device).reshape(told.shape)
                sparse, dense = model.get_prompt_embeddings(input_points=given, input_labels=told)
            position = model.get_image_wide_positional_embeddings()
        finer = {} if len(embedded) == 1 else {"high_resolution_features": embedded[:-1]}
        with inference(self.device, self.dtype):
            logits, predicted, *_ = model.mask_decoder(
                image_embeddings=embedded[-1],
                image_positional_embeddings=position,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=kind == "point",
                **finer,
            )
        return logits[0].float(), predicted[0].float()

    def _stages(self, height: int, width: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        if self._square:
            return ((height, height),), ((width, width),)
        high, wide = self._input_size(height, width)
        return ((self._side, high), (height, height)), ((self._side, wide), (width, width))

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """Of the resized image: height and width."""
        if self._square:
            return self._side, self._side
        scale = self._side / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)


def make(card: ModelCard, dtype: Dtype) -> TransformersSam:
    """The card's model, loaded; see `TransformersSam`."""
    return TransformersSam(card, dtype)

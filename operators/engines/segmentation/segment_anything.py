"""The Segment Anything Model through its authors' package (Kirillov et al. 2023, SAM)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from labelmill.operators.engines.segmentation.prompted import Kind, Prompted
from labelmill.operators.errors import RowError
from labelmill.operators.models import weights
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype, seeded

if TYPE_CHECKING:
    import torch

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit_b": {
        "encoder_embed_dim": 768,
        "encoder_depth": 12,
        "encoder_num_heads": 12,
        "encoder_global_attn_indexes": (2, 5, 8, 11),
    },
    "vit_l": {
        "encoder_embed_dim": 1024,
        "encoder_depth": 24,
        "encoder_num_heads": 16,
        "encoder_global_attn_indexes": (5, 11, 17, 23),
    },
    "vit_h": {
        "encoder_embed_dim": 1280,
        "encoder_depth": 32,
        "encoder_num_heads": 16,
        "encoder_global_attn_indexes": (7, 15, 23, 31),
    },
}
"""The published sizes; what they share are the defaults of `Sizes`."""


class Sizes(BaseModel):
    """The `config` section of a card, under the names of segment-anything's builder and classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder_embed_dim: int = Field(gt=0)
    encoder_depth: int = Field(gt=0)
    encoder_num_heads: int = Field(gt=0)
    encoder_global_attn_indexes: tuple[int, ...]
    mlp_ratio: float = Field(4, gt=0)
    window_size: int = Field(14, gt=0)
    image_size: int = Field(1024, gt=0)
    patch_size: int = Field(16, gt=0)
    prompt_embed_dim: int = Field(256, gt=0, multiple_of=8)
    mask_in_chans: int = Field(16, gt=0, multiple_of=4)
    num_multimask_outputs: int = Field(3, ge=0)
    decoder_depth: int = Field(2, gt=0)
    decoder_num_heads: int = Field(8, gt=0)
    decoder_mlp_dim: int = Field(2048, gt=0)
    iou_head_depth: int = Field(3, gt=0)
    iou_head_hidden_dim: int = Field(256, gt=0)

    @model_validator(mode="after")
    def _fit(self) -> Sizes:
        for large, small, factor in (
            ("image_size", "patch_size", 1),
            ("encoder_embed_dim", "encoder_num_heads", 1),
            ("prompt_embed_dim", "decoder_num_heads", 2),
        ):
            unit = factor * getattr(self, small)
            if getattr(self, large) % unit:
                times = f"{factor} x {small}" if factor > 1 else small
                raise ValueError(f"{large} must be a multiple of {times}, {unit}, but is {getattr(self, large)}")
        outside = [index for index in self.encoder_global_attn_indexes if not 0 <= index < self.encoder_depth]
        if outside:
            raise ValueError(
                f"encoder_global_attn_indexes must be from 0 to {self.encoder_depth - 1} but has {outside[0]}"
            )
        return self


class Preprocess(BaseModel):
    """The `preprocess` section of a card: what is taken off and what it is divided by, in RGB of 0…255."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


def sizes(card: ModelCard) -> Sizes:
    """The sizes that a card's architecture and `config` give; loads nothing.

    Raises:
        ModelError: The architecture is not a published one and `config` does not say all, or sizes do not fit together.
    """
    published = ARCHITECTURES.get(card.architecture, {})
    missing = [name for name in ARCHITECTURES["vit_b"] if name not in published and name not in card.config]
    if missing:
        raise ModelError(
            f"model card {card.name}: architecture must be {', '.join(ARCHITECTURES)}, or config must give "
            f"{', '.join(missing)}, but is {card.architecture!r}"
        )
    return card.model_copy(update={"config": {**published, **card.config}}).section("config", Sizes)


def check(card: ModelCard) -> None:
    """Refuse a card that this engine cannot build, without loading anything.

    Raises:
        ModelError: A section has an unknown key, or values that do not fit together.
    """
    sizes(card)
    card.section("preprocess", Preprocess)


def masks_of_point(card: ModelCard) -> int:
    """How many masks the model gives for a point; 0 if it knows boxes only."""
    return sizes(card).num_multimask_outputs


def initial(card: ModelCard, seed: int) -> Any:
    """The card's `segment_anything.modeling.Sam` before training, in float32 on the CPU.

    Raises:
        ModelError: As `check`.
    """
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    given, look = sizes(card), card.section("preprocess", Preprocess)
    grid = given.image_size // given.patch_size
    with seeded(seed):
        return Sam(
            ImageEncoderViT(
                img_size=given.image_size,
                patch_size=given.patch_size,
                embed_dim=given.encoder_embed_dim,
                depth=given.encoder_depth,
                num_heads=given.encoder_num_heads,
                mlp_ratio=given.mlp_ratio,
                out_chans=given.prompt_embed_dim,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=given.window_size,
                global_attn_indexes=given.encoder_global_attn_indexes,
            ),
            PromptEncoder(
                embed_dim=given.prompt_embed_dim,
                image_embedding_size=(grid, grid),
                input_image_size=(given.image_size, given.image_size),
                mask_in_chans=given.mask_in_chans,
            ),
            MaskDecoder(
                transformer_dim=given.prompt_embed_dim,
                transformer=TwoWayTransformer(
                    depth=given.decoder_depth,
                    embedding_dim=given.prompt_embed_dim,
                    num_heads=given.decoder_num_heads,
                    mlp_dim=given.decoder_mlp_dim,
                ),
                num_multimask_outputs=given.num_multimask_outputs,
                iou_head_depth=given.iou_head_depth,
                iou_head_hidden_dim=given.iou_head_hidden_dim,
            ),
            list(look.mean),
            list(look.std),
        )


def build(card: ModelCard) -> Any:
    """The card's `segment_anything.modeling.Sam`, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    seed = card.weights.random
    state = weights.read(card) if seed is None else None
    model = initial(card, seed or 0)
    if state is not None:
        weights.fit(card, model, state)
    return model.eval().requires_grad_(False)


class SegmentAnything(Prompted):
    """A model that turns boxes, or points, into masks.

    For a box the single mask is taken (``multimask_output=False``), as its authors do: the several others are for
    prompts that could mean a whole or its parts, such as a point.

    Args:
        card: A card whose engine is segment_anything.
        dtype: Arithmetic of the image encoder and the mask decoder. Prompts are encoded in float32, because half
            precision moves them by whole pixels.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self._model = build(card).to(self.device)
        self._resize = ResizeLongestSide(sizes(card).image_size)

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize so that the longer side is the model's.

        Args:
            pixels: uint8 (h, w, 3), RGB.

        Returns:
            uint8 (3, h', w').

        Raises:
            RowError: The image is so narrow that nothing would be left of its shorter side.
        """
        import torch

        height, width = pixels.shape[:2]
        if min(self._input_size(height, width)) < 1:
            raise RowError(f"the image is too narrow for the model: {width} x {height} pixels")
        return torch.from_numpy(self._resize.apply_image(pixels)).permute(2, 0, 1).contiguous()

    def encode(self, items: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Embed prepared images, of any sizes.

        Returns:
            For each image float32 (prompt_embed_dim, grid, grid), on the model's device.
        """
        import torch

        with inference(self.device, self.dtype):
            pixels = torch.stack([self._model.preprocess(item.to(self.device)) for item in items])
            return list(self._model.image_encoder(pixels).float())

    def _predict(
        self,
        embedded: torch.Tensor,
        prompts: np.ndarray,
        kind: Kind,
        size: tuple[int, int],
        labels: np.ndarray | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        model = self._model
        corners = self._resize.apply_coords(prompts.reshape(len(prompts), -1, 2), size)
        given = torch.from_numpy(corners).float().to(self.device)
        with inference(self.device, torch.float32):
            if kind == "box":
                sparse, dense = model.prompt_encoder(points=None, boxes=given, masks=None)
            else:
                told = torch.ones(given.shape[:2], dtype=torch.int, device=self.device)
                if labels is not None:
                    told = torch.from_numpy(labels).int().to(self.device).reshape(told.shape)
                sparse, dense = model.prompt_encoder(points=(given, told), boxes=None, masks=None)
            position = model.prompt_encoder.get_dense_pe()
        with inference(self.device, self.dtype):
            logits, predicted = model.mask_decoder(
                embedded[None], position, sparse, dense, multimask_output=kind == "point"
            )
        return logits.float(), predicted.float()

    def _stages(self, height: int, width: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        side = self._resize.target_length
        high, wide = self._input_size(height, width)
        return ((side, high), (height, height)), ((side, wide), (width, width))

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """Of the resized image: height and width."""
        high, wide = self._resize.get_preprocess_shape(height, width, self._resize.target_length)
        return int(high), int(wide)


def make(card: ModelCard, dtype: Dtype) -> SegmentAnything:
    """The card's model, loaded; see `SegmentAnything`."""
    return SegmentAnything(card, dtype)

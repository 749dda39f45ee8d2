"""Images to vectors through transformers: SigLIP, SigLIP 2 and DINOv3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.embedding.transformers_model import (
    FLEXIBLE,
    WITH_TEXT,
    Fixed,
    Flexible,
    build,
    check,
    check_text,
    dimensions,
    preprocess,
)
from labelmill.operators.models.card import Dtype, ModelCard
from labelmill.operators.models.device import inference, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

    from labelmill.operators.engines.embedding.siglip_text import SiglipText

__all__ = ["check", "check_text", "dimensions", "image_encoder", "text_encoder"]


def image_encoder(card: ModelCard, dtype: Dtype = "auto") -> SquareImages | FlexibleImages:
    """The image side of the card's model.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """
    return (FlexibleImages if card.architecture == FLEXIBLE else SquareImages)(card, dtype)


def text_encoder(card: ModelCard) -> SiglipText:
    """The text side of the card's model.

    Raises:
        ModelError: It has none, or its weights or tokenizer are missing, corrupt or of another model.
    """
    from labelmill.operators.engines.embedding.siglip_text import SiglipText

    return SiglipText(card)


class _Images:
    """What both ways to look at an image have in common."""

    def __init__(self, card: ModelCard, dtype: Dtype) -> None:
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        model = build(card)
        side = model.vision_model if card.architecture in WITH_TEXT else model
        self._model = side.to(self.device)

    def _vectors(self, **inputs: torch.Tensor) -> np.ndarray:
        """The pooled output: DINOv3's class token, or what SigLIP's attention pooling makes of all tokens."""
        import torch

        pooled = self._model(**inputs).pooler_output.float()
        array: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return array


class SquareImages(_Images):
    """A model that sees squares.

    Args:
        card: A card that `check` accepts.
        dtype: Arithmetic.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        import torch
        from PIL import Image

        super().__init__(card, dtype)
        given = preprocess(card)
        assert isinstance(given, Fixed)
        self._size = (given.size, given.size)
        self._resample = Image.Resampling[given.interpolation.upper()]
        self._mean = torch.tensor(given.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(given.std, device=self.device).view(3, 1, 1)

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize to a square.

        Returns:
            uint8, (size, size, 3).
        """
        import torch
        from PIL import Image

        return torch.from_numpy(np.array(Image.fromarray(pixels).resize(self._size, self._resample)))

    def encode(self, items: Sequence[torch.Tensor]) -> np.ndarray:
        """Vectors of prepared images.

        Returns:
            float32, (n, dimensions), L2-normalised.
        """
        import torch

        with inference(self.device, self.dtype):
            batch = torch.stack(list(items)).to(self.device).permute(0, 3, 1, 2).contiguous()
            return self._vectors(pixel_values=(batch.float() / 255 - self._mean) / self._std)


class FlexibleImages(_Images):
    """A model that sees an image in its own aspect: SigLIP 2 NaFlex.

    Args:
        card: A card that `check` accepts.
        dtype: Arithmetic.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        from PIL import Image
        from transformers import Siglip2ImageProcessorPil

        super().__init__(card, dtype)
        given = preprocess(card)
        assert isinstance(given, Flexible)
        self._processor = Siglip2ImageProcessorPil(
            patch_size=self._model.config.patch_size,
            max_num_patches=given.patches,
            image_mean=list(given.mean),
            image_std=list(given.std),
            resample=Image.Resampling[given.interpolation.upper()],
        )

    def prepare(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        """Resize until the patches are few enough, and cut into patches.

        Returns:
            ``pixel_values``: float32, (patches, patch size² · 3), zero where there is no patch;
            ``pixel_attention_mask``: int32, (patches,), 1 where there is one;
            ``spatial_shapes``: int64, (2,), rows and columns of patches.
        """
        from PIL import Image

        given: Any = self._processor(Image.fromarray(pixels), return_tensors="pt")
        return {name: tensor[0] for name, tensor in given.items()}

    def encode(self, items: Sequence[dict[str, torch.Tensor]]) -> np.ndarray:
        """Vectors of prepared images.

        Returns:
            float32, (n, dimensions), L2-normalised.
        """
        import torch

        with inference(self.device, self.dtype):
            return self._vectors(
                **{name: torch.stack([item[name] for item in items]).to(self.device) for name in items[0]}
            )

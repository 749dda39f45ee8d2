"""Contrastive image-text models through open_clip (Ilharco et al. 2021; CLIP: Radford et al. 2021)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from labelmill.operators.engines.slim import import_open_clip
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import weights
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype, seeded

if TYPE_CHECKING:
    import torch

TEXTS = 64
"""Texts per call of the text side."""


class Preprocess(BaseModel):
    """The `preprocess` section of a card, under open_clip's names; defaults are OpenAI's CLIP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int | None = None
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"


def model_config(card: ModelCard) -> dict[str, Any]:
    """open_clip's configuration: the card's, or else what open_clip ships under the architecture's name.

    Raises:
        ModelError: There is none, or it is of a kind that this engine does not build.
    """
    config = deepcopy(card.config) or _shipped_config(card)
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise ModelError(f"model card {card.name}: config must have embed_dim, vision_cfg and text_cfg")
    text = config["text_cfg"]
    if "multimodal_cfg" in config or text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise ModelError(
            f"model card {card.name}: architecture {card.architecture} must be a two-tower model with "
            "open_clip's own tokenizer, but its text side comes from another library"
        )
    return config


def dimensions(card: ModelCard) -> int:
    """Length of the model's vectors; loads nothing."""
    return int(model_config(card)["embed_dim"])


def check(card: ModelCard) -> None:
    """Refuse a card that cannot work; loads nothing.

    Raises:
        ModelError: Its architecture or a section does not fit.
    """
    settings(card)


def check_text(card: ModelCard) -> None:
    """Refuse a card whose model cannot read text: none, because `model_config` takes none without a text side."""


def settings(card: ModelCard) -> Preprocess:
    """The card's `preprocess` section.

    Raises:
        ModelError: It has an unknown key or value, or a size that the model does not take.
    """
    given = card.section("preprocess", Preprocess)
    size = model_config(card)["vision_cfg"].get("image_size", 224)
    if given.size not in (None, size):
        raise ModelError(f"model card {card.name}: preprocess.size must be {size} but is {given.size}")
    return given.model_copy(update={"size": size})


def image_transform_of(given: Preprocess) -> Any:
    """open_clip's own transform for a `preprocess` section."""
    import_open_clip()
    from open_clip.transform import image_transform

    return image_transform(given.size, False, given.mean, given.std, given.resize_mode, given.interpolation)


def _geometry(given: Preprocess) -> list[Any]:
    """The steps of open_clip's transform that move pixels, for a uint8 tensor (3, height, width)."""
    import_open_clip()
    from open_clip.transform import MaybeConvertMode, ResizeKeepRatio
    from torchvision import transforms
    from torchvision.transforms import v2

    def keep_ratio(step: Any) -> Any:
        def resize(image: torch.Tensor) -> torch.Tensor:
            size = step.get_params(SimpleNamespace(size=tuple(image.shape[:0:-1])), step.size, step.longest)
            return v2.functional.resize(image, size, step.interpolation, antialias=True)

        return resize

    steps: list[Any] = []
    for step in image_transform_of(given).transforms[:-2]:
        if isinstance(step, transforms.Resize):
            # The first version would compute in float32, which is slower than Pillow.
            steps.append(v2.Resize(step.size, interpolation=step.interpolation, antialias=True))
        elif isinstance(step, ResizeKeepRatio):
            steps.append(keep_ratio(step))
        elif not isinstance(step, MaybeConvertMode):
            steps.append(step)
    return steps


def image_encoder(card: ModelCard, dtype: Dtype = "auto") -> ImageEncoder:
    """The image side of the card's model.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """
    return ImageEncoder(card, dtype)


def text_encoder(card: ModelCard) -> TextEncoder:
    """The text side of the card's model.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """
    return TextEncoder(card)


class ImageEncoder:
    """The image side of a model.

    Args:
        card: A card whose engine is open_clip.
        dtype: Arithmetic.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        import torch

        given = settings(card)
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self._visual = build(card).visual.to(self.device)
        # The last two steps make a float tensor and normalise: done on the device, for a batch of bytes at once.
        self._geometry = _geometry(given)
        self._mean = torch.tensor(given.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(given.std, device=self.device).view(3, 1, 1)

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize and crop as open_clip does, to 2 grey levels: its resampling is Pillow's, this is torchvision's.

        Torchvision's takes a fifth of the time. Of a photo's values fewer than one in a hundred differs; of narrow
        images one in six, by 1.

        Returns:
            uint8, (size, size, 3).
        """
        import torch

        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        for step in self._geometry:
            image = step(image)
        return image.permute(1, 2, 0)

    def encode(self, items: Sequence[torch.Tensor]) -> np.ndarray:
        """Vectors of prepared images.

        Returns:
            float32, (n, dimensions), L2-normalised.
        """
        import torch

        with inference(self.device, self.dtype):
            batch = torch.stack(list(items)).to(self.device).permute(0, 3, 1, 2).contiguous()
            pixels = (batch.float() / 255 - self._mean) / self._std
            vectors = torch.nn.functional.normalize(self._visual(pixels).float(), dim=-1)
        array: np.ndarray = vectors.cpu().numpy()
        return array


class TextEncoder:
    """The text side of a model, in float32.

    Args:
        card: A card whose engine is open_clip.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard) -> None:
        import_open_clip()
        from open_clip import SimpleTokenizer

        text = model_config(card)["text_cfg"]
        self._tokenizer = SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
        )
        model = build(card)
        self._scale = float(model.logit_scale.detach().exp())
        del model.visual
        self.device = pick_device()
        self._model = model.to(self.device)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts.

        Returns:
            float32, (n, dimensions), L2-normalised.

        Raises:
            OperatorError: A text is longer than the model reads. open_clip itself would cut it off.
        """
        import torch

        limit = self._tokenizer.context_length
        for text in texts:
            length = len(self._tokenizer.encode(text)) + 2
            if length > limit:
                raise OperatorError(f"a prompt must have at most {limit} tokens but {text!r} has {length}")
        parts = []
        with inference(self.device, torch.float32):
            for start in range(0, len(texts), TEXTS):
                tokens = self._tokenizer(list(texts[start : start + TEXTS])).to(self.device)
                parts.append(self._model.encode_text(tokens, normalize=True).cpu().numpy())
        return np.concatenate(parts)

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """Which text fits best: the softmax over the texts of the cosine times the learned scale."""
        from scipy.special import softmax

        found: np.ndarray = softmax(np.float32(self._scale) * cosines, axis=1)
        return found


def build(card: ModelCard) -> Any:
    """The card's model, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    config = model_config(card)
    import_open_clip(timm="timm_model_name" in config["vision_cfg"])
    from open_clip.model import CLIP, CustomTextCLIP

    cls = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    seed = card.weights.random
    state = weights.read(card) if seed is None else None
    with seeded(seed or 0):
        try:
            model = cls(**config)
        except (TypeError, ValueError, AssertionError) as error:
            raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error
    if state is not None:
        weights.fit(card, model, state)
    return model.eval().requires_grad_(False)


def _shipped_config(card: ModelCard) -> dict[str, Any]:
    """Read from open_clip's files: importing it takes seconds, and planning a run needs only a number."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModelError("engine open_clip needs the package open_clip_torch, which is not installed")
    folder = Path(spec.origin).parent / "model_configs"
    path = folder / f"{card.architecture.replace('/', '-')}.json"
    if not path.is_file():
        raise ModelError(
            f"model card {card.name}: architecture must be one that open_clip ships (such as ViT-B-32), or config "
            f"must give its sizes, but is {card.architecture!r}"
        )
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config

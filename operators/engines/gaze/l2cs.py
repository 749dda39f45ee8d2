"""Where faces look, by L2CS-Net (Abdelrahman et al. 2022, "L2CS-Net: fine-grained gaze estimation").

Angles are in degrees. With x right, y down and z away from the camera, a gaze looks along
``(-sin(yaw)·cos(pitch), -sin(pitch), -cos(yaw)·cos(pitch))``: yaw > 0 to the left edge of the image, pitch > 0 up, and
(0, 0) into the camera. That is how the authors train on Gaze360 (Kellnhofer et al. 2019), measure and draw.

Their code calls the first output of the network pitch and the second yaw wherever it trains or predicts, but the labels
there are yaw first, and so are the formulas that turn the outputs into a direction. The names of the layers are right:
``fc_yaw_gaze`` gives the yaw, ``fc_pitch_gaze`` the pitch. Here they are read by the layers' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.models import weights
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype, seeded

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from labelmill.operators.engines.gaze.l2cs_model import L2CS

ARCHITECTURES = {
    "ResNet18": (False, (2, 2, 2, 2)),
    "ResNet34": (False, (3, 4, 6, 3)),
    "ResNet50": (True, (3, 4, 6, 3)),
    "ResNet101": (True, (3, 4, 23, 3)),
    "ResNet152": (True, (3, 8, 36, 3)),
}
"""Whether blocks are bottlenecks, and how many each stage has (He et al. 2016, table 1)."""
FACES = 32
"""Faces per call of the model."""
VESTIGE = ("fc_finetune.weight", "fc_finetune.bias")
"""Tensors that the authors' files hold and no part of the network uses."""

Box = Sequence[float]


class Config(BaseModel):
    """The `config` section of a card.

    Attributes:
        width: Channels of the first stage; the published weights have 64.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(64, ge=1)


class Preprocess(BaseModel):
    """The `preprocess` section of a card; defaults are the authors'.

    Attributes:
        crop: Side of the square, in pixels, that a face box is scaled to. The published weights saw faces of 224.
        size: Side of the model's input, that the square is then scaled to.
        mean, std: Of the colour channels, for pixels of 0…1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: int = Field(224, ge=1)
    size: int = Field(448, ge=32)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def check(card: ModelCard) -> None:
    """Refuse a card that this engine cannot build. Loads nothing.

    Raises:
        ModelError: Its architecture, `config` or `preprocess` is none that L2CS-Net has.
    """
    if card.architecture not in ARCHITECTURES:
        raise ModelError(
            f"model card {card.name}: architecture must be one of {', '.join(ARCHITECTURES)} "
            f"but is {card.architecture!r}"
        )
    card.section("config", Config)
    card.section("preprocess", Preprocess)


def initial(card: ModelCard, seed: int) -> L2CS:
    """The card's network with weights drawn from a seed, in float32 on the CPU.

    Raises:
        ModelError: See `check`.
    """
    from labelmill.operators.engines.gaze.l2cs_model import L2CS

    check(card)
    with seeded(seed):
        return L2CS(*ARCHITECTURES[card.architecture], card.section("config", Config).width)


def build(card: ModelCard) -> L2CS:
    """The card's network, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: It cannot be built, or the weights are missing, corrupt or of another model.
    """
    model = initial(card, card.weights.random or 0)
    if card.weights.random is None:
        state = weights.read(card)
        weights.fit(card, model, {name: tensor for name, tensor in state.items() if name not in VESTIGE})
    return model.eval().requires_grad_(False)


def cut_face(image: Image.Image, box: Box, side: int) -> np.ndarray:
    """The inside of a face box, scaled to a square with bilinear, antialiased sampling.

    Args:
        image: RGB.
        box: xyxy in pixels, fractions allowed. What is outside the image is cut off; a side that is then shorter than
            a pixel is made one pixel long.
        side: Of the square.

    Returns:
        uint8 (side, side, 3).
    """
    from PIL import Image

    (left, right), (top, bottom) = _span(box[0], box[2], image.width), _span(box[1], box[3], image.height)
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


class GazeEstimator:
    """The model, loaded.

    Args:
        card: A card whose engine is l2cs.
        dtype: Arithmetic.

    Raises:
        ModelError: See `build`.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        import torch

        self._model = build(card)
        self._given = card.section("preprocess", Preprocess)
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self._model.to(self.device)
        self._mean = torch.tensor(self._given.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(self._given.std, device=self.device).view(3, 1, 1)

    def prepare(self, image: Image.Image, boxes: Sequence[Box]) -> np.ndarray:
        """Cut the faces of one image out, see `cut_face`.

        Returns:
            uint8 (faces, crop, crop, 3).
        """
        side = self._given.crop
        faces = np.empty((len(boxes), side, side, 3), dtype=np.uint8)
        for face, box in zip(faces, boxes, strict=True):
            face[:] = cut_face(image, box, side)
        return faces

    def look(self, faces: np.ndarray) -> np.ndarray:
        """Where faces look.

        Args:
            faces: uint8 (n, crop, crop, 3), as `prepare` gives them, of any number of images.

        Returns:
            float32 (n, 2): yaw and pitch in degrees.
        """
        import torch

        found = [np.zeros((0, 2), dtype=np.float32)]
        with inference(self.device, self.dtype):
            for start in range(0, len(faces), FACES):
                pixels = torch.from_numpy(faces[start : start + FACES]).to(self.device)
                found.append(self._angles(pixels).cpu().numpy())
        return np.concatenate(found)

    def _angles(self, faces: torch.Tensor) -> torch.Tensor:
        import torch

        from labelmill.operators.engines.gaze.l2cs_model import angles

        pixels = normalise(faces, self._mean, self._std)
        yaw, pitch = self._model(enlarge(pixels, self._given.size))
        return torch.stack([angles(yaw), angles(pitch)], dim=1)


def normalise(faces: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """uint8 (n, side, side, 3) as the model takes it: float32 (n, 3, side, side)."""
    return (faces.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std


def enlarge(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Squares (n, 3, side, side) scaled to (n, 3, size, size), bilinear."""
    import torch

    if pixels.shape[-1] == size:
        return pixels
    return torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def _span(low: float, high: float, length: int) -> tuple[float, float]:
    """One axis of a box, at least a pixel long and inside the image."""
    low, high = min(max(low, 0.0), length), min(max(high, 0.0), length)
    if high - low >= 1:
        return low, high
    low = min(max((low + high - 1) / 2, 0.0), length - 1.0)
    return low, low + 1


def make(card: ModelCard, dtype: Dtype) -> GazeEstimator:
    """The card's model, loaded; see `GazeEstimator`."""
    return GazeEstimator(card, dtype)

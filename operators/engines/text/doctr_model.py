"""docTR's text detection and recognition models (Mindee), built from a card.

An architecture is one of docTR's own functions (``db_resnet50``, ``crnn_vgg16_bn``, ``parseq``, …), or a class whose
sizes stand in the card's `config`: ``DBNet`` (Liao et al. 2020) on docTR's ResNet, ``CRNN`` (Shi et al. 2015) on plain
convolutions. A model that docTR pushed to a hub has a ``config.json`` beside its weights: named among the card's
`extra_files`, it gives the characters and the preprocessing that the card leaves out.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.engines.text.reader import DETECTION
from labelmill.operators.models import weights
from labelmill.operators.models.card import ModelCard, ModelError
from labelmill.operators.models.device import seeded


class Preprocess(BaseModel):
    """The `preprocess` section of a card; what it leaves out is the architecture's own.

    Attributes:
        size: Height and width of the model's input in pixels. Images and crops keep their shape and are padded with
            black: images on both sides, crops below or to the right.
        mean, std: Of the pixels, 0…1, RGB.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class DBNetConfig(BaseModel):
    """The `config` of a ``DBNet`` card.

    Attributes:
        stem: Channels after the first convolution.
        channels: Of the four stages of one residual block each, at strides 4, 8, 16 and 32.
        head: Channels of the pyramid and the heads.
        bin_thresh: Least probability of a word's pixels.
        box_thresh: Least mean probability of a word.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stem: int = Field(ge=1)
    channels: tuple[int, int, int, int]
    head: int = Field(ge=4, multiple_of=4)
    bin_thresh: float = Field(0.3, gt=0, lt=1)
    box_thresh: float = Field(0.1, ge=0, lt=1)


class CRNNConfig(BaseModel):
    """The `config` of a ``CRNN`` card.

    Attributes:
        channels: Of each 3 x 3 convolution, with batch normalisation and ReLU.
        strides: Of each: down and across.
        units: Of each direction of the two LSTM layers.
        vocab: The characters it knows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: tuple[int, ...] = Field(min_length=1)
    strides: tuple[tuple[int, int], ...]
    units: int = Field(ge=1)
    vocab: str = Field(min_length=1)


class OwnDetectionConfig(BaseModel):
    """The `config` of a detection architecture of docTR's: empty, its name says everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OwnRecognitionConfig(OwnDetectionConfig):
    """The `config` of a recognition architecture of docTR's.

    Attributes:
        vocab: The characters it knows, in the order of training; if None, those of ``config.json``, or else docTR's
            own choice for the architecture.
    """

    vocab: str | None = Field(None, min_length=1)


def check(card: ModelCard) -> None:
    """Refuse a card whose sections this engine does not understand; loads nothing.

    Raises:
        ModelError: With the key, what it must be and what it is.
    """
    config = card.section("config", _schema(card))
    size = card.section("preprocess", Preprocess).size
    if card.task == DETECTION and size is not None and any(side < 32 or side % 32 for side in size):
        raise ModelError(
            f"model card {card.name}: preprocess.size must be multiples of 32 for {card.task} but is {list(size)}"
        )
    if isinstance(config, CRNNConfig) and len(config.strides) != len(config.channels):
        raise ModelError(
            f"model card {card.name}: config.strides must have as many pairs as config.channels has numbers, "
            f"{len(config.channels)}, but has {len(config.strides)}"
        )


def build(card: ModelCard) -> Any:
    """The card's model, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    from doctr.models.detection import FAST
    from doctr.models.detection.fast import reparameterize

    seed = card.weights.random
    state = weights.read(card) if seed is None else None
    model = initial(card, seed or 0, _beside(card))
    if state is not None:
        weights.fit(card, model, state)
    if isinstance(model, FAST):
        model = reparameterize(model.eval())  # the same function with fewer layers, as docTR runs it
    return model.float().eval().requires_grad_(False)


def initial(card: ModelCard, seed: int, beside: dict[str, Any] | None = None) -> Any:
    """A model of the card's sizes as training finds it, whatever the card's weights are.

    Its ``cfg`` holds ``input_shape``, ``mean`` and ``std``, where docTR's predictors look for them.

    Args:
        card: The sizes.
        seed: Decides the weights.
        beside: What ``config.json`` says, where there is one.

    Raises:
        ModelError: Its sizes cannot be built.
    """
    check(card)
    with seeded(seed):
        try:
            model = _construct(card, beside or {})
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error
    given = card.section("preprocess", Preprocess)
    cfg = dict(model.cfg or {})
    cfg |= {key: value for key, value in (beside or {}).items() if key in ("input_shape", "mean", "std")}
    if given.size is not None:
        cfg["input_shape"] = (3, *given.size)
    cfg |= {key: value for key, value in (("mean", given.mean), ("std", given.std)) if value is not None}
    missing = {"input_shape", "mean", "std"} - cfg.keys()
    if missing:
        raise ModelError(f"model card {card.name}: preprocess must give size, mean and std with {card.architecture}")
    model.cfg = cfg
    return model


def _schema(card: ModelCard) -> type[BaseModel]:
    if card.architecture in ("DBNet", "CRNN"):
        fits = (card.architecture == "DBNet") == (card.task == DETECTION)
        schema: type[BaseModel] = DBNetConfig if card.architecture == "DBNet" else CRNNConfig
    else:
        fits = card.architecture in _own(card.task)
        schema = OwnDetectionConfig if card.task == DETECTION else OwnRecognitionConfig
    if not fits:
        own = "DBNet" if card.task == DETECTION else "CRNN"
        raise ModelError(
            f"model card {card.name}: architecture must be {own} or one of {', '.join(_own(card.task))} for "
            f"{card.task} but is {card.architecture!r}"
        )
    return schema


def _own(task: str) -> list[str]:
    """docTR's own architectures for a task."""
    from doctr.models.detection import zoo as detection
    from doctr.models.recognition import zoo as recognition

    return list(detection.ARCHS if task == DETECTION else recognition.ARCHS)


def _beside(card: ModelCard) -> dict[str, Any]:
    """What ``config.json`` beside the weights says, if the card names one."""
    if "config.json" not in card.weights.extra_files:
        return {}
    path = weights.files(card)[1 + card.weights.extra_files.index("config.json")]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"model card {card.name}: {path} must be JSON but cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"model card {card.name}: {path} must hold a mapping but holds {type(found).__name__}")
    return found


def _construct(card: ModelCard, beside: dict[str, Any]) -> Any:
    config: Any = card.section("config", _schema(card))
    if isinstance(config, DBNetConfig):
        return _dbnet(config)
    if isinstance(config, CRNNConfig):
        return _crnn(config, card.section("preprocess", Preprocess).size or (32, 128))
    from doctr.models import detection, recognition

    if card.task == DETECTION:
        return getattr(detection, card.architecture)(pretrained=False, pretrained_backbone=False)
    vocab = config.vocab or beside.get("vocab")
    chosen = {} if vocab is None else {"vocab": vocab}
    return getattr(recognition, card.architecture)(pretrained=False, pretrained_backbone=False, **chosen)


def _dbnet(config: DBNetConfig) -> Any:
    from doctr.models.classification.resnet.pytorch import ResNet
    from doctr.models.detection import DBNet
    from torchvision.models._utils import IntermediateLayerGetter

    backbone = ResNet(
        [1] * 4,
        list(config.channels),
        [1, 2, 2, 2],
        [False] * 4,
        [None] * 4,
        stem_channels=config.stem,
        include_top=False,
    )
    stages = {str(len(backbone) - 4 + number): str(number) for number in range(4)}
    return DBNet(
        IntermediateLayerGetter(backbone, stages),
        head_chans=config.head,
        bin_thresh=config.bin_thresh,
        box_thresh=config.box_thresh,
    )


def _crnn(config: CRNNConfig, size: tuple[int, int]) -> Any:
    from doctr.models.recognition import CRNN
    from doctr.models.utils import conv_sequence_pt
    from torch import nn

    layers: list[nn.Module] = []
    before = 3
    for channels, stride in zip(config.channels, config.strides, strict=True):
        layers += conv_sequence_pt(before, channels, True, True, nn.ReLU(), kernel_size=3, padding=1, stride=stride)
        before = channels
    return CRNN(nn.Sequential(*layers), config.vocab, config.units, input_shape=(3, *size))

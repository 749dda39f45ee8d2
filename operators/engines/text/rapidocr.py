"""Reading text with PP-OCR (Du et al. 2020 and its successors, PaddleOCR) as RapidOCR runs it: DBNet finds lines, a
small classifier says which are upside down, a CTC model reads them.

Lines are what ``rapidocr.RapidOCR`` itself finds and reads with ``Rec.rec_batch_num=1``, so that how a line is padded
does not depend on what else is in the image. A line falls into words at its spaces (a line of Chinese is one word), and
a word lies where the recognition model saw its characters. RapidOCR's own ``return_word_box`` is not used: it also cuts
inside of words, gives a word the confidence of one character of its line, and mirrors the words of lines upside down.

Runs on a CPU with ONNX Runtime, in one thread. The models are handed over as open sessions: RapidOCR, which fetches
models it does not find, has nothing to look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.engines import onnx
from labelmill.operators.engines.text.rapidocr_lines import areas, from_top_left, split_words, touching
from labelmill.operators.engines.text.reader import Item, Word, inside
from labelmill.operators.models import weights
from labelmill.operators.models.card import Dtype, ModelCard, ModelError

ARCHITECTURES = ("PP-OCRv4", "PP-OCRv5", "PP-OCRv6")
TALL, WIDE = 8, 32
"""Height over width, and the reverse, to which narrower images are padded. RapidOCR scales an image's short side to 736
pixels, however long the other one becomes; wide ones it pads itself, unless they are so wide that it gives up."""


class Preprocess(BaseModel):
    """The `preprocess` section of a card; the defaults are RapidOCR's.

    Attributes:
        max_side_len: Images are scaled down to this long side, in pixels, before anything else.
        limit_side_len: For the detection model they are scaled so that a side has so many pixels:
        limit_type: ``min``, the short side, if it has fewer; ``max``, the long side, if it has more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_side_len: int = Field(2000, ge=64)
    limit_side_len: int = Field(736, ge=32)
    limit_type: Literal["min", "max"] = "min"


class Config(BaseModel):
    """The `config` section of a card; the defaults are RapidOCR's.

    Attributes:
        thresh: Least probability of a line's pixels.
        box_thresh: Least mean probability of a line.
        unclip_ratio: How far a line reaches beyond those pixels.
        cls_thresh: A line is turned by 180 degrees when its probability of being upside down is above this.
        text_score: Lines that are read with a lower confidence are left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    thresh: float = Field(0.3, gt=0, lt=1)
    box_thresh: float = Field(0.5, ge=0, lt=1)
    unclip_ratio: float = Field(1.6, gt=0)
    cls_thresh: float = Field(0.9, ge=0, le=1)
    text_score: float = Field(0.5, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Given:
    """One prepared image.

    Attributes:
        pixels: uint8 (h, w, 3), BGR: the image, padded and scaled, from which lines are cut out.
        record: RapidOCR's notes of how it was.
        tensor: float32 (1, 3, height, width), the detection model's input.
    """

    pixels: np.ndarray
    record: dict[str, Any]
    tensor: np.ndarray


def check(card: ModelCard, dtype: Dtype) -> None:
    """Refuse a card that this engine does not understand; loads nothing.

    Raises:
        ModelError: With the key, what it must be and what it is.
    """
    if card.architecture not in ARCHITECTURES:
        raise ModelError(
            f"model card {card.name}: architecture must be one of {', '.join(ARCHITECTURES)} but is "
            f"{card.architecture!r}"
        )
    if card.weights.random is not None:
        raise ModelError(f"model card {card.name}: weights must not be random with engine rapidocr")
    if len(card.weights.extra_files) not in (1, 2):
        raise ModelError(
            f"model card {card.name}: weights.extra_files must be the recognition model and, if lines can be upside "
            f"down, the classifier of that, but has {len(card.weights.extra_files)} files"
        )
    for where, found, param in (("dtype", dtype, "dtype"), (f"model card {card.name}: dtype", card.dtype, "model")):
        if found not in ("auto", "float32"):
            raise ModelError(f"{where} must be auto or float32 with engine rapidocr but is {found}", (param,))
    card.section("config", Config)
    card.section("preprocess", Preprocess)


class RapidOcr:
    """The models of one card.

    Args:
        card: Its weights are the detection model; its extra files the recognition model and the classifier.

    Raises:
        ModelError: A file is missing, corrupt or no model of its kind.
    """

    def __init__(self, card: ModelCard) -> None:
        check(card, "auto")
        weights.verify(card)
        sessions = [onnx.session(card, path) for path in weights.files(card)]
        self._stages = _stages(card, sessions)
        self._detector = self._stages._load_det_model()
        if len(sessions) == 3:
            self._stages._load_cls_model()
        self._stages._load_rec_model()
        self._text_score = card.section("config", Config).text_score

    def prepare(self, pixels: np.ndarray) -> Given:
        """Pad and resize an image as RapidOCR does.

        Args:
            pixels: uint8 (h, w, 3), RGB.
        """
        from rapidocr.utils.process_img import apply_vertical_padding

        stages = self._stages
        image, record = stages.preprocess_img(_padded(pixels)[:, :, ::-1])
        image, record = apply_vertical_padding(image, record, stages.width_height_ratio, stages.min_height)
        return Given(np.ascontiguousarray(image), record, self._detector.get_preprocess()(image))

    def read(self, items: Sequence[Item]) -> list[list[Word] | None]:
        """The words of images, line by line, lines from top to bottom.

        Returns:
            For each image its words, or None where the detection model gave what is not a number.
        """
        return [self._read(item) for item in items]

    def _read(self, item: Item) -> list[Word] | None:
        from rapidocr.ch_ppocr_rec import TextRecInput
        from rapidocr.utils.process_img import map_boxes_to_original

        given, detector, stages = item.given, self._detector, self._stages
        probability = detector.session(given.tensor)
        if not np.isfinite(probability).all():
            return None
        found, _ = detector.postprocess_op(probability, given.pixels.shape[:2])
        if len(found) == 0:
            return []
        found = detector.sorted_boxes(found)
        quads = map_boxes_to_original(found.copy(), given.record, *item.pixels.shape[:2])
        seen = np.flatnonzero(touching(quads, item.boxes) & (areas(quads) > 0))
        if len(seen) == 0:
            return []
        crops = stages.crop_text_regions(given.pixels, found[seen])
        quads = np.array([from_top_left(*each) for each in zip(quads[seen], found[seen], crops, strict=True)])
        if stages.use_cls:
            classified = stages.text_cls(crops)
            crops = classified.img_list
            over = [label == "180" and sure > stages.text_cls.cls_thresh for label, sure in classified.cls_res]
            quads[over] = np.roll(quads[over], 2, axis=1)
        texts = stages.text_rec(TextRecInput(img=crops, return_word_box=True))
        words: list[Word] = []
        for quad, text, score, info in zip(quads, texts.txts, texts.scores, texts.word_results, strict=True):
            if not np.isfinite(score):
                return None
            if score < self._text_score or not text.strip():
                continue
            number = words[-1].line + 1 if words else 0
            line = split_words(quad, text, info, number)
            centres = np.array([word.quad.mean(axis=0) for word in line]).reshape(-1, 2)
            words += [word for word, good in zip(line, inside(centres, item.boxes), strict=True) if good]
        return words


def _stages(card: ModelCard, sessions: list[Any]) -> Any:
    """RapidOCR, set up as the card says around open sessions."""
    from omegaconf import OmegaConf
    from rapidocr import OCRVersion, RapidOCR

    config, preprocess = card.section("config", Config), card.section("preprocess", Preprocess)
    _refuse_others(card, sessions)
    rapid: Any = RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": len(sessions) == 3,
            "Global.max_side_len": preprocess.max_side_len,
            "Det.limit_side_len": preprocess.limit_side_len,
            "Det.limit_type": preprocess.limit_type,
            "Det.thresh": config.thresh,
            "Det.box_thresh": config.box_thresh,
            "Det.unclip_ratio": config.unclip_ratio,
            "Cls.cls_thresh": config.cls_thresh,
            "Cls.ocr_version": OCRVersion.PPOCRV5 if card.architecture == "PP-OCRv5" else OCRVersion.PPOCRV4,
            "Rec.rec_batch_num": 1,
        }
    )
    rapid.cfg = OmegaConf.create(OmegaConf.to_container(rapid.cfg), flags={"allow_objects": True})
    for section, session in zip(("Det", "Rec", "Cls"), sessions, strict=False):
        rapid.cfg[section].session = session
    return rapid


def _refuse_others(card: ModelCard, sessions: list[Any]) -> None:
    """Each file must be a model of its kind: told by the channels and the shape of what it gives."""
    for path, session, kind in zip(weights.files(card), sessions, ("detection", "recognition", "class"), strict=False):
        shape = session.get_outputs()[0].shape
        named = "character" in session.get_modelmeta().custom_metadata_map
        fits = {
            "detection": len(shape) == 4 and shape[1] == 1,
            "recognition": len(shape) == 3 and named,
            "class": len(shape) == 2 and shape[1] == 2,
        }[kind]
        if not fits:
            wanted = {
                "detection": "a text detection model, which gives (images, 1, height, width)",
                "recognition": "a text recognition model, which gives (images, steps, characters) and holds their list",
                "class": "a text direction model, which gives (images, 2)",
            }[kind]
            raise ModelError(f"weights of card {card.name}: {path} must be {wanted} but gives {tuple(shape)}")


def _padded(pixels: np.ndarray) -> np.ndarray:
    """Black below or to the right of images that are too narrow for RapidOCR."""
    height, width = pixels.shape[:2]
    below, right = max(0, -(-width // WIDE) - height), max(0, -(-height // TALL) - width)
    return np.pad(pixels, ((0, below), (0, right), (0, 0))) if below or right else pixels


def check_cards(model: ModelCard, recognition: ModelCard | None, dtype: Dtype) -> None:
    """Refuse cards that do not go together, or that this engine does not understand; loads nothing.

    Raises:
        ModelError: What must be, and what is.
    """
    if recognition is not None:
        raise ModelError(
            f"recognition must not be given with {model.name}, which reads by itself, but is {recognition.name}",
            ("recognition",),
        )
    check(model, dtype)


def make(model: ModelCard, recognition: ModelCard | None, dtype: Dtype) -> RapidOcr:
    """The card's model, loaded; see `RapidOcr`."""
    return RapidOcr(model)

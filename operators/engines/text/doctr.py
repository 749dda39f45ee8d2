"""Reading text with docTR (Mindee): a detection model finds words, a recognition model reads them, docTR's builder puts
them into lines.

What comes out is what docTR's own ``ocr_predictor`` gives for the same two models with ``assume_straight_pages=False``,
``disable_crop_orientation=True`` and ``disable_page_orientation=True``: words may be turned, by up to 45 degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.text import doctr_model
from labelmill.operators.engines.text.reader import RECOGNITION, Item, Word, inside
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

CROPS = 128
"""Words per call of the recognition model."""


class Doctr:
    """A detection and a recognition model.

    Args:
        detection: A card for text detection.
        recognition: A card for text recognition.
        dtype: Arithmetic; ``auto`` is decided for each of the two by its card.

    Raises:
        ModelError: Weights are missing, corrupt or of another model.
    """

    def __init__(self, detection: ModelCard, recognition: ModelCard, dtype: Dtype = "auto") -> None:
        import torch
        from doctr.models import detection_predictor, recognition_predictor
        from doctr.models.builder import DocumentBuilder

        self.device = pick_device()
        self._dtypes = [pick_dtype(dtype, card, self.device) for card in (detection, recognition)]
        detector = doctr_model.build(detection).to(self.device)
        self._detector = detection_predictor(detector, assume_straight_pages=False)
        recogniser = doctr_model.build(recognition).to(self.device)
        self._recogniser = recognition_predictor(recogniser, batch_size=CROPS)
        self._mean, self._std = (
            torch.tensor(detector.cfg[key], device=self.device).view(3, 1, 1) for key in ("mean", "std")
        )
        self._builder = DocumentBuilder()

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize and pad an image as docTR does.

        Args:
            pixels: uint8 (h, w, 3), RGB.

        Returns:
            uint8 (3, height, width), of the detection model's size.
        """
        import torch
        from doctr.utils import Sample

        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        resized: torch.Tensor = self._detector.pre_processor.resize(Sample(image=image)).image
        return resized

    def read(self, items: Sequence[Item]) -> list[list[Word] | None]:
        """The words of images, in the order of reading.

        Returns:
            For each image its words, or None where the models gave what is not a number.
        """
        from doctr.utils.geometry import extract_rcrops

        crops: list[np.ndarray] = []
        placed: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for index, (item, found) in enumerate(zip(items, self._detect(items), strict=True)):
            if found is None:
                continue
            centres = found[:, :4].mean(axis=1) * item.pixels.shape[1::-1]
            found = found[inside(centres, item.boxes)]
            cut = extract_rcrops(item.pixels, found[:, :4], assume_horizontal=True)
            keep = np.array([min(crop.shape[:2]) > 0 for crop in cut], bool)
            crops += [crop for crop, good in zip(cut, keep, strict=True) if good]
            placed[index] = found[keep, :4], found[keep, 4, 1]
        with inference(self.device, self._dtypes[1]):
            texts = self._recogniser(crops)
        words: list[list[Word] | None] = [None] * len(items)
        for index, (quads, scores) in placed.items():
            own, texts = texts[: len(quads)], texts[len(quads) :]
            if np.isfinite([confidence for _, confidence in own]).all():
                words[index] = self._arrange(items[index].pixels, quads, scores, own)
        return words

    def _detect(self, items: Sequence[Item]) -> list[np.ndarray | None]:
        """Words of each image as docTR gives them, (n, 5, 2): corners as shares of the image, then the score."""
        import torch
        from doctr.models.detection._utils import _remove_padding

        with inference(self.device, self._dtypes[0]):
            batch = torch.stack([item.given for item in items]).to(self.device).float() / 255
            out = self._detector.model((batch - self._mean) / self._std, return_model_output=True, return_preds=True)
            finite = out["out_map"].isfinite().flatten(1).all(dim=1).tolist()
        resize = self._detector.pre_processor.resize
        pages = [item.pixels for item in items]
        found = _remove_padding(pages, out["preds"], resize.preserve_aspect_ratio, resize.symmetric_pad, False)
        return [next(iter(one.values())) if good else None for one, good in zip(found, finite, strict=True)]

    def _arrange(
        self, pixels: np.ndarray, quads: np.ndarray, scores: np.ndarray, texts: list[tuple[str, float]]
    ) -> list[Word]:
        """Put the words of one image into lines."""
        size = pixels.shape[:2]
        upright: Any = [{"value": 0, "confidence": None}] * len(quads)
        document: Any = self._builder([pixels], [quads], [scores], [texts], [size], [upright])
        lines = [line for block in document.pages[0].blocks for line in block.lines]
        return [
            Word(word.value, float(word.confidence), np.array(word.geometry, np.float32) * size[::-1], number)
            for number, line in enumerate(lines)
            for word in line.words
        ]


def check_cards(model: ModelCard, recognition: ModelCard | None, dtype: Dtype) -> None:
    """Refuse cards that do not go together, or that this engine does not understand; loads nothing.

    Raises:
        ModelError: What must be, and what is.
    """
    for card in (model, _with_recognition(model, recognition)):
        doctr_model.check(card)


def make(model: ModelCard, recognition: ModelCard | None, dtype: Dtype) -> Doctr:
    """The cards' model, loaded; see `Doctr`."""
    return Doctr(model, _with_recognition(model, recognition), dtype)


def _with_recognition(model: ModelCard, recognition: ModelCard | None) -> ModelCard:
    if recognition is None:
        raise ModelError(
            f"recognition must name a {RECOGNITION} card, such as doctr-parseq-multilingual, because {model.name} only "
            "finds words, but is not given",
            ("recognition",),
        )
    return recognition

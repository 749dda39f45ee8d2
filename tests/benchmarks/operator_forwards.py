"""What the operators are compared with: the bare forward pass of their model, and loops through reference code.

A bare pass gets an operator that is loaded and one batch of what its `prepare` gave; it makes the tensors ready once,
and returns a function that runs the operator's own model on them, in the operator's arithmetic.

A reference loop gets the operator too and returns a function that takes the path of one image from the file to the
result, as its users write it: in float32, on every core, or on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from labelmill.operators.models.device import inference

Forward = Callable[[], Any]
Loop = Callable[[Path, np.ndarray], Any]
"""Of the image's path and its boxes, float32 (n, 4), xyxy in pixels."""

WORDS = (4, 5)
"""Rows and columns of words that `plant_words` puts into each image."""


class _Planted(torch.nn.Module):
    """Takes the place of what random weights say: a word in each cell of a grid, and nothing else."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        height, width = logits.shape[-2:]
        rows, columns = WORDS
        found = torch.full_like(logits, -10.0)
        # Wider than high, with the picture's aspect: an image of 4:3 is padded at the top and at the bottom.
        for row in range(rows):
            for column in range(columns):
                y = int(height * (0.15 + 0.7 * (row + 0.5) / rows))
                x = int(width * (0.05 + 0.9 * (column + 0.5) / columns))
                found[..., y - height // 64 : y + height // 64, x - width // 16 : x + width // 16] = 10.0
        return found


def plant_words(operator: Any) -> None:
    """Let docTR's detection model find twenty words in every image. Random weights find none, or one large one."""
    operator._reader._detector.model.prob_head.append(_Planted())


# ---------------------------------------------------------------- bare forward passes


def embed(operator: Any, items: Sequence[Any]) -> Forward:
    """The image tower of CLIP."""
    engine = operator._encoder
    batch = torch.stack(list(items)).to(engine.device).permute(0, 3, 1, 2).contiguous()
    pixels = (batch.float() / 255 - engine._mean) / engine._std
    return lambda: _run(engine, lambda: engine._visual(pixels))


def detect(operator: Any, items: Sequence[Any]) -> Forward:
    """The whole of Grounding DINO but for the text tower, which the operator runs once and for all."""
    engine = operator._engine
    pixels = torch.stack([item.given for item in items]).to(engine.device).float()
    pixels = (pixels - engine._mean) / engine._std

    def forward() -> Any:
        with engine._images.one_batch():
            engine._texts.use(0)
            return _run(engine, lambda: engine._look(pixels, engine.captions[0]))

    return forward


def segment(operator: Any, items: Sequence[Any]) -> Forward:
    """The image encoder, and for each image the prompt encoder and the mask decoder with its boxes."""
    engine = operator._engine
    model, given = engine._model, [item.given.to(engine.device) for item in items]
    if hasattr(model, "image_encoder"):
        pixels = torch.stack([model.preprocess(each) for each in given])

        def encode() -> Any:
            return list(model.image_encoder(pixels).float())
    else:
        pixels = torch.stack([(each - engine._mean) / engine._std for each in given])

        def encode() -> Any:
            maps = [each.float() for each in model.get_image_embeddings(pixels)]
            return [[each[index : index + 1] for each in maps] for index in range(len(given))]

    def forward() -> Any:
        embedded = _run(engine, encode)
        pairs = zip(embedded, items, strict=True)
        return [engine._predict(each, item.boxes, "box", (item.height, item.width)) for each, item in pairs]

    return forward


def read(operator: Any, items: Sequence[Any]) -> Forward:
    """docTR's detection model up to its logits, and its recognition model up to its own, on twenty words an image."""
    engine = operator._reader
    detector, recogniser = engine._detector.model, engine._recogniser.model
    pixels = torch.stack([item.given for item in items]).to(engine.device).float() / 255
    pixels = (pixels - engine._mean) / engine._std
    words = len(items) * WORDS[0] * WORDS[1]
    crops = torch.rand(words, *recogniser.cfg["input_shape"], device=engine.device)

    def forward() -> Any:
        # docTR's models give logits, and leave the rest out, when they are to be exported.
        detector.exportable = recogniser.exportable = True
        try:
            with inference(engine.device, engine._dtypes[0]):
                detector(pixels)
            with inference(engine.device, engine._dtypes[1]):
                return [recogniser(part) for part in crops.split(128)]
        finally:
            detector.exportable = recogniser.exportable = False

    return forward


def gaze(operator: Any, items: Sequence[Any]) -> Forward:
    """L2CS-Net on faces of the model's size."""
    from labelmill.operators.engines.gaze.l2cs import FACES, enlarge, normalise

    engine = operator._estimator
    faces = torch.from_numpy(np.concatenate([item.faces for item in items])).to(engine.device)
    pixels = enlarge(normalise(faces, engine._mean, engine._std), engine._given.size)
    return lambda: _run(engine, lambda: [engine._model(part) for part in pixels.split(FACES)])


def ask(operator: Any, items: Sequence[Any]) -> Forward:
    """One pass over image and prompt: what a choice between answers of one token takes."""
    from labelmill.operators.engines.image_text_to_text.generation import batched

    engine = operator._engine
    batch = batched(items, engine.device, engine.dtype)

    def forward() -> Any:
        with inference(engine.device, torch.float32):  # the weights are in the engine's arithmetic already
            return engine.model(**batch, logits_to_keep=1, use_cache=False)

    return forward


def _run(engine: Any, forward: Forward) -> Any:
    with inference(engine.device, engine.dtype):
        return forward()


# ---------------------------------------------------------------- reference loops


def open_clip_loop(operator: Any) -> Loop:
    """open_clip's own transform and `encode_image`."""
    from labelmill.operators.engines.embedding import open_clip as engine

    card, device = operator.params.model, operator._encoder.device
    model, transform = engine.build(card).to(device), engine.image_transform_of(engine.settings(card))

    def see(path: Path, boxes: np.ndarray) -> Any:
        with torch.no_grad():
            pixels = transform(Image.open(path)).unsqueeze(0).to(device)
            return model.encode_image(pixels, normalize=True).cpu().numpy()

    return see


def grounding_dino_loop(operator: Any) -> Loop:
    """transformers' processor, model and post-processing."""
    from transformers import GroundingDinoImageProcessor, GroundingDinoProcessor

    from labelmill.operators.engines.detection import grounding_dino_model
    from labelmill.operators.engines.detection.grounding_dino import Preprocess

    card, engine = operator.params.model, operator._engine
    look = card.section("preprocess", Preprocess)
    images = GroundingDinoImageProcessor(
        size={"shortest_edge": look.short, "longest_edge": look.long}, image_mean=look.mean, image_std=look.std
    )
    processor = GroundingDinoProcessor(images, engine.tokenizer)
    model = grounding_dino_model.build(card).to(engine.device)
    caption = " ".join(f"{prompt}." for prompt, _ in operator.params.ontology.prompts())

    def see(path: Path, boxes: np.ndarray) -> Any:
        image = Image.open(path).convert("RGB")
        given = processor(images=image, text=caption, return_tensors="pt").to(engine.device)
        with torch.no_grad():
            outputs = model(**given)
        return processor.post_process_grounded_object_detection(
            outputs, given["input_ids"], target_sizes=[image.size[::-1]]
        )

    return see


def sam_predictor_loop(operator: Any) -> Loop:
    """segment-anything's SamPredictor: the image once, then box by box."""
    from segment_anything import SamPredictor

    predictor = SamPredictor(operator._engine._model)

    def see(path: Path, boxes: np.ndarray) -> Any:
        predictor.set_image(np.array(Image.open(path).convert("RGB")))
        return [predictor.predict(box=box, multimask_output=False) for box in boxes]

    return see

"""OWLv2 (Minderer et al. 2023, "Scaling Open-Vocabulary Object Detection") through transformers.

Every patch of the image is a candidate. A prompt's logit is its text's cosine with the patch, shifted and scaled by
what the patch says; prompts do not see each other, so their number and order change nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from labelmill.operators.engines import pretrained
from labelmill.operators.engines.detection import detector
from labelmill.operators.engines.detection.detector import Answer, Phrase
from labelmill.operators.engines.slim import import_open_clip
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import weights
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype
from labelmill.operators.ontology import Ontology

if TYPE_CHECKING:
    import torch

CONSTANTS = ("position_ids", "box_bias")
"""Tables that older versions of transformers saved among the weights."""

DROPPED = "punctuation and letters other than a…z"
"""What `clean` leaves out of a prompt besides case and accents, in words."""

AT_ONCE = 256
"""Texts per call of the text encoder, and prompts per answer: 3,600 candidates × 256 float32 are 3.5 MiB an image."""


def _has_slot(template: str) -> str:
    if "{}" not in template:
        raise ValueError(f"must contain {{}} where the prompt goes but is {template!r}")
    return template


class Config(BaseModel):
    """The `config` section of a card.

    Attributes:
        templates: Sentences with {} for the prompt; a prompt's logit is the mean over them.
        model: Arguments of Owlv2Config; without them, ``config.json`` beside the weights.
        tokenizer: ``clip`` for the vocabulary that ships with open_clip, which is also OWLv2's; without it, the
            tokenizer's files beside the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: tuple[Annotated[str, AfterValidator(_has_slot)], ...] = Field(("{}",), min_length=1)
    model: dict[str, Any] | None = None
    tokenizer: Literal["clip"] | None = None


class Preprocess(BaseModel):
    """The `preprocess` section of a card: the image is resized until its long side is `size` pixels, with its aspect
    kept, padded with black to a square on the right or at the bottom, and normalised. Defaults are the authors'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(960, ge=1)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


def clean(prompt: str) -> str:
    """A prompt as the model was trained to read it: lower-case letters a…z without accents, digits and dashes."""
    plain = "".join(mark for mark in unicodedata.normalize("NFKD", prompt) if not unicodedata.combining(mark))
    return " ".join(re.sub(r"-+", "-", re.sub(r"[^a-z0-9-]", " ", plain.lower())).split())


class Owlv2:
    """A `Detector`.

    The image is encoded once per batch and the prompts once in all, whatever the number of either.
    """

    architectures: ClassVar[Collection[str]] = ("Owlv2ForObjectDetection",)
    extra: ClassVar[str | None] = None

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        import torch
        from torchvision.transforms.v2.functional import InterpolationMode, resize

        self._card = card
        self._config, self._input = card.section("config", Config), card.section("preprocess", Preprocess)
        self._resize = partial(resize, interpolation=InterpolationMode.BILINEAR, antialias=True)
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self.tokenizer = tokenizer(card)
        self.model = build(card).to(self.device)
        known = self.model.config.text_config.vocab_size
        if len(self.tokenizer) > known:
            raise ModelError(
                f"model card {card.name}: the tokenizer must have at most the model's {known} tokens "
                f"but has {len(self.tokenizer)}"
            )
        seen = self.model.config.vision_config.image_size
        if seen != self._input.size:
            raise ModelError(
                f"model card {card.name}: preprocess.size must be the model's {seen} but is {self._input.size}"
            )
        # Bytes are normalised on the device: they are a quarter of what floats would be to keep and to send.
        self._mean = 255 * torch.tensor(self._input.mean, device=self.device).view(3, 1, 1)
        self._std = 255 * torch.tensor(self._input.std, device=self.device).view(3, 1, 1)

    @staticmethod
    def check(card: ModelCard, ontology: Ontology) -> None:
        """See `Detector`."""
        config = card.section("config", Config)
        card.section("preprocess", Preprocess)
        if card.weights.random is not None and (config.model is None or config.tokenizer is None):
            raise ModelError(f"model card {card.name}: config must have model and tokenizer when weights are random")
        detector.phrases(ontology, clean, DROPPED)

    def ask(self, ontology: Ontology) -> list[tuple[str, str]]:
        """See `Detector`: each prompt in all of the card's templates."""
        import torch

        asked = detector.phrases(ontology, clean, DROPPED)
        texts = [clean(template.format(phrase.text)) for phrase in asked for template in self._config.templates]
        tokens = self.tokenizer(texts)["input_ids"]
        room = self.model.config.text_config.max_position_embeddings
        self._refuse_long(asked, tokens, room)
        with inference(self.device, torch.float32):
            parts = [self._encode(tokens[start : start + AT_ONCE], room) for start in range(0, len(tokens), AT_ONCE)]
            vectors = torch.cat(parts).reshape(len(asked), len(self._config.templates), -1)
            # Logits are linear in these: their mean gives the mean of the templates' logits.
            self._texts = torch.nn.functional.normalize(vectors, dim=-1, eps=1e-6).mean(dim=1)
        return [(phrase.prompt, phrase.name) for phrase in asked]

    def _refuse_long(self, asked: Sequence[Phrase], tokens: Sequence[Sequence[int]], room: int) -> None:
        each = len(self._config.templates)
        for index, phrase in enumerate(asked):
            most = max(map(len, tokens[index * each : (index + 1) * each]))
            if most > room:
                raise OperatorError(
                    f"prompt {phrase.prompt!r} must have at most {room} tokens, two and its template's included, "
                    f"but has {most}",
                    ("ontology", phrase.name),
                )

    def _encode(self, tokens: Sequence[Sequence[int]], room: int) -> torch.Tensor:
        """Text vectors (texts, width). Padding to the same length always keeps them the same in every company."""
        import torch

        ids = torch.zeros(len(tokens), room, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        found = self.model.owlv2.get_text_features(ids.to(self.device), mask.to(self.device)).pooler_output
        vectors: torch.Tensor = found.float()
        return vectors

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize as the authors' evaluator does, with antialiasing, which they leave out.

        Returns:
            uint8, (3, height, width), the longer of which is the card's `size`.
        """
        import torch

        height, width = pixels.shape[:2]
        scale = self._input.size / max(height, width)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        resized: torch.Tensor = self._resize(image, [max(1, round(height * scale)), max(1, round(width * scale))])
        return resized

    def bucket(self, item: torch.Tensor) -> Hashable:
        """Images of all shapes become squares of one size."""
        return None

    def detect(self, items: Sequence[torch.Tensor]) -> Iterator[Answer]:
        """See `Detector`: an answer per `AT_ONCE` prompts."""
        import torch

        side = self._input.size
        batch = torch.zeros(len(items), 3, side, side, dtype=torch.uint8)
        for row, item in enumerate(items):
            batch[row, :, : item.shape[1], : item.shape[2]] = item
        with inference(self.device, self.dtype):
            pixels = (batch.to(self.device).float() - self._mean) / self._std
            grid = self.model.image_embedder(pixel_values=pixels)[0].float()
            # The heads are small, and in half precision a box coordinate would lose whole pixels.
            with torch.autocast(self.device.type, enabled=False):
                patches = grid.flatten(1, 2)
                centre, size = self.model.box_predictor(patches, grid).split(2, dim=-1)
                padded = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
                real = torch.tensor([[item.shape[2], item.shape[1]] * 2 for item in items], device=self.device)
                boxes = (padded * side / real[:, None]).cpu().numpy()
                head = self.model.class_head
                vectors = torch.nn.functional.normalize(head.dense0(patches), dim=-1, eps=1e-6)
                shift, scale = head.logit_shift(patches), head.elu(head.logit_scale(patches)) + 1
        for start in range(0, len(self._texts), AT_ONCE):
            texts = self._texts[start : start + AT_ONCE]
            with inference(self.device, torch.float32):
                scores = ((vectors @ texts.T + shift) * scale).sigmoid().cpu().numpy()
            yield Answer(np.arange(start, start + len(texts)), scores, boxes)


def build(card: ModelCard) -> Any:
    """The card's model, in float32 on the CPU, ready for inference.

    Raises:
        ModelError: Its sizes cannot be built, or the weights are missing, corrupt or of another model.
    """
    from transformers import Owlv2Config

    sizes = card.section("config", Config).model
    folder = weights.files(card)[0].parent if sizes is None else None
    try:
        config = Owlv2Config(**(sizes or {})) if folder is None else Owlv2Config.from_pretrained(folder)
        if card.weights.random is not None:
            model = pretrained.initial(card, config, card.weights.random)
            _calm(model)
    except Exception as error:  # transformers and its validators have errors of many kinds
        raise ModelError(f"model card {card.name}: config cannot be built: {error}") from error
    if card.weights.random is None:
        model = pretrained.pretrained(card, config, constants=CONSTANTS)
    return model.float().eval().requires_grad_(False)


def _calm(model: Any) -> None:
    """Bring the heads of a freshly drawn model to where training would.

    Their logits reach ±100, whatever the prompt; a test on such a model would not notice a wrong prompt or box.
    """
    import torch

    head = model.class_head
    with torch.no_grad():
        for layer in (*head.children(), *model.box_head.children()):
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(layer.in_features**-0.5)
        for layer in (head.logit_shift, head.logit_scale):
            layer.weight.mul_(0.1)
        head.logit_scale.bias.fill_(9.0)


def tokenizer(card: ModelCard) -> Any:
    """The card's tokenizer.

    Raises:
        ModelError: Its files are missing or corrupt, or it is not CLIP's.
    """
    from transformers import CLIPTokenizer

    if card.section("config", Config).tokenizer == "clip":
        return _open_clip_tokenizer()
    folder = weights.files(card)[0].parent
    try:
        found = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids = found("a")["input_ids"]
    except Exception as error:  # what a corrupt file raises depends on the byte that is wrong
        raise ModelError(f"model card {card.name}: the tokenizer cannot be read from {folder}: {error}") from error
    if ids != CLIP_A:
        raise ModelError(f"model card {card.name}: the tokenizer must give {CLIP_A} for 'a' but gives {ids}")
    return found


CLIP_A = [49406, 320, 49407]
"""What CLIP's tokenizer makes of "a"."""


def _open_clip_tokenizer() -> Any:
    """transformers' tokenizer over the vocabulary that ships with open_clip."""
    import_open_clip()
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    known = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): index for token, index in known.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=sorted(known.bpe_ranks, key=known.bpe_ranks.__getitem__))

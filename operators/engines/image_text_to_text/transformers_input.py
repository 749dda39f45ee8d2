"""What image-text-to-text models read: an image and a prompt, as the tensors of one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.engines.image_text_to_text import word_tokenizer
from labelmill.operators.engines.image_text_to_text.transformers_model import check, configuration, folder
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.card import ModelCard, ModelError

if TYPE_CHECKING:
    import torch


class Preprocess(BaseModel):
    """The `preprocess` section of a card that has words: the image is resized to `size` × `size` pixels, whatever its
    aspect, and normalised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=16)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class Input(Protocol):
    """Makes a model's input, and reads its output."""

    end: tuple[int, ...]
    """Ids that end an answer."""

    def ask(self, prompt: str) -> None:
        """Fix the prompt.

        Raises:
            OperatorError: The model cannot read it.
        """
        ...

    def prepare(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        """The model's input for uint8 RGB pixels (height, width, 3): a batch of one; pure, called in threads."""
        ...

    def answer_tokens(self, answer: str) -> list[int]:
        """The ids of an answer as the model would give it after the prompt.

        Raises:
            OperatorError: The model cannot say it.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The answer behind ids, without the end."""
        ...


def make(card: ModelCard) -> Input:
    """The input of the card's model.

    Raises:
        ModelError: The card's sections do not fit, or files beside the weights are missing or corrupt.
    """
    return WordInput(card) if check(card).words else ProcessorInput(card)


class WordInput:
    """Of a small model whose vocabulary is the card's words: the image's tokens, then the prompt, then the answer.

    Args:
        card: A card with words.

    Raises:
        ModelError: Its sections do not fit.
    """

    end: tuple[int, ...] = (word_tokenizer.END,)

    def __init__(self, card: ModelCard) -> None:
        import torch

        self._card = card
        self._places = int(configuration(card).image_seq_length)
        given = card.section("preprocess", Preprocess)
        self._size = given.size
        self._mean = 255 * torch.tensor(given.mean).view(3, 1, 1)
        self._std = 255 * torch.tensor(given.std).view(3, 1, 1)
        try:
            self._tokenizer = word_tokenizer.word_tokenizer(check(card).words)
        except ValueError as error:
            raise ModelError(f"model card {card.name}: config.{error}") from error
        self._ids: torch.Tensor | None = None

    def check(self, model: Any) -> int:
        """How many tokens an image has, if the model says so too.

        Raises:
            ModelError: It gives the image another number of places.
        """
        import torch

        blank = torch.zeros(1, 3, self._size, self._size, dtype=model.dtype, device=model.device)
        with torch.inference_mode():
            found = len(model.eval().get_image_features(blank).pooler_output[0])
        if found != self._places:
            raise ModelError(
                f"model card {self._card.name}: config.model.image_seq_length must be {found} for images of "
                f"{self._size} pixels but is {self._places}"
            )
        return found

    def ask(self, prompt: str) -> None:
        import torch

        self._ids = torch.tensor([[word_tokenizer.IMAGE] * self._places + self.tokens(prompt)])

    def prepare(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        import torch

        assert self._ids is not None, "ask comes first"
        return {
            "pixel_values": self.pixels(pixels),
            "input_ids": self._ids,
            "attention_mask": torch.ones_like(self._ids),
        }

    def pixels(self, pixels: np.ndarray) -> torch.Tensor:
        """Resized and normalised, float32 (1, 3, size, size)."""
        import torch
        from torchvision.transforms.v2.functional import resize

        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        resized: torch.Tensor = resize(image, [self._size, self._size], antialias=True)
        return ((resized.float() - self._mean) / self._std)[None]

    def tokens(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            OperatorError: It has a word that the model does not know.
        """
        found = self._tokenizer.encode(text)
        for token, span in zip(found.ids, found.offsets, strict=True):
            if token == word_tokenizer.UNKNOWN:
                raise OperatorError(
                    f"prompt and answers must have only words that model {self._card.name} knows but have "
                    f"{text[slice(*span)]!r}; it knows {', '.join(check(self._card).words)}"
                )
        return list(found.ids)

    def answer_tokens(self, answer: str) -> list[int]:
        return self.tokens(answer)

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


def processor(card: ModelCard) -> tuple[Any, dict[str, Any]]:
    """transformers' processor beside a card's weights, and ``generation_config.json`` where there is one.

    Raises:
        ModelError: The card has a preprocess section, or files are missing or corrupt.
    """
    from transformers import AutoProcessor

    if card.preprocess:
        raise ModelError(f"model card {card.name}: preprocess must be empty: the processor's files say it all")
    where = folder(card)
    try:
        found = AutoProcessor.from_pretrained(where, local_files_only=True)
        settings = where / "generation_config.json"
        given = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    except Exception as error:  # what a corrupt file raises depends on the byte that is wrong
        raise ModelError(f"model card {card.name}: the processor cannot be read from {where}: {error}") from error
    return found, given


class ProcessorInput:
    """Of a model with transformers' processor beside its weights: one turn of a chat, an image and the prompt.

    Args:
        card: A card without words.

    Raises:
        ModelError: The processor's files are missing or corrupt, or have no chat template.
    """

    def __init__(self, card: ModelCard) -> None:
        self._processor, given = processor(card)
        if not getattr(self._processor, "chat_template", None):
            where = folder(card)
            raise ModelError(f"model card {card.name}: the processor in {where} must have a chat template")
        ends = given.get("eos_token_id", self._processor.tokenizer.eos_token_id)
        self.end = tuple(ends) if isinstance(ends, list) else (ends,)
        self._prompt = ""

    def ask(self, prompt: str) -> None:
        self._prompt = prompt

    def prepare(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        from PIL import Image

        image = {"type": "image", "image": Image.fromarray(pixels)}
        return dict(self._chat(image, tokenize=True, return_dict=True, return_tensors="pt"))

    def _chat(self, image: dict[str, Any], **options: Any) -> Any:
        content = [image, {"type": "text", "text": self._prompt}]
        return self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, **options
        )

    def answer_tokens(self, answer: str) -> list[int]:
        """After a prompt that ends in a word or colon, such as ``Assistant:``, an answer begins with a space."""
        before: str = self._chat({"type": "image"}, tokenize=False)
        special = self._processor.tokenizer.all_special_tokens
        glued = before[-1:].isspace() or any(before.endswith(token) for token in special)
        text = answer if glued else f" {answer}"
        return list(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        return str(self._processor.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

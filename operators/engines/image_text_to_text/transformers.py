"""Vision-language models through transformers' image-text-to-text classes, such as SmolVLM and Qwen3-VL."""

from __future__ import annotations

import copy
import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.image_text_to_text import generation, transformers_input, transformers_model
from labelmill.operators.engines.image_text_to_text.answerer import NOT_FINITE, Reply, Requests
from labelmill.operators.engines.image_text_to_text.generation import Tensors
from labelmill.operators.engines.image_text_to_text.json_answer import JsonAnswer
from labelmill.operators.engines.image_text_to_text.transformers_model import build
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

    from labelmill.operators.images.decoded import DecodedImage


def engine_of(card: ModelCard) -> Any:
    """This module; for Florence-2, which is asked in a way of its own, the one that knows it."""
    if card.architecture == "Florence2ForConditionalGeneration":
        from labelmill.operators.engines.image_text_to_text import florence2

        return florence2
    return sys.modules[__name__]


def check(card: ModelCard, prompt: str, choices: Sequence[str] | None, schema: Mapping[str, Any] | None) -> None:
    """See `answerer.check`."""
    given = transformers_model.check(card)
    if given.words and schema is not None:
        raise ModelError(f"model card {card.name}: a model with a vocabulary of its own (config.words) writes no JSON")


def make(card: ModelCard, dtype: Dtype, requests: Requests) -> ImageTextToText:
    """See `answerer.answerer`."""
    return ImageTextToText(card, dtype)


class ImageTextToText:
    """An `Answerer`.

    Answers are decoded greedily: each token is the likeliest, whatever the model's own settings are. A choice's
    likelihood is the product of its tokens' probabilities after the prompt; where a choice has several tokens, the end
    of the answer belongs to each, so that "red" does not stand for "red car" too. With a schema, the model is told of
    it behind the prompt; nothing keeps it from writing something else, which is then no answer.

    Args:
        card: A card that `image_text_to_text_model.check` accepts.
        dtype: Arithmetic, and what the weights are kept in.

    Raises:
        ModelError: The weights or the files beside them are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self._input = transformers_input.make(card)
        self.model = build(card, self.dtype).to(self.device)
        if isinstance(self._input, transformers_input.WordInput):
            self._input.check(self.model)
        self._choices: tuple[str, ...] = ()
        self._continuations: list[list[int]] = []
        self._json: JsonAnswer | None = None
        self._max_tokens = 0

    def another(self) -> ImageTextToText:
        """See `Answerer`."""
        made = copy.copy(self)
        made._input = copy.copy(self._input)
        return made

    def ask(
        self,
        prompt: str,
        choices: Sequence[str] | None,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Answerer`."""
        self._json = None if schema is None else JsonAnswer(schema)
        self._input.ask(prompt if self._json is None else f"{prompt}\n{self._json.instruction}")
        self._choices = tuple(choices or ())
        self._max_tokens = max_tokens
        tokens = [self._input.answer_tokens(choice) for choice in self._choices]
        self._continuations = generation.with_end(tokens, self._input.end[0])

    def prepare(self, image: DecodedImage | np.ndarray) -> Tensors:
        """See `Answerer`. Pixels alone, uint8 RGB (height, width, 3), do too. Each tensor is a batch of one."""
        return self._input.prepare(image if isinstance(image, np.ndarray) else image.pixels)

    def bucket(self, item: Tensors) -> Hashable:
        """Inputs of one shape share a batch, so none is padded and a neighbour changes nothing."""
        return tuple(sorted((name, tuple(tensor.shape)) for name, tensor in item.items()))

    def answer(self, items: Sequence[Tensors]) -> list[Reply]:
        """See `Answerer`."""
        import torch

        batch = generation.batched(items, self.device, self.dtype)
        with inference(self.device, torch.float32):  # the weights are in the right arithmetic already
            if self._choices:
                return generation.choose(self._choices, self._continuations, lambda tokens: self._scores(batch, tokens))
            return self._say(batch)

    def _say(self, batch: Tensors) -> list[Reply]:
        from transformers import GenerationConfig

        end = list(self._input.end)
        settings = GenerationConfig(
            max_new_tokens=self._max_tokens, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=end[0]
        )
        given, finite = generation.generate(self.model, batch, settings)
        asked = batch["input_ids"].shape[1]
        return [self._reply(ids[asked:], good) for ids, good in zip(given, finite, strict=True)]

    def _reply(self, ids: list[int], finite: bool) -> Reply:
        if not finite:
            return Reply("", problem=NOT_FINITE)
        length = next((place for place, token in enumerate(ids) if token in self._input.end), len(ids))
        text = self._input.text(ids[:length])
        if self._json is None:
            return Reply(text)
        try:
            return Reply(self._json.read(text))
        except ValueError as error:
            cut = "; it was cut off after max_tokens" if length == self._max_tokens else ""
            return Reply("", problem=f"{error}{cut}")

    def _scores(self, batch: Tensors, tokens: list[int]) -> torch.Tensor:
        """Log-probabilities after the prompt and after each of some further tokens: float32 (b, 1 + tokens, words)."""
        import torch

        ids = batch["input_ids"]
        more = torch.tensor(tokens, dtype=ids.dtype, device=self.device).expand(len(ids), -1)
        # What marks the prompt's tokens one by one goes on: the mask with ones, kinds of tokens with that of a text.
        fill = {name: int(name == "attention_mask") for name, each in batch.items() if each.shape == ids.shape}
        longer = {
            name: torch.cat([each, more if name == "input_ids" else torch.full_like(more, fill[name]).to(each)], dim=1)
            if name in fill
            else each
            for name, each in batch.items()
        }
        logits = self.model(**longer, logits_to_keep=1 + len(tokens), use_cache=False).logits
        return torch.log_softmax(logits[:, -1 - len(tokens) :].float(), dim=-1)

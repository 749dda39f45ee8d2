"""Florence-2 (Xiao et al. 2024) through transformers: an encoder and a decoder that learned a task per prompt."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labelmill.operators.engines import pretrained
from labelmill.operators.engines.image_text_to_text import generation
from labelmill.operators.engines.image_text_to_text.answerer import NOT_FINITE, Reply, Requests
from labelmill.operators.engines.image_text_to_text.generation import Tensors
from labelmill.operators.engines.image_text_to_text.transformers_input import processor
from labelmill.operators.engines.image_text_to_text.transformers_model import folder
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.device import inference, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

    from labelmill.operators.images.decoded import DecodedImage

TEXT = "pure_text"
"""transformers' word for answers that stay what they are."""

_TASK = re.compile(r"<[A-Za-z_]+>")


def check(card: ModelCard, prompt: str, choices: Sequence[str] | None, schema: Mapping[str, Any] | None) -> None:
    """See `answerer.check`."""
    if card.config or card.preprocess or card.weights.random is not None:
        raise ModelError(
            f"model card {card.name}: config and preprocess must be empty and weights not random: config.json and the "
            "processor's files beside the weights say it all"
        )
    if not _TASK.match(prompt):
        raise OperatorError(
            "prompt must begin with a task that Florence-2 learned, such as <CAPTION>, <DETAILED_CAPTION>, "
            f"<MORE_DETAILED_CAPTION>, <OCR> or <OD>, but is {prompt!r}",
            ("prompt",),
        )
    if schema is not None:
        raise OperatorError("schema must not be given: Florence-2 does its tasks only, in their own form", ("schema",))


def make(card: ModelCard, dtype: Dtype, requests: Requests) -> Florence2:
    """See `answerer.answerer`."""
    return Florence2(card, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One prepared image: the model's input, a batch of one, and the image's width and height in pixels."""

    tensors: Tensors
    size: tuple[int, int]


class Florence2:
    """An `Answerer`.

    Answers are decoded as ``generation_config.json`` beside the weights says (the authors': three beams), but never
    sampled. Tasks that give boxes, quadrilaterals or polygons, such as ``<OD>``, are answered with JSON: what
    transformers' ``post_process_generation`` makes of the text, in pixels of the image. Choices as in
    `image_text_to_text`: by the product of their tokens' probabilities.

    Args:
        card: A card that `check` accepts.
        dtype: Arithmetic, and what the weights are kept in.

    Raises:
        ModelError: The weights or the files beside them are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self._processor, self._settings = processor(card)
        config = _configuration(card)
        model = pretrained.pretrained(card, config, self.dtype)
        self.model = model.to(self.dtype).eval().requires_grad_(False).to(self.device)
        text = config.text_config
        self._end, self._pad = int(text.eos_token_id), int(text.pad_token_id)
        forced = self._settings.get("forced_bos_token_id", getattr(text, "forced_bos_token_id", None))
        self._begin = [int(text.decoder_start_token_id), *([] if forced is None else [int(forced)])]
        self._prompt, self._max_tokens = "", 0
        self._choices: tuple[str, ...] = ()
        self._continuations: list[list[int]] = []

    def another(self) -> Florence2:
        """See `Answerer`."""
        return copy.copy(self)

    def ask(
        self,
        prompt: str,
        choices: Sequence[str] | None,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Answerer`."""
        if schema is not None:
            raise OperatorError("schema must not be given: Florence-2 does its tasks only", ("schema",))
        from PIL import Image

        try:
            self._processor(text=prompt, images=Image.new("RGB", (64, 64)), return_tensors="pt")
        except ValueError as error:
            raise OperatorError(f"prompt must be one that Florence-2 learned: {error}", ("prompt",)) from error
        kind = self._form(prompt)
        if kind != TEXT and kind not in self._processor.post_processor.parse_task_config:
            raise OperatorError(
                f"prompt must be a task that this model's processor_config.json knows ({kind}) but is {prompt!r}",
                ("prompt",),
            )
        self._prompt, self._max_tokens, self._choices = prompt, max_tokens, tuple(choices or ())
        tokenizer = self._processor.tokenizer
        tokens = [list(tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in self._choices]
        self._continuations = generation.with_end(tokens, self._end)

    def prepare(self, image: DecodedImage) -> Item:
        """See `Answerer`."""
        given = self._processor(text=self._prompt, images=image.pil(), return_tensors="pt")
        return Item(dict(given), (image.width, image.height))

    def bucket(self, item: Item) -> Hashable:
        """See `Answerer`. Every image is made a square of one size."""
        return tuple(sorted((name, tuple(tensor.shape)) for name, tensor in item.tensors.items()))

    def answer(self, items: Sequence[Item]) -> list[Reply]:
        """See `Answerer`."""
        import torch

        batch = generation.batched([item.tensors for item in items], self.device, self.dtype)
        with inference(self.device, torch.float32):  # the weights are in the right arithmetic already
            if self._choices:
                return self._choose(batch)
            given, finite = generation.generate(self.model, batch, self._generation())
        return [
            Reply(self._text(ids, item.size)) if good else Reply("", problem=NOT_FINITE)
            for ids, good, item in zip(given, finite, items, strict=True)
        ]

    def _generation(self) -> Any:
        """transformers' settings: the model's own, without chance and with our length."""
        from transformers import GenerationConfig

        own = {
            name: value
            for name, value in self._settings.items()
            if name not in ("max_length", "temperature", "top_k", "top_p", "_from_model_config")
        }
        fixed = {"do_sample": False, "max_new_tokens": self._max_tokens}
        ids = {"decoder_start_token_id": self._begin[0], "eos_token_id": self._end, "pad_token_id": self._pad}
        return GenerationConfig(**{**ids, **own, **fixed})

    def _text(self, ids: list[int], size: tuple[int, int]) -> str:
        tokenizer, task = self._processor.tokenizer, _task(self._prompt)
        if self._form(self._prompt) == TEXT:
            return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        written = tokenizer.decode([token for token in ids if token != self._pad], skip_special_tokens=False)
        found = self._processor.post_process_generation(text=written, task=task, image_size=size)[task]
        return json.dumps(found, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def _form(self, prompt: str) -> str:
        """What transformers makes of the answer to a prompt."""
        return str(self._processor.tasks_answer_post_processing_type.get(_task(prompt), TEXT))

    def _choose(self, batch: Tensors) -> list[Reply]:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        ids, mask = batch["input_ids"], batch["attention_mask"]
        begin = torch.tensor([self._begin], device=self.device).expand(len(ids), -1)
        first = self.model(**batch, decoder_input_ids=begin, use_cache=False)
        seen = BaseModelOutput(last_hidden_state=first.encoder_last_hidden_state)

        def scores(tokens: list[int]) -> torch.Tensor:
            more = torch.tensor(tokens, dtype=begin.dtype, device=self.device).expand(len(ids), -1)
            said = torch.cat([begin, more], dim=1)
            out = self.model(encoder_outputs=seen, attention_mask=mask, decoder_input_ids=said, use_cache=False)
            return torch.log_softmax(out.logits[:, -1 - len(tokens) :].float(), dim=-1)

        return generation.choose(self._choices, self._continuations, scores)


def _task(prompt: str) -> str:
    found = _TASK.match(prompt)
    return found[0] if found else ""


def _configuration(card: ModelCard) -> Any:
    import transformers

    where = folder(card)
    try:
        return transformers.Florence2Config.from_pretrained(where, local_files_only=True)
    except Exception as error:  # transformers and its validators have errors of many kinds
        raise ModelError(f"model card {card.name}: config.json in {where} cannot be used: {error}") from error

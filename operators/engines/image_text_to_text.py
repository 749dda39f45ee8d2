"""Vision-language models through transformers' image-text-to-text classes, such as SmolVLM and Qwen3-VL."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from operators.engines import image_text_to_text_input
from operators.engines.answerer import Reply
from operators.engines.image_text_to_text_model import build, check
from operators.models.card import Dtype, ModelCard
from operators.models.device import inference, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["ImageTextToText", "check"]

Tensors = dict[str, "torch.Tensor"]


class ImageTextToText:
    """An `Answerer`.

    Answers are decoded greedily: each token is the likeliest, whatever the model's own settings are. A choice's
    likelihood is the product of its tokens' probabilities after the prompt; where a choice has several tokens, the end
    of the answer belongs to each, so that "red" does not stand for "red car" too.

    Args:
        card: A card that `check` accepts.
        dtype: Arithmetic, and what the weights are kept in.

    Raises:
        ModelError: The weights or the files beside them are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, dtype: Dtype = "auto") -> None:
        self.device = pick_device()
        self.dtype = pick_dtype(dtype, card, self.device)
        self._input = image_text_to_text_input.make(card)
        self.model = build(card, self.dtype).to(self.device)
        if isinstance(self._input, image_text_to_text_input.WordInput):
            self._input.check(self.model)
        self._choices: tuple[str, ...] = ()
        self._continuations: list[list[int]] = []
        self._max_tokens = 0

    def ask(self, prompt: str, choices: Sequence[str] | None, max_tokens: int) -> None:
        """See `Answerer`."""
        self._input.ask(prompt)
        self._choices = tuple(choices or ())
        self._max_tokens = max_tokens
        self._continuations = [self._input.answer_tokens(choice) for choice in self._choices]
        if any(len(tokens) > 1 for tokens in self._continuations):
            self._continuations = [[*tokens, self._input.end[0]] for tokens in self._continuations]

    def prepare(self, pixels: np.ndarray) -> Tensors:
        """See `Answerer`. Each tensor is a batch of one."""
        return self._input.prepare(pixels)

    def bucket(self, item: Tensors) -> Hashable:
        """Inputs of one shape share a batch, so none is padded and a neighbour changes nothing."""
        return tuple(sorted((name, tuple(tensor.shape)) for name, tensor in item.items()))

    def answer(self, items: Sequence[Tensors]) -> list[Reply]:
        """See `Answerer`."""
        import torch

        batch = {name: torch.cat([item[name] for item in items]).to(self.device) for name in items[0]}
        batch = {name: each.to(self.dtype) if each.is_floating_point() else each for name, each in batch.items()}
        with inference(self.device, torch.float32):  # the weights are in the right arithmetic already
            return self._choose(batch) if self._choices else self._say(batch)

    def _say(self, batch: Tensors) -> list[Reply]:
        import torch
        from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

        finite = torch.ones(len(batch["input_ids"]), dtype=torch.bool, device=self.device)

        class Watch(LogitsProcessor):  # type: ignore[misc,unused-ignore]
            """The likeliest of tokens whose scores are NaN is the first one, and looks like an answer."""

            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                finite.logical_and_(~scores.isnan().any(dim=-1))
                return scores

        end = list(self._input.end)
        settings = GenerationConfig(
            max_new_tokens=self._max_tokens, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=end[0]
        )
        self.model.generation_config = settings
        given = self.model.generate(**batch, logits_processor=LogitsProcessorList([Watch()]))
        rows = given[:, batch["input_ids"].shape[1] :].tolist()
        return [
            Reply(
                self._input.text(row[: next((n for n, token in enumerate(row) if token in end), len(row))]), None, good
            )
            for row, good in zip(rows, finite.tolist(), strict=True)
        ]

    def _choose(self, batch: Tensors) -> list[Reply]:
        import torch

        if all(len(tokens) == 1 for tokens in self._continuations):
            after = self._scores(batch, [])[:, 0]
            likely = after[:, [tokens[0] for tokens in self._continuations]]
        else:
            columns = []
            for tokens in self._continuations:
                after = self._scores(batch, tokens[:-1])
                wanted = torch.tensor(tokens, device=self.device).expand(len(after), -1)
                columns.append(after.gather(2, wanted[..., None]).sum(dim=(1, 2)))
            likely = torch.stack(columns, dim=1)
        probabilities = likely.softmax(dim=1)
        best = probabilities.max(dim=1)
        return [
            Reply(self._choices[choice], probability, bool(np.isfinite(probability)))
            for probability, choice in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

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

"""Texts and choices of a language model through transformers, with the model's scores watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.image_text_to_text.answerer import NOT_FINITE, Reply

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


def generate(model: Any, batch: Tensors, settings: Any) -> tuple[list[list[int]], list[bool]]:
    """What a model writes, without drawing.

    Args:
        model: One with transformers' `generate`.
        batch: Its input.
        settings: transformers' GenerationConfig.

    Returns:
        The ids of each row, as `generate` gives them; and whether all its scores were numbers.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    rows = len(batch["input_ids"])
    finite = torch.ones(rows, dtype=torch.bool, device=batch["input_ids"].device)

    class Watch(LogitsProcessor):  # type: ignore[misc,unused-ignore]
        """The likeliest of tokens whose scores are NaN is the first one, and looks like an answer."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            finite.logical_and_(~scores.isnan().view(rows, -1).any(dim=-1))  # a row has several beams
            return scores

    model.generation_config = settings
    given = model.generate(**batch, logits_processor=LogitsProcessorList([Watch()]))
    return given.tolist(), finite.tolist()


def with_end(continuations: Sequence[list[int]], end: int) -> list[list[int]]:
    """Ids of choices; where one has several, the end of the answer belongs to each: "red" is not "red car"."""
    if any(len(tokens) > 1 for tokens in continuations):
        return [[*tokens, end] for tokens in continuations]
    return list(continuations)


def choose(
    choices: Sequence[str],
    continuations: Sequence[list[int]],
    scores: Callable[[list[int]], torch.Tensor],
) -> list[Reply]:
    """The likeliest of several answers, for each row of a batch.

    Args:
        choices: Their texts.
        continuations: Their ids, as `with_end` gives them.
        scores: Log-probabilities, float32 (b, 1 + n, words), after the prompt and after each of n ids behind it.
    """
    import torch

    if all(len(tokens) == 1 for tokens in continuations):
        likely = scores([])[:, 0][:, [tokens[0] for tokens in continuations]]
    else:
        columns = []
        for tokens in continuations:
            after = scores(tokens[:-1])
            wanted = torch.tensor(tokens, device=after.device).expand(len(after), -1)
            columns.append(after.gather(2, wanted[..., None]).sum(dim=(1, 2)))
        likely = torch.stack(columns, dim=1)
    best = likely.softmax(dim=1).max(dim=1)
    return [
        Reply(choices[choice], probability) if np.isfinite(probability) else Reply("", problem=NOT_FINITE)
        for probability, choice in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def batched(items: Sequence[Tensors], device: torch.device, dtype: torch.dtype) -> Tensors:
    """Batches of one as one batch, on a device, numbers with a point in an arithmetic. A single one is not copied."""
    import torch

    def join(parts: list[torch.Tensor]) -> torch.Tensor:
        wanted = dtype if parts[0].is_floating_point() else parts[0].dtype
        parts = [part.to(device, wanted) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return {name: join([item[name] for item in items]) for name in items[0]}

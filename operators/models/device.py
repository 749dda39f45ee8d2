"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from labelmill.operators.models.card import Dtype, ModelCard

if TYPE_CHECKING:
    import torch


def pick_device() -> torch.device:
    """The first GPU this process may use, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: Dtype, card: ModelCard | None, device: torch.device) -> torch.dtype:
    """The arithmetic: what the step asks for, else what a card asks for, else what suits the device.

    Returns:
        float32 on a CPU and float16 on a GPU where neither asks for anything.
    """
    import torch

    asked = dtype if dtype != "auto" or card is None else card.dtype
    if asked == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    named: torch.dtype = getattr(torch, asked)
    return named


@contextmanager
def inference(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """No gradients; deterministic convolutions in full precision; below float32, automatic mixed precision.

    Weights stay float32 and only matrix products and convolutions run in half precision: Grounding DINO's box
    coordinates, sums and normalisations lose whole pixels otherwise.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            )
        if dtype != torch.float32:
            stack.enter_context(torch.autocast(device.type, dtype))
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws from torch's CPU generator start at a seed; afterwards it goes on as if nothing had been drawn."""
    import torch

    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)

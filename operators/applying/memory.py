"""Gives back memory that can be had again."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelmill.operators.applying.shard_images import ShardImages


def free_memory(images: ShardImages | None = None) -> None:
    """Give back remembered images, garbage, and what an accelerator's allocator holds for later."""
    if images is not None:
        images.forget()
    gc.collect()
    empty_accelerator_cache()


def empty_accelerator_cache() -> None:
    """Give back what an accelerator's allocator holds, so that a smaller batch finds it in one piece."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Gives back memory that can be had again."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelmill.operators.applying.shard_images import ShardImages


def free_memory(images: ShardImages | None = None) -> None:
    """Give back remembered images, garbage, and what an accelerator's allocator holds for later.

    Smaller work then finds memory in one piece. Does nothing about torch where it is not used.
    """
    if images is not None:
        images.forget()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()

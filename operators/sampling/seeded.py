"""Chance that depends on a seed and an image's key alone: not on where the image stands, nor on what else is there."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def key_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """Keys as `seeded_hashes` takes them."""
    keys: list[bytes] = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    return keys


def seeded_hashes(keys: Iterable[bytes], prefix: str) -> NDArray[np.uint64]:
    """BLAKE2b of prefix and key.

    Args:
        keys: UTF-8.
        prefix: Holds the seed, and keeps the chances of two operators with one seed apart.

    Returns:
        uint64 (keys, 3). The first two put the keys into a random order, the third is free for a draw.
    """
    start = prefix.encode()
    digests = b"".join([blake2b(start + key, digest_size=24).digest() for key in keys])
    return np.frombuffer(digests, dtype=">u8").reshape(-1, 3).astype(np.uint64)

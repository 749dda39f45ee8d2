"""Plain JPEGs by libjpeg-turbo without Pillow's way through tiles and copies: the same pixels, sooner.

Pillow stays the reference. Whatever is not plain (four inks, 12 bits), and whatever libjpeg-turbo has a word to say
about (cut off, damaged, stray bytes between segments), is left to it, so that what is an error and what it is called
do not depend on who decodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def plain_jpeg(data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """The stored pixels of a JPEG of one or three channels. Thread-safe; releases the GIL.

    Args:
        data: The whole file, whose header Pillow has read: format "JPEG", mode "L" or "RGB".
        width: As that header says.
        height: As that header says.

    Returns:
        uint8, (height, width, 3), RGB, not turned by the orientation; None where it is not plain.
    """
    import simplejpeg

    try:
        # Accurate DCT and smooth upsampling are what Pillow uses; strict makes a warning an error.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None

"""Images as they come in requests: base64, uploads and, where that is allowed, URLs. Never pickles."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage, decode, image_size
from labelmill.operators.moment import kind_of
from labelmill.pipelines.serve.budget import Budget
from labelmill.pipelines.serve.errors import ApiError, busy

UPLOAD = "upload"

_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w.+=-]+)*;base64,", re.ASCII)


class ImageIn(BaseModel):
    """One image.

    Attributes:
        type: "base64", or "url" where the server allows it.
        value: The file in base64, with or without ``data:image/…;base64,`` before it; or the URL.
    """

    model_config = ConfigDict(extra="ignore")

    type: str = "base64"
    value: Any


Images = Annotated[ImageIn | list[ImageIn], Field(description="One image, or a list of them.")]


def upload(data: bytes) -> ImageIn:
    """An image that came as a file of a form."""
    return ImageIn.model_construct(type=UPLOAD, value=data)


def from_text(text: str) -> ImageIn:
    """An image that came as a data URL, or as the address of one."""
    return ImageIn(type="url" if text[:5].lower() in ("http:", "https") else "base64", value=text)


def file_bytes(image: ImageIn) -> bytes:
    """The file of an image that is no URL.

    Raises:
        ApiError: 400, it is no base64, or of a kind that is refused.
    """
    if image.type == UPLOAD and isinstance(image.value, bytes):
        return image.value
    if image.type == "numpy":
        raise ApiError(400, "an image must not be of type numpy, which is a pickle and can run code: send base64")
    if image.type != "base64":
        raise ApiError(400, f'the type of an image must be "base64" or "url" but is {image.type[:40]!r}')
    if not isinstance(image.value, str):
        raise ApiError(400, f"the value of an image must be text in base64 but is {type(image.value).__name__}")
    text, start = image.value, 0
    if text[:5].lower() == "data:":
        found = _DATA_URL.match(text)
        if found is None:
            raise ApiError(400, "a data URL of an image must begin like data:image/jpeg;base64, but does not")
        start = found.end()
    try:
        data = base64.b64decode("".join(text[start:].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"the value of an image must be base64 but is not: {error}") from error
    if not data:
        raise ApiError(400, "the value of an image must be the file in base64 but is empty")
    return data


class RequestImage:
    """One image of a request, decoded when a model asks for it, once for all of them.

    Args:
        data: The file.
        max_pixels: Larger ones are refused before a pixel is decoded.
        budget: What decoded pixels are counted in, until `close`.
        place: How messages name it, such as "image 2: "; empty for the only one.
    """

    def __init__(self, data: bytes, max_pixels: int, budget: Budget, place: str = "") -> None:
        self._data, self._max_pixels, self._budget = data, max_pixels, budget
        self._place = place
        self._taken = 0
        self._decoded: DecodedImage | None = None

    def get(self) -> DecodedImage:
        """The decoded image, as runs see it. In a thread.

        Raises:
            ApiError: 400, it cannot be decoded; 503, there is no memory for it at the moment.
        """
        if self._decoded is None:
            try:
                width, height = image_size(self._data, self._max_pixels)
                self._budget.take(3 * width * height)
                self._taken = 3 * width * height
                self._decoded = decode(self._data, self._max_pixels)
            except RowError as error:
                if kind_of(error) is not None:
                    raise busy(str(error)) from error
                raise ApiError(400, f"{self._place}{error}") from error
            except MemoryError as error:
                raise busy("there is no memory for this image") from error
        return self._decoded

    @property
    def size(self) -> tuple[int, int]:
        """Width and height; of a decoded image."""
        assert self._decoded is not None
        return self._decoded.width, self._decoded.height

    def close(self) -> None:
        """Forget the pixels."""
        taken, self._taken, self._decoded = self._taken, 0, None
        if taken:
            self._budget.give_back(taken)

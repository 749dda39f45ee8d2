"""The classes of each image, from a column that holds one class an image, or a list of classes or detections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.columns.rows import codes
from labelmill.operators.errors import OperatorError

NONE = "none"
"""The class of an image without one: its value is null, or its list is null or empty."""


@dataclass(frozen=True, slots=True)
class ImageClasses:
    """Which classes are in which image, each once.

    Attributes:
        names: Every class there is, sorted; numbers as text.
        images: int64 (pairs,): the row of the image, ascending.
        classes: int64 (pairs,): a place in `names`, ascending within an image.
        starts: int64 (images + 1,): where the pairs of an image begin.
    """

    names: list[str]
    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    starts: NDArray[np.int64]

    def of(self, image: int) -> list[str]:
        """Names of the classes of one image."""
        return [self.names[number] for number in self.classes[self.starts[image] : self.starts[image + 1]]]


def check_classes(column: str, found: pa.DataType, param: str) -> None:
    """Refuse a column that holds no classes.

    Raises:
        OperatorError: It must hold an integer, a string or a truth value, a list of them, or detections.
    """
    kind = found.value_type if _is_list(found) else found
    if _is_list(found) and pa.types.is_struct(kind):
        index = kind.get_field_index("class")
        kind = pa.null() if index < 0 else kind.field(index).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    if not any(test(kind) for test in tests):
        wanted = "one class an image (a number or a string), a list of classes, or detections"
        raise OperatorError(f"column {column!r} must hold {wanted} but is {found}", (param,))


def read_classes(column: pa.ChunkedArray) -> ImageClasses:
    """Classes of all rows of a column that `check_classes` accepts. An image that has none is of class `NONE`."""
    count = len(column)
    if _is_list(column.type):
        images, values = _flatten(column)
    else:
        images, values = np.arange(count), column
    numbers, distinct = codes(values)
    images, numbers = images[numbers >= 0], numbers[numbers >= 0]
    has = np.zeros(count, dtype=bool)
    has[images] = True
    lacking = np.flatnonzero(~has)

    texts = [_name(value) for value in distinct.to_pylist()]
    names = sorted({*texts, NONE} if len(lacking) else set(texts))
    place = {name: number for number, name in enumerate(names)}
    translate = np.array([place[text] for text in texts], dtype=np.int64)
    pairs = images * len(names) + translate[numbers]
    if len(lacking):
        pairs = np.concatenate([pairs, lacking * len(names) + place[NONE]])
    pairs = np.sort(pairs)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    images, classes = np.divmod(pairs, max(1, len(names)))
    starts = np.concatenate([[0], np.cumsum(np.bincount(images, minlength=count))])
    return ImageClasses(names, images, classes, starts)


def _flatten(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
    """The row of every item of all lists, and the items; the classes of items that are detections."""
    images, parts, first = [np.zeros(0, dtype=np.int64)], [], 0
    for chunk in column.chunks:
        items = pc.list_flatten(chunk)
        parts.append(pc.struct_field(items, "class") if pa.types.is_struct(items.type) else items)
        images.append(pc.list_parent_indices(chunk).to_numpy() + first)
        first += len(chunk)
    kind = column.type.value_type
    kind = kind.field("class").type if pa.types.is_struct(kind) else kind
    return np.concatenate(images), pa.chunked_array(parts, kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _name(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

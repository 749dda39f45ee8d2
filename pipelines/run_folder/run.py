"""A run as Python sees it: its images, what every step says of them, and what became of them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelmill.operators.columns.schemas import DETECTIONS, as_detections
from labelmill.pipelines.errors import UnfinishedRun, UserError, nearest
from labelmill.pipelines.exports.columns import labels_column
from labelmill.pipelines.run_folder.layout import column_of
from labelmill.pipelines.run_folder.outcomes import outcomes
from labelmill.pipelines.run_folder.reopen import PIPELINE_FILE, reopen
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.steps import ColumnError, Input, resolve

if TYPE_CHECKING:
    import pandas
    import supervision
    from PIL import Image

OF_SOURCE = ("image_id", "key", "uri", "split")


class Run:
    """A finished run; it is read, never changed. `labelmill.open_run` makes one.

    Attributes:
        folder: Its directory: a path or an fsspec URL.
        steps: Names of its steps, in order.
        columns: What `images` can give of the steps, as ``step.column``.

    Raises:
        UserError: There is no run.
    """

    def __init__(self, folder: str) -> None:
        if not Store(folder).exists(PIPELINE_FILE):
            raise UserError(f"there is no run at {folder!r} (it has no {PIPELINE_FILE})")
        self.folder = folder
        self._pipeline, self._layout, self._shards = reopen(folder)
        self.steps = tuple(step.name for step in self._layout.steps)
        self.columns = tuple(
            f"{step.name}.{column}" for step in self._layout.steps for column in step.operator.writes().names
        )

    def __repr__(self) -> str:
        return f"Run({self.folder!r}): {len(self):,} images, steps {', '.join(self.steps)}"

    def __len__(self) -> int:
        return sum(self._shards.values())

    @cached_property
    def outcomes(self) -> dict[str, int]:
        """How many images ended as kept, dropped, duplicate, failed and undone; zeros are left out.

        Raises:
            UnfinishedRun: A step is not done for all images.
        """
        return dict(Counter(final for _, finals in self._finals() for final in finals))

    def images(self, columns: Sequence[str] | None = None, kept: bool = False) -> pa.Table:
        """One row per image, ordered by `image_id`, with everything joined.

        Args:
            columns: ``step.column``, or a bare ``column`` for the last step that writes it, or ``source.labels``; all
                columns of all steps if not given.
            kept: Only the images that no step decided against.

        Returns:
            `image_id`, `key`, `uri`, `split`, `outcome` (kept, dropped, duplicate, failed or undone), and the columns
            under the names that they were asked by.

        Raises:
            UnfinishedRun: A step is not done for all images.
            UserError: There is no such column.
        """
        wanted = {name: self._find(name) for name in (self.columns if columns is None else columns)}
        parts = []
        for shard, finals in self._finals():
            table = read_shard(self._layout.store, shard, list(OF_SOURCE))
            table = table.append_column("outcome", pa.array(finals, pa.string()))
            for name, column in wanted.items():
                table = table.append_column(name, as_detections(column_of(self._layout, column, shard)))
            parts.append(table.filter(pc.equal(table.column("outcome"), "kept")) if kept else table)
        if parts:
            return pa.concat_tables(parts)
        return read_shard_schema(wanted).empty_table()

    def to_pandas(self, columns: Sequence[str] | None = None, kept: bool = False) -> pandas.DataFrame:
        """`images` as a DataFrame whose index is `key`."""
        return self.images(columns, kept).to_pandas().set_index("key")

    def detections(self, key: str, column: str | None = None) -> supervision.Detections:
        """One image's detections for supervision: boxes in pixels of the upright image, scores, masks, class names.

        Args:
            key: Of the image; see `images`.
            column: Which detections, such as ``detect.detections``; those that exports take as labels if not given.

        Returns:
            `xyxy` float32 (n, 4); `confidence` float32 (n,), NaN where a person made the label; `class_id`, places in
            ``sorted`` class names of the image; `mask` bool (n, height, width) where every detection has one, else
            None; ``data["class_name"]``.

        Raises:
            UserError: There is no such image or column, or nobody looked for detections in it.
        """
        import supervision
        from pycocotools import mask as coco

        shard, row = self._row(key)
        source = self._find(column) if column is not None else labels_column(self._layout.steps, self._pipeline.labels)
        if not as_detections(pa.chunked_array([pa.array([], source.type)])).type.equals(DETECTIONS):
            raise UserError(f"column {source.name(self._layout.steps)!r} must hold detections but holds {source.type}")
        found = as_detections(column_of(self._layout, source, shard))[row].as_py()
        if found is None:
            raise UserError(f"image {key!r} has no {source.name(self._layout.steps)}: nobody looked")
        names = [each["class"] for each in found]
        ids = {name: place for place, name in enumerate(sorted(set(names)))}
        masks = None
        if found and all(each["mask"] is not None for each in found):
            width, height = self.image(key).size
            rles: Any = [{"size": [height, width], "counts": each["mask"].encode()} for each in found]
            masks = np.ascontiguousarray(np.moveaxis(coco.decode(rles), 2, 0)).astype(bool)
        return supervision.Detections(
            xyxy=np.array([[each[side] for side in ("x1", "y1", "x2", "y2")] for each in found], np.float32).reshape(
                -1, 4
            ),
            confidence=np.array([np.nan if each["score"] is None else each["score"] for each in found], np.float32),
            class_id=np.array([ids[name] for name in names], int),
            mask=masks,
            data={"class_name": np.array(names, dtype=str)},
        )

    def image(self, key: str) -> Image.Image:
        """One image, upright, as RGB: the pixels that operators saw.

        Raises:
            UserError: There is no such image.
            RowError: It cannot be read.
        """
        from PIL import Image

        from labelmill.operators.images.decoded import decode

        shard, row = self._row(key)
        uri = read_shard(self._layout.store, shard, ["uri"]).column("uri")[row].as_py()
        return Image.fromarray(decode(self._fetch(uri)).pixels)

    @cached_property
    def _fetch(self) -> Any:
        from labelmill.pipelines.sources import Fetcher

        return Fetcher(dict(self._pipeline.settings.source.storage_options))

    def _finals(self) -> Iterator[tuple[int, list[str]]]:
        try:
            for outcome in outcomes(self._layout, self._shards):
                yield outcome.shard, outcome.final
        except FileNotFoundError as error:
            raise UnfinishedRun(self.folder) from error

    def _find(self, name: str) -> Input:
        try:
            return resolve(name, self._layout.steps)
        except ColumnError as error:
            raise UserError(str(error)) from error

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        found = {}
        for shard in sorted(self._shards):
            keys = read_shard(self._layout.store, shard, ["key"]).column("key").to_pylist()
            found.update({key: (shard, row) for row, key in enumerate(keys)})
        return found

    def _row(self, key: str) -> tuple[int, int]:
        if key not in self._places:
            raise UserError(f"the run has no image {key!r}{nearest(key, self._places)}")
        return self._places[key]


def read_shard_schema(wanted: dict[str, Input]) -> pa.Schema:
    """The columns of `Run.images` where there is no image."""
    from labelmill.operators.columns.schemas import SHARD

    own = [SHARD.field(name) for name in OF_SOURCE]
    return pa.schema([*own, pa.field("outcome", pa.string()), *(pa.field(n, c.type) for n, c in wanted.items())])


def png(image: Any) -> bytes:
    """The bytes of a file that decodes to just the pixels of a PIL image, or of a uint8 array (height, width[, 3]).

    A PIL image that knows how its camera was held keeps that, and is turned upright as a file would be.
    """
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    buffer = io.BytesIO()
    if picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        picture.save(buffer, "PNG", compress_level=1, exif=picture.getexif())
    else:
        picture.save(buffer, "TIFF", exif=picture.getexif())
    return buffer.getvalue()

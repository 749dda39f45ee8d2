"""Objects cut out of their images, as an image folder with a folder for each class."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.base import Exporter, LabelParams
from labelmill.pipelines.exports.card import dataset_card
from labelmill.pipelines.exports.class_folders import class_folders
from labelmill.pipelines.exports.dataset import Dataset, ExportError, ExportImage, ExportSummary, Fetch, unreadable
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Label, Tally
from labelmill.pipelines.sources.base import in_order

if TYPE_CHECKING:
    from PIL import Image

    from labelmill.operators.images.decoded import DecodedImage

THREADS = 4
"""Images decoded at once; Pillow works on several at a time, and each may take hundreds of megabytes."""


class Crops(Exporter):
    """Cropped objects: ``{split}/{class}/{image}-{position}.jpg``; without splits, ``{class}/…``.

    That is the layout of torchvision's `ImageFolder`, Hugging Face's `imagefolder` and Ultralytics' classification.
    Every split has a folder for every class, empty if need be, since loaders number the classes of each split by its
    folders. A name is that of the image's file in other exports (so it begins with the image's id), then the object's
    place in the image: no two are the same, and they stay when images are added.

    A crop is the box and a margin on all sides, in whole pixels, of the upright image, cut at the image's edge. With
    `alpha`, the mask is the fourth channel: 255 on the object and 0 around it; of an object without a mask, 255 in its
    box. Colours under 0 are kept, so a reader that drops the channel sees the crop as it was.

    These are the only images that are encoded anew; the originals stay as they are.
    """

    name = "crops"

    class Params(LabelParams):
        """Parameters of the crops.

        Attributes:
            unread, refused: See `LabelParams`.
            margin: Added on each side, as a share of the box's width and height.
            format: `jpeg`, or `png`, which loses nothing; png if not given with `alpha`, and else jpeg.
            quality: Of JPEG, 1 to 100.
            alpha: Whether the mask becomes the alpha channel; png only.
        """

        margin: float = Field(0.0, ge=0, le=10, allow_inf_nan=False)
        format: Literal["jpeg", "png"] | None = None
        quality: int = Field(95, ge=1, le=100)
        alpha: bool = False

        @model_validator(mode="after")
        def _with_alpha(self) -> Crops.Params:
            if self.alpha and self.format == "jpeg":
                raise ValueError("format must be png with alpha but is jpeg, which has no such channel")
            return self

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`.

        Raises:
            ExportError: Also for an image that cannot be decoded, or has another size than the run says.
        """
        tally = Tally(dataset.classes, dataset.splits, left_out=dataset.left_out)
        folders = class_folders(dataset.classes)
        kind = self.params.format or ("png" if self.params.alpha else "jpeg")
        work = ((image, tally.read(image)) for image in dataset.checked())
        with out:
            for image, crops in in_order(lambda item: self._cut(*item, dataset.fetch, kind), work, THREADS):
                stem = file_name(image).rpartition(".")[0]
                for crop in crops:
                    folder = f"{image.split}/" if image.split else ""
                    folder += folders[dataset.classes[crop.class_id]]
                    out.write(f"{folder}/{stem}-{crop.position:03d}.{'jpg' if kind == 'jpeg' else 'png'}", crop.data)
        for split in [f"{split}/" for split in dataset.splits] or [""]:
            for folder in folders.values():
                out.folder(f"{split}{folder}")
        notes = tally.notes()
        if self.params.alpha and tally.boxes_only:
            notes.append(
                f"{counted(tally.boxes_only, 'object has', 'objects have')} no mask; the alpha is then that of the box."
            )
        title = "Objects cut out of their images"
        out.write("README.md", dataset_card(title, tally, self._made(kind), notes, dataset.provenance))
        return tally.summary(notes, dataset.splits or ["."])

    def _cut(self, image: ExportImage, labels: list[Label], fetch: Fetch, kind: str) -> tuple[ExportImage, list[_Crop]]:
        if not labels:
            return image, []
        from labelmill.operators.errors import RowError
        from labelmill.operators.images.decoded import decode

        try:
            decoded = decode(fetch(image.uri))
        except (RowError, OSError) as error:
            raise unreadable(image.key, error) from error
        if (decoded.width, decoded.height) != (image.width, image.height):
            raise ExportError(
                f"image {image.key!r} must be {image.width} by {image.height}, as when the run saw it, but is "
                f"{decoded.width} by {decoded.height}; run the pipeline again"
            )
        crops = []
        for label in labels:
            pixels = self._pixels(decoded, label)
            data = io.BytesIO()
            if kind == "jpeg":
                pixels.save(data, "JPEG", quality=self.params.quality)
            else:
                pixels.save(data, "PNG")
            crops.append(_Crop(label.position, label.class_id, data.getvalue()))
        return image, crops

    def _pixels(self, decoded: DecodedImage, label: Label) -> Image.Image:
        import numpy as np
        from PIL import Image

        x1, y1, x2, y2 = label.box
        wide, high = self.params.margin * (x2 - x1), self.params.margin * (y2 - y1)
        left, right = max(math.floor(x1 - wide), 0), min(math.ceil(x2 + wide), decoded.width)
        top, bottom = max(math.floor(y1 - high), 0), min(math.ceil(y2 + high), decoded.height)
        pixels = np.ascontiguousarray(decoded.pixels[top:bottom, left:right])
        if not self.params.alpha:
            return Image.fromarray(pixels)
        if label.mask is None:
            at_x, at_y = math.floor(x1), math.floor(y1)
            mask = np.ones((math.ceil(y2) - at_y, math.ceil(x2) - at_x), np.uint8)
        else:
            mask, at_x, at_y = label.mask.crop()
        alpha = np.zeros((bottom - top, right - left), np.uint8)
        # Where the mask's own crop and this one meet.
        rows = slice(max(at_y, top), min(at_y + mask.shape[0], bottom))
        columns = slice(max(at_x, left), min(at_x + mask.shape[1], right))
        if rows.start < rows.stop and columns.start < columns.stop:
            part = mask[rows.start - at_y : rows.stop - at_y, columns.start - at_x : columns.stop - at_x]
            alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part * 255
        return Image.fromarray(np.dstack([pixels, alpha]))

    def _made(self, kind: str) -> list[str]:
        margin = f"a margin of {self.params.margin:g} of its size on each side" if self.params.margin else "no margin"
        how = f"JPEG of quality {self.params.quality}" if kind == "jpeg" else "PNG"
        return [
            f"Each file is an object's box with {margin}, cut out of the upright image and encoded as {how}.",
            "The class is the folder. The number at the start of a name is the image's id, the one at its end the "
            "object's place in the image.",
            *(["The alpha channel is the object's mask."] if self.params.alpha else []),
        ]


@dataclass(frozen=True, slots=True)
class _Crop:
    """An encoded object: its place in the image, its class and its file."""

    position: int
    class_id: int
    data: bytes

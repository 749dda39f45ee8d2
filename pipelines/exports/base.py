"""What an exporter is given, what it gives back, and what all exporters refuse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from labelmill.pipelines.exports.dataset import Dataset, ExportImage, ExportSummary

if TYPE_CHECKING:
    from labelmill.pipelines.exports.files import Output


class LabelParams(BaseModel):
    """What becomes of images that nobody looked at, and of those with labels that could not be taken.

    Attributes:
        unread: `leave_out`, or `background`: take them as images with nothing on them.
        refused: `leave_out`, or `rest`: write them with those of their labels that could be taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unread: Literal["leave_out", "background"] = "leave_out"
    refused: Literal["leave_out", "rest"] = "leave_out"


class ExportParams(LabelParams):
    """Parameters of every export.

    Attributes:
        unread, refused: See `LabelParams`.
        images: `link` makes hard links to originals on the same disk and copies others; `copy` copies all of them, for
            a dataset that will be edited in place, since a link and its original are one file; `none` writes labels
            only. Bytes are never re-encoded.
    """

    images: Literal["link", "copy", "none"] = "link"


class Exporter(ABC):
    """Writes a dataset in one format. Subclasses set `name` and, where they have parameters, `Params`.

    Attributes:
        name: What a pipeline calls it.
        version: Raised when the same input gives other files, so that a finished run writes them anew.
        images_alone: When images that nobody looked at are written as such: ``always`` as tasks for people; for
            training only ``where nobody looked at any``, so that it is a set of images; or ``never``.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    images_alone: ClassVar[Literal["always", "where nobody looked at any", "never"]] = "never"

    class Params(ExportParams):
        pass

    def __init__(self, params: Any) -> None:
        self.params = params

    def needs(self) -> tuple[str, ...]:
        """Keys of `pipelines.exports.columns.COLUMNS` whose columns these parameters cannot do without.

        Where ``class`` is among them, `write` is handed the classes of images, not those of objects.
        """
        return ()

    def labelled(self, image: ExportImage) -> bool:
        """Whether the format says all that it should of an image, though its objects may be unread."""
        return "class" in self.needs() or image.label_state == "read"

    @abstractmethod
    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the whole dataset. The same input gives the same bytes.

        Args:
            dataset: Its `checked` images are read once.
            out: An empty place to write to.

        Raises:
            ExportError: A label has a class that is not in the dataset's `classes`, a promise of `Dataset` is broken,
                or an image cannot be read.
        """

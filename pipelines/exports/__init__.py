"""Writes the labelled images of a run in the formats that training code reads."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from labelmill.pipelines.exports.base import Exporter

_EXPORTERS = {
    "coco": "labelmill.pipelines.exports.coco:Coco",
    "crops": "labelmill.pipelines.exports.crops:Crops",
    "cvat": "labelmill.pipelines.exports.cvat:Cvat",
    "fiftyone": "labelmill.pipelines.exports.fiftyone:FiftyOne",
    "huggingface": "labelmill.pipelines.exports.huggingface:HuggingFace",
    "label_studio": "labelmill.pipelines.exports.label_studio:LabelStudio",
    "voc": "labelmill.pipelines.exports.voc:Voc",
    "webdataset": "labelmill.pipelines.exports.webdataset:WebDataset",
    "yolo": "labelmill.pipelines.exports.yolo:Yolo",
}
"""Name in a pipeline → where the exporter is. A new format gets a file and a line here."""

EXPORT_NAMES = tuple(_EXPORTERS)
"""The words under `export:` that name a format."""


def exporter(name: str) -> type[Exporter]:
    """The exporter of a format.

    Raises:
        ExportError: There is none of that name.
    """
    if name not in _EXPORTERS:
        from labelmill.pipelines.errors import nearest
        from labelmill.pipelines.exports.dataset import ExportError

        hint = nearest(name, EXPORT_NAMES)
        raise ExportError(f"export must be one of {', '.join(EXPORT_NAMES)} but is {name!r}{hint}")
    module, _, cls = _EXPORTERS[name].partition(":")
    return cast("type[Exporter]", getattr(import_module(module), cls))

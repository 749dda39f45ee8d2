"""The ``source:`` section of a pipeline."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from labelmill.pipelines.sources.base import Sizes, Source
from labelmill.pipelines.sources.kinds import KINDS, Kind
from labelmill.pipelines.sources.uri import as_location, has_user


def _path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _checked(value: str) -> str:
    if has_user(value):
        # The location of every image is written into the run, so this would be too.
        raise ValueError(
            "a location must hold no user and password: they would be in every file of the run. Give them in "
            "storage_options, for https as {client_kwargs: {headers: {Authorization: '${oc.env:NAME}'}}}"
        )
    as_location(value)
    return value


Location = Annotated[str, BeforeValidator(_path_text), AfterValidator(_checked)]
"""A local path, or a URL that starts with s3://, gs:// or https://."""


class CocoSpec(BaseModel):
    """COCO annotation files, one, several or a folder of them, and the folder that their file names are relative to
    (found beside each file if not given)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: Location | Annotated[list[Location], Field(min_length=1)]
    images: Location | None = None


class SourceSpec(BaseModel):
    """Where images come from: exactly one kind of source, and the options that this kind has.

    A bare string is a folder; under ``coco`` it is the annotation file.

    Attributes:
        folder: Images below a folder.
        coco: COCO instances files and their images: a file, a list of files, or a folder.
        yolo: A YOLO ``data.yaml``, or a folder that has one, or has images, labels and ``classes.txt``.
        voc: A folder with ``Annotations`` and ``JPEGImages``, as Pascal VOC has it.
        cvat: CVAT's ``annotations.xml`` (CVAT for images 1.1), or a folder that has it, or one for each split.
        label_studio: What Label Studio exports as JSON, or a folder that has it, or the export `label_studio`.
        parquet: Parquet files: a path, a folder or a glob pattern.
        webdataset: Tar files: a path, folder, glob or brace pattern, or a list of these.
        huggingface: A folder written by ``save_to_disk`` of the datasets package, or one of Parquet files that its
            ``load_dataset`` opens.
        image: Column with the images (parquet, huggingface): bytes, a struct of bytes and path, or a path or URL.
            Needed where more than one column could be it.
        rescale: Labels say the size of the image that they were drawn on. Where it was scaled evenly since, scale them
            with it; else they are refused.
        key: Column with the keys (parquet); else keys are made of the file name and row number.
        storage_options: Handed to fsspec to open remote locations, such as ``{endpoint_url: …}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Location | None = None
    coco: CocoSpec | None = None
    yolo: Location | None = None
    voc: Location | None = None
    cvat: Location | None = None
    label_studio: Location | None = None
    parquet: Location | None = None
    webdataset: Location | Annotated[list[Location], Field(min_length=1)] | None = None
    huggingface: Location | None = None
    image: str | None = None
    key: str | None = None
    rescale: bool = False
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        value = _path_text(value)
        if isinstance(value, str):
            return {"folder": value}
        if isinstance(value, dict) and isinstance(_path_text(value.get("coco")), (str, list)):
            return {**value, "coco": {"annotations": value["coco"]}}
        return value

    @model_validator(mode="after")
    def _check(self) -> SourceSpec:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source must have exactly one of {', '.join(KINDS)} but has {' and '.join(given) or 'none'}"
            )
        if self.image is not None and given[0] not in ("parquet", "huggingface"):
            raise ValueError(f"image is an option of parquet and huggingface, not of {given[0]}")
        if self.key is not None and given[0] != "parquet":
            raise ValueError(f"key is an option of parquet, not of {given[0]}")
        return self

    @property
    def kind(self) -> Kind:
        """Which kind of source it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


def open_source(spec: SourceSpec, sizes: Sizes | None = None) -> Source:
    """The source that a pipeline describes. Nothing is read before `scan` or `classes` is asked for.

    Args:
        spec: What it is and where.
        sizes: Width and height of the upright image by key, where labels are read whose images are not beside them.
    """
    from labelmill.pipelines.sources.storage import Storage

    storage = Storage(spec.storage_options)
    if spec.folder is not None:
        from labelmill.pipelines.sources.folder import FolderSource

        return FolderSource(as_location(spec.folder), storage)
    if spec.coco is not None:
        from labelmill.pipelines.sources.coco import CocoSource

        images, given = spec.coco.images, spec.coco.annotations
        annotations = [as_location(each) for each in ([given] if isinstance(given, str) else given)]
        return CocoSource(annotations, images and as_location(images), storage, sizes, spec.rescale)
    if spec.yolo is not None:
        from labelmill.pipelines.sources.yolo import YoloSource

        return YoloSource(as_location(spec.yolo), storage)
    if spec.voc is not None:
        from labelmill.pipelines.sources.voc import VocSource

        return VocSource(as_location(spec.voc), storage, spec.rescale)
    if spec.cvat is not None:
        from labelmill.pipelines.sources.cvat import CvatSource

        return CvatSource(as_location(spec.cvat), storage, sizes, spec.rescale)
    if spec.label_studio is not None:
        from labelmill.pipelines.sources.label_studio import LabelStudioSource

        return LabelStudioSource(as_location(spec.label_studio), storage, sizes)
    if spec.parquet is not None:
        from labelmill.pipelines.sources.parquet import ParquetSource

        return ParquetSource(as_location(spec.parquet), spec.image, spec.key, storage, spec.rescale)
    if spec.webdataset is not None:
        from labelmill.pipelines.sources.webdataset import WebDatasetSource

        patterns = [spec.webdataset] if isinstance(spec.webdataset, str) else spec.webdataset
        return WebDatasetSource([as_location(pattern) for pattern in patterns], storage, spec.rescale)
    if spec.huggingface is not None:
        from labelmill.pipelines.sources.huggingface import HuggingFaceSource, holds_parquet_alone

        folder = as_location(spec.huggingface)
        if holds_parquet_alone(folder, storage):  # as `load_dataset` reads it, and the export `huggingface` writes it
            from labelmill.pipelines.sources.parquet import ParquetSource

            return ParquetSource(folder, spec.image, spec.key, storage, spec.rescale)
        return HuggingFaceSource(as_location(spec.huggingface), spec.image, storage, spec.rescale)
    raise AssertionError("a valid SourceSpec has a kind")

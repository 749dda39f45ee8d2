"""WebDataset: tar files of samples, one file after the other (https://github.com/webdataset/webdataset)."""

from __future__ import annotations

import io
import tarfile
from contextlib import ExitStack
from typing import IO, Any

from pydantic import Field

from labelmill.pipelines.exports.base import Exporter, LabelParams
from labelmill.pipelines.exports.card import dataset_card
from labelmill.pipelines.exports.dataset import ALL, Dataset, ExportSummary
from labelmill.pipelines.exports.entries import object_entry, word_entry
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Tally
from labelmill.pipelines.exports.streams import json_bytes, with_bytes
from labelmill.pipelines.exports.texts import read_texts

MEGABYTE = 10**6


class WebDataset(Exporter):
    """Tar files ``{split}-{number}.tar`` and ``classes.txt``; without splits they are ``all-{number}.tar``.

    A sample's key is the image's id with eight digits, because a reader takes all up to the first dot for the key. It
    has the original bytes under the extension that readers know the format by, a ``.json`` and, where there is a
    caption, a ``.txt``. The ``.json`` holds ``image_id``, ``key``, ``width``, ``height``, ``objects`` (see
    `pipelines.exports.entries.object_entry`), and where known ``words``, ``class`` and ``split``.

    A tar is closed when the next sample would exceed `samples` or `megabytes`. Images that come later fill the last one
    and new ones; all before it keep their bytes: members are dated 1970, owned by nobody and in the order of their ids.

    EXIF orientation: coordinates are of the upright image and image bytes the original ones. WebDataset's own decoders
    do not apply it: add `PIL.ImageOps.exif_transpose`.
    """

    name = "webdataset"
    images_alone = "where nobody looked at any"

    class Params(LabelParams):
        """Parameters of the WebDataset export. Images are always inside the tars.

        Attributes:
            unread, refused: See `LabelParams`.
            samples: Samples in a tar, at most.
            megabytes: Millions of bytes in a tar, at most; a larger single sample has a tar of its own.
        """

        samples: int = Field(10_000, ge=1)
        megabytes: int = Field(500, ge=1)

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`."""
        tally = Tally(dataset.classes, dataset.splits, ("crowd", "extra"), left_out=dataset.left_out)
        counts = {"words": 0, "captions": 0}
        with ExitStack() as stack:
            tars = {
                split: stack.enter_context(_Tars(split, out, self.params.samples, self.params.megabytes * MEGABYTE))
                for split in tally.splits
            }
            for image, data in with_bytes(dataset.checked(), dataset.fetch):
                labels = tally.read(image)
                words = read_texts(image, tally.skipped)
                entry: dict[str, Any] = {
                    "image_id": image.image_id,
                    "key": image.key,
                    "width": image.width,
                    "height": image.height,
                    "objects": None
                    if image.label_state == "unread"
                    else [object_entry(image, label, dataset.classes) for label in labels],
                }
                if image.words is not None:
                    entry["words"] = [word_entry(word) for word in words]
                for name, value in (("class", image.image_class), ("split", image.split)):
                    if value is not None:
                        entry[name] = value
                files = [(file_name(image).rpartition(".")[2], data), ("json", json_bytes(entry))]
                if image.caption:
                    files.append(("txt", image.caption.encode("utf-8", "backslashreplace")))
                counts["words"] += len(words)
                counts["captions"] += bool(image.caption)
                tars[image.split or ALL].add(f"{image.image_id:08d}", files)
            paths = [path for split in tally.splits for path in tars[split].paths]
        out.write("classes.txt", "".join(f"{name}\n" for name in dataset.classes).encode("utf-8", "backslashreplace"))
        notes = tally.notes()
        made = [
            "Each tar holds samples: the original image bytes, a `.json` with the labels"
            + (" and a `.txt` with the caption." if counts["captions"] else "."),
            "Coordinates are pixels of the upright image: a loader must apply the EXIF orientation.",
            "A sample's key is the image's id; the `key` in its `.json` is the path below the source's root.",
            "`category_id` counts from 1 in the order of `classes.txt`.",
        ]
        if counts["words"]:
            made.append(f"Words: {counts['words']:,}.")
        out.write("README.md", dataset_card("Dataset in WebDataset format", tally, made, notes, dataset.provenance))
        return tally.summary(notes, paths)


class _Tars:
    """The tar files of one split, one open at a time."""

    def __init__(self, split: str, out: Output, most_samples: int, most_bytes: int) -> None:
        self._split, self._out = split, out
        self._most_samples, self._most_bytes = most_samples, most_bytes
        self._stack = ExitStack()
        self._tar: tarfile.TarFile | None = None
        self._samples = self._bytes = 0
        self.paths: list[str] = []

    def __enter__(self) -> _Tars:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if kind is None:
            self._close()
            return None
        self._tar = None
        return self._stack.__exit__(kind, error, trace)

    def add(self, key: str, files: list[tuple[str, bytes]]) -> None:
        """Append a sample, in a new tar if this one is full."""
        size = sum(tarfile.BLOCKSIZE + -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for _, data in files)
        if self._tar is not None and (self._samples >= self._most_samples or self._bytes + size > self._most_bytes):
            self._close()
        if self._tar is None:
            self._open()
        assert self._tar is not None
        for extension, data in files:
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size, member.mtime, member.mode = len(data), 0, 0o644
            self._tar.addfile(member, io.BytesIO(data))
        self._tar.members.clear()  # type: ignore[attr-defined]  # it would keep every member
        self._samples += 1
        self._bytes += size

    def _open(self) -> None:
        path = f"{self._split}-{len(self.paths):06d}.tar"
        file: IO[bytes] = self._stack.enter_context(self._out.open(path))
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self.paths.append(path)
        self._samples = self._bytes = 0

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None
            self._stack.close()

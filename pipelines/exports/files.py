"""Where a dataset is written to: image files by link or copy, label files whole or not at all."""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any, Literal, cast

from labelmill.pipelines.exports.dataset import ExportImage, Fetch, unreadable
from labelmill.pipelines.sources.uri import local_path

THREADS = 8
WAITING = 16
"""Files under way at once: enough to hide the delay of an object store, few enough to hold in memory."""

STEM_LENGTH = 80

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
    "JPEG2000": (".jp2",),
}
"""Pillow's format → extensions by which loaders know it, the usual one first. Pillow's own table is wider: loaders that
go by the extension pass over a .jfif or .apng that it knows."""


class Output:
    """A directory on any fsspec filesystem, empty at first.

    Within ``with out:``, files that take a transfer are written by threads. Leaving the block waits for them and raises
    the first error. Paths are relative, with '/' between parts.
    """

    def __init__(self, fs: Any, root: str) -> None:
        """Args:
        fs: An fsspec filesystem.
        root: The directory's path on it.
        """
        from fsspec.implementations.local import LocalFileSystem

        self.fs = fs
        self.root = root.rstrip("/") or root
        self.is_local = isinstance(fs, LocalFileSystem)
        self._folders: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Output:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="export")
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        assert self._pool is not None
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        self._pool = None
        under_way, self._under_way = self._under_way, deque()
        if error is None:
            for future in under_way:
                future.result()

    def folder(self, path: str) -> None:
        """Make a folder, even if nothing will be in it. Object stores have none and need none."""
        full = self._path(path)
        if self.is_local and full not in self._folders:
            os.makedirs(full, exist_ok=True)
            self._folders.add(full)

    @contextmanager
    def open(self, path: str, mode: Literal["wb"] = "wb") -> Iterator[IO[bytes]]:
        """A new binary file. On an object store it appears when the block ends without an error, and only then."""
        self.folder(posixpath.dirname(path))
        if self.is_local:
            with open(self._path(path), mode) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile() as file:
            yield cast(IO[bytes], file)
            file.flush()
            self.fs.put_file(file.name, self._path(path))

    def write(self, path: str, data: bytes) -> None:
        """Write a small file."""
        self.folder(posixpath.dirname(path))
        full = self._path(path)
        if self.is_local:
            with open(full, "wb") as file:
                file.write(data)
        else:
            self._submit(lambda: self.fs.pipe_file(full, data))

    def place(self, image: ExportImage, fetch: Fetch, path: str, mode: Literal["link", "copy"]) -> None:
        """Put an image's original bytes at a path.

        Args:
            image: Whose `uri` says where they are.
            fetch: Gives the bytes behind a uri.
            path: Where they go.
            mode: `link` makes a hard link if the original is a file on the same disk, and else copies.

        Raises:
            ExportError: The image cannot be read; raised on leaving the ``with`` block at the latest.
        """
        self.folder(posixpath.dirname(path))
        full = self._path(path)
        original = local_path(image.uri)
        if mode == "link" and self.is_local and original is not None:
            try:
                # A link to a symbolic link would be one itself, and break where the original's folder is not.
                os.link(os.path.realpath(original) if os.path.islink(original) else original, full)
                return
            except FileExistsError:
                raise
            except OSError:
                pass  # Another disk, a file system without links, too many links, or no right to: copy.
        self._submit(lambda: self._copy(image, fetch, full))

    def place_in(self, folder: str, image: ExportImage, fetch: Fetch, mode: Literal["link", "copy", "none"]) -> str:
        """Put an image's original bytes into a folder under its `file_name`; with `none`, nowhere.

        Returns:
            The name in the folder; with `none` the image's key.
        """
        if mode == "none":
            return image.key
        name = file_name(image)
        self.place(image, fetch, f"{folder}/{name}", mode)
        return name

    def _copy(self, image: ExportImage, fetch: Fetch, full: str) -> None:
        try:
            data = fetch(image.uri)
        except Exception as error:
            raise unreadable(image.key, error) from error
        if self.is_local:
            # Never into a file that is there: it could be a link, and so an original.
            with open(full, "xb") as file:
                file.write(data)
        else:
            self.fs.pipe_file(full, data)

    def _submit(self, work: Callable[[], None]) -> None:
        if self._pool is None:
            work()
            return
        while len(self._under_way) >= WAITING:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(work))

    def _path(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"path must stay below the output's root but is {path!r}")
        return posixpath.join(self.root, path)


def file_name(image: ExportImage) -> str:
    """A name for the image's file that no other image of the dataset has, such as ``00000042-crossing.jpg``.

    The number makes it unique whatever folders the sources had, also where upper and lower case are one. The rest is
    the key's stem in ASCII letters, digits, '-', '_' and '.', because OpenCV on Windows opens no other, and may be
    empty. The extension is the key's in lower case if loaders know the image's format by it, else the format's usual
    one.
    """
    _, dot, extension = posixpath.basename(image.key).rpartition(".")
    known = EXTENSIONS.get(image.format) or _pillow_extensions(image.format)
    extension = f".{extension.lower()}" if dot else "."
    return exported_stem(image.image_id, image.key) + (extension if extension in known else known[0])


def exported_stem(image_id: int, key: str) -> str:
    """What `file_name` puts before the extension."""
    stem, dot, extension = posixpath.basename(key).rpartition(".")
    plain = unicodedata.normalize("NFKD", stem if dot else extension).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain)[:STEM_LENGTH].strip("._-")
    number = f"{image_id:08d}"
    return f"{number}-{plain}" if plain else number


def _pillow_extensions(name: str) -> tuple[str, ...]:
    from PIL import Image

    known = sorted(extension for extension, kind in Image.registered_extensions().items() if kind == name)
    return tuple(known) or (f".{re.sub(r'[^a-z0-9]', '', name.lower()) or 'image'}",)

"""Files below a folder, local or in an object store, without opening any."""

from __future__ import annotations

import functools
import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labelmill.operators.moment import kind_of
from labelmill.pipelines.sources.base import SourceError
from labelmill.pipelines.sources.storage import Storage, local_version, remote_info
from labelmill.pipelines.sources.uri import is_http, is_remote, protocol

HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif", ".avif")
NOT_BY_PILLOW_ALONE = ("EPS", "MPEG")
"""Formats that Pillow knows by name but cannot decode, or only with another program's help."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file below a root.

    Attributes:
        name: Path below the root, ``/`` between parts.
        location: Where it is.
        version: Changes when its bytes do.
        problem: What is odd about it, if anything.
    """

    name: str
    location: str
    version: str | None
    problem: str | None = None


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that can hold an image that Pillow or pillow-heif decodes."""
    from PIL import Image, ImageFile

    Image.init()
    readable = {*HEIF_SUFFIXES, ".mpo"}  # two views in one JPEG, which Pillow opens as one
    for suffix, kind in Image.registered_extensions().items():
        factory = Image.OPEN[kind][0] if kind in Image.OPEN else None
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        if factory is not None and not stub and kind not in NOT_BY_PILLOW_ALONE:
            readable.add(suffix)
    return frozenset(readable)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    dot = name.rfind(".")
    return dot > name.rfind("/") and name[dot:].lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Whether a path below a root is hidden or is what macOS leaves behind in archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def walk(storage: Storage, root: str, report: Callable[[str], None]) -> Iterator[Found]:
    """Every file below `root` that is not hidden, in any order.

    Links are followed. A folder that can be reached in several ways is listed once: under its own path where that lies
    below `root`, else under the smallest of the links to it. So a circle of links ends, and the names do not
    depend on the order in which the system lists them.

    Args:
        storage: Reads the locations.
        root: A folder.
        report: Told of folders that cannot be listed and of links that were not followed.

    Raises:
        SourceError: `root` is missing, cannot be listed or is no folder.
    """
    if is_http(root):
        raise SourceError(
            f"{root} cannot be listed, because http has no folders; download it, or name one file: "
            "parquet, webdataset or coco with https urls"
        )
    if is_remote(root):
        return (found for found in list_remote(storage, root) if not is_hidden(found.name))
    return _walk_local(root, report)


def list_remote(storage: Storage, root: str) -> Iterator[Found]:
    """Every object below a prefix of an object store, hidden or not, from its listing alone."""
    found = storage.ask(root, lambda system, path: system.find(path.rstrip("/"), detail=True))
    scheme = protocol(root)
    start = root.partition("://")[2].rstrip("/") + "/"
    while found:
        path, info = found.popitem()  # gives memory back while the entries grow
        name = path[len(start) :]
        if info.get("type") == "file" and path.startswith(start) and not name.endswith("/"):
            yield Found(name, f"{scheme}://{path}", remote_info(info).version)


def _walk_local(root: str, report: Callable[[str], None]) -> Iterator[Found]:
    visited: dict[tuple[int, int], str] = {}
    links = [""]
    while links:
        link = heapq.heappop(links)
        waiting = [link]
        while waiting:
            folder = waiting.pop()
            path = f"{root}/{folder}" if folder else root
            try:
                status = os.stat(path)
                identity = (status.st_dev, status.st_ino)
                if identity in visited:
                    report(
                        f"the link {path} was not followed, because it leads to {visited[identity]}, which is listed"
                    )
                    continue
                with os.scandir(path) as listing:
                    visited[identity] = path
                    yield from _files(listing, f"{root.rstrip('/')}/", folder, waiting, links)
            except OSError as error:
                if not folder:
                    raise SourceError(f"the folder {root} cannot be listed: {error.strerror}") from error
                _stop_if_it_passes(error, path)
                report(f"the folder {path} cannot be listed: {error.strerror}")


def _files(
    listing: Iterator[os.DirEntry[str]], start: str, folder: str, folders: list[str], links: list[str]
) -> Iterator[Found]:
    prefix = f"{folder}/" if folder else ""
    for entry in listing:
        name = entry.name
        if name.startswith(".") or name == "__MACOSX":
            continue
        name = prefix + name
        try:
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_dir():
                heapq.heappush(links, name)
            elif entry.is_file():
                yield Found(name, start + name, local_version(entry.stat()))
            elif entry.is_symlink():
                yield Found(name, start + name, None, "this is a link that leads nowhere")
        except OSError as error:
            _stop_if_it_passes(error, start + name)
            yield Found(name, start + name, None, f"this file cannot be examined: {error.strerror}")


def _stop_if_it_passes(error: OSError, path: str) -> None:
    """Images that cannot be seen for the moment would be taken for images that are gone."""
    if kind_of(error) is not None:
        raise SourceError(
            f"{path} cannot be looked at: {error.strerror}; when it can, run the same command again"
        ) from error

"""Container files (Parquet, tar) that a path, a folder, a glob or a brace pattern means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from labelmill.pipelines.sources.base import SourceError
from labelmill.pipelines.sources.storage import Storage
from labelmill.pipelines.sources.uri import is_http, parent
from labelmill.pipelines.sources.walk import walk


@dataclass(frozen=True, slots=True, order=True)
class Container:
    """A file that holds many images: where it is, and its path below what all patterns have in common."""

    location: str
    name: str


def locate(
    patterns: Sequence[str], suffix: str, storage: Storage, report: Callable[[str], None], braces: bool = False
) -> list[Container]:
    """The files that patterns mean, sorted, each once.

    Args:
        patterns: Each a file, a folder (every file below it with the suffix), or a glob pattern.
        suffix: Of the files looked for in folders, such as ``.tar``.
        storage: Lists them.
        report: Told of files that a brace pattern names and that are missing.
        braces: Whether ``x-{000..009}`` means several files.

    Raises:
        SourceError: A pattern matches nothing.
    """
    roots: list[list[str]] = []
    found: set[str] = set()
    for pattern in patterns:
        expanded = _expand(pattern, storage) if braces else [pattern]
        matched = 0
        for part in expanded:
            files, root = _match(part, suffix, storage, report)
            if not files and len(expanded) > 1:
                report(f"the file {part} does not exist; {pattern} names it")
            matched += len(files)
            found.update(files)
            roots.append(_parts(root))
        if not matched:
            raise _nothing(pattern, suffix, storage)
    shared = 0
    while all(len(root) > shared and root[shared] == roots[0][shared] for root in roots):
        shared += 1
    return sorted(Container(location, "/".join(_parts(location)[shared:])) for location in found)


def _expand(pattern: str, storage: Storage) -> list[str]:
    if "{" not in pattern or (not is_http(pattern) and storage.is_file(pattern)):
        return [pattern]
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise SourceError(f"{pattern} must have a closing brace for every opening one") from error


def _match(pattern: str, suffix: str, storage: Storage, report: Callable[[str], None]) -> tuple[list[str], str]:
    """The files that a pattern matches, and the folder that their names start from."""
    if is_http(pattern):
        return (storage.glob(pattern) if "*" in pattern else [pattern]), parent(pattern)
    if storage.is_file(pattern):
        return [pattern], parent(pattern)
    if storage.is_folder(pattern):
        below = walk(storage, pattern, report)
        return [found.location for found in below if found.name.lower().endswith(suffix)], pattern
    parts = pattern.split("/")
    magic = next((index for index, part in enumerate(parts) if any(char in part for char in "*?[")), None)
    if magic is None:
        return [], parent(pattern)
    return storage.glob(pattern), "/".join(parts[:magic]) or "/"


def _nothing(pattern: str, suffix: str, storage: Storage) -> SourceError:
    if not is_http(pattern) and storage.is_folder(pattern):
        return SourceError(f"there is no {suffix} file below {pattern}")
    if any(char in pattern for char in "*?{["):
        return SourceError(f"no file matches {pattern}")
    return storage.missing(pattern, "the file")


def _parts(location: str) -> list[str]:
    if is_http(location):
        location = unquote(location.partition("?")[0])
    return location.rstrip("/").split("/")

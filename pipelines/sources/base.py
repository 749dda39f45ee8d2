"""What every source gives: entries, and what was wrong with the source."""

from __future__ import annotations

import itertools
import posixpath
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from labelmill.operators.secrets import hide
from labelmill.operators.wording import counted
from labelmill.pipelines.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PROBLEMS = 1000
"""Problems of a source kept word for word; the rest are counted."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """An image file's size in pixels.

    Attributes:
        upright: Width and height as a viewer shows it.
        orientation: 1…8, as stored; 1 for upright.
    """

    upright: Size
    orientation: int = 1

    @property
    def stored(self) -> Size:
        """Width and height of the stored pixels."""
        return self.upright[::-1] if self.orientation >= 5 else self.upright  # type: ignore[return-value]


Sizes = Callable[[str], Size | Shape | None]
"""Width and height of an upright image by its key, with its orientation where known; None where the image is not."""


class SourceError(UserError):
    """The source as a whole cannot be used; says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A label that was there and could not be taken.

    Attributes:
        place: Where it stands: ``labels/a.txt:3``, ``annotation 7``, ``Annotations/a.xml object 2``.
        reason: Completes a sentence that begins with the place.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place} {self.reason}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source, known without decoding it.

    Attributes:
        key: Path below the source's root with ``/`` between parts; unique in the source.
        uri: Where the bytes are; see `pipelines.sources.uri`.
        version: Changes when the bytes do; None where nothing tells.
        labels: Dicts with the fields of `operators.columns.schemas.DETECTION`. ``[]`` says that nothing is there, None
            that nobody looked, or that all that was there is refused.
        split: train, val or test as the source has it.
        metadata: What else the source knows, as values that JSON can hold.
        problem: A note on the source's entry, shown and stored. The image is processed all the same. Names what is in
            `refused` too.
        refused: The labels that were there and could not be taken.
    """

    key: str
    uri: str
    version: str | None = None
    labels: list[dict[str, Any]] | None = None
    split: str | None = None
    metadata: dict[str, Any] | None = None
    problem: str | None = None
    refused: tuple[Refused, ...] = ()

    @property
    def label_state(self) -> str:
        """One of `operators.columns.schemas.LABEL_STATES`."""
        if self.refused:
            return "refused"
        return "unread" if self.labels is None else "read"


class Source(ABC):
    """Lists images. `scan` may be called again; `problems`, `refused` and `ignored` describe the latest scan.

    Attributes:
        problems: What was wrong and belongs to no entry, one sentence each.
        refused: Labels that could not be taken and belong to no entry. `problems` names them too.
        missing: A whole class of labels that is missing, one sentence each: of a folder, of a file, of all images.
        ignored: Files that are not images: suffix in lower case (empty for none) → how many.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.refused: list[Refused] = []
        self.missing: list[str] = []
        self.ignored: dict[str, int] = {}
        self._unlisted = 0

    @property
    def classes(self) -> list[str] | None:
        """The class order of the source's own labels; None when it has none."""
        return None

    @property
    def categories(self) -> dict[str, dict[str, Any]]:
        """Class name → what else the source says of the class, as COCO's categories do: supercategory, keypoints, …"""
        return {}

    def scan(self) -> Iterator[Entry]:
        """Every entry, in any order, as it is found.

        Raises:
            SourceError: The source is missing, unreadable or empty, or two entries share a key.
        """
        self.problems, self.refused, self.missing, self.ignored, self._unlisted = [], [], [], {}, 0
        first = None
        states: dict[str, Counter[str]] = {}
        for entry in self._unique(self._entries()):
            first = first or entry
            states.setdefault(entry.key.rpartition("/")[0], Counter())[entry.label_state] += 1
            yield entry
        self.missing += whole_classes(states, self.looked_for())
        self.problems.sort()
        if self._unlisted:
            self.problems.append(f"and {counted(self._unlisted, 'more problem')}")
        if first is None:
            raise SourceError(self._empty())

    @abstractmethod
    def _entries(self) -> Iterator[Entry]:
        """Every entry; may be none."""

    @abstractmethod
    def _empty(self) -> str:
        """What to say when there was no entry: what was looked for, and what was seen instead."""

    def looked_for(self) -> str | None:
        """Where labels were looked for, for a message when there are none; None of a source that has no labels."""
        return None

    def _unique(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        seen: dict[str, str] = {}
        for entry in entries:
            if entry.key in seen:
                raise SourceError(
                    f"key {entry.key!r} must be unique but belongs to two images: {seen[entry.key]} and {entry.uri}; "
                    "rename one of them"
                )
            seen[entry.key] = entry.uri
            yield entry

    def _report(self, problem: str) -> None:
        """Record a problem that belongs to no entry."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(valid_text(hide(problem)))
        else:
            self._unlisted += 1

    def _refuse(self, place: str, reason: str) -> None:
        """Record a label that could not be taken and belongs to no entry."""
        self.refused.append(Refused(valid_text(place), valid_text(reason)))
        self._report(f"{place} {reason}")

    def _ignore(self, name: str, count: int = 1) -> None:
        """Count a file that is not an image."""
        suffix = valid_text(posixpath.splitext(name)[1].lower())
        self.ignored[suffix] = self.ignored.get(suffix, 0) + count

    def _seen(self) -> str:
        """What was seen instead of images, for a message."""
        if not self.ignored:
            return "nothing there"
        most = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count} {suffix or 'without extension'}" for suffix, count in most[:8]]
        return ", ".join(parts) + (", …" if len(most) > 8 else "")


def whole_classes(states: dict[str, Counter[str]], looked_for: str | None) -> list[str]:
    """What to say of labels that are missing altogether: of all images, or of all those of a folder.

    Args:
        states: Folder of keys → state of labels → how many images.
        looked_for: See `Source.looked_for`.
    """
    total = sum(states.values(), Counter())
    where = f"; looked for {looked_for}" if looked_for else ""
    if looked_for is None and not total["refused"]:
        return []
    if not total["read"]:
        found = f"{total['refused']:,} refused" if total["refused"] else "there are none"
        return [f"none of {counted(total.total(), 'image')} has labels that could be read: {found}{where}"]
    whole = []
    for folder, counts in sorted(states.items()):
        if not counts["read"]:
            found = f"{counts['refused']:,} refused" if counts["refused"] else "there are none"
            place = f"in {folder or 'the folder itself'}"
            whole.append(f"none of {counted(counts.total(), 'image')} {place} has labels: {found}{where}")
    more = len(whole) - MAX_FOLDERS
    return whole if more <= 0 else [*whole[:MAX_FOLDERS], f"and the same of {counted(more, 'other folder')}"]


MAX_FOLDERS = 20
"""Folders without labels that are named one by one."""


def valid_text(text: str) -> str:
    """The same text where it is valid Unicode; else with what is not (bytes of odd file names) spelt as escapes."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogateescape" if _from_bytes(text) else "surrogatepass")
        return raw.decode("utf-8", "backslashreplace")
    return text


def _from_bytes(text: str) -> bool:
    return all("\udc80" <= char <= "\udcff" for char in text if "\ud800" <= char <= "\udfff")


def normal_key(name: str) -> str:
    """A name as a key: without empty, ``.`` and ``..`` parts and null characters."""
    parts = [part for part in name.replace("\0", "_").split("/") if part not in ("", ".", "..")]
    return valid_text("/".join(parts)) or "_"


def problem_text(problems: Iterable[str], limit: int = 50) -> str | None:
    """One sentence of several problems, the first `limit` word for word; None of none."""
    distinct = list(dict.fromkeys(problems))
    if not distinct:
        return None
    rest = len(distinct) - limit
    return valid_text(hide("; ".join(distinct[:limit])) + (f"; and {rest} more" if rest > 0 else ""))


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``map(function, items)`` with `workers` threads, a bounded number of items ahead."""
    if workers <= 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in itertools.islice(remaining, 2 * workers):
                waiting.append(pool.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
                for item in itertools.islice(remaining, 1):
                    waiting.append(pool.submit(function, item))
        finally:
            for future in waiting:
                future.cancel()

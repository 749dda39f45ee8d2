"""Which image of a run a truth means, where its keys begin in another folder than the run's."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from labelmill.pipelines.exports.files import exported_stem
from labelmill.pipelines.run_folder.finished_run import FinishedRun
from labelmill.pipelines.sources.read_labels import Labels


def aligned(labels: Labels, run: FinishedRun) -> Labels:
    """The same labels under the run's keys.

    Keys that both have are the same image, and if there is one such key, all are taken as they are. Else images are the
    same that an export of the run says (``key``) or named (``00000042-crossing.jpg``), or that are one file; else
    those of which one key ends in the whole other (``images/a.jpg`` and ``a.jpg``), where it fits one image only. What
    was taken for what is said in `problems`.
    """
    if not labels.images or any(key in run.outcome for key in labels.images):
        return labels
    pairs = (
        _told(labels, run)
        or _exported(labels, run)
        or _same_files(labels, run)
        or list(_same_endings(labels.images, run.outcome))
    )
    theirs, ours = (Counter(side) for side in zip(*pairs, strict=True)) if pairs else (Counter[str](), Counter[str]())
    clear = {their: our for their, our in pairs if theirs[their] == ours[our] == 1}
    if not pairs:
        return labels
    problems = list(labels.problems)
    if clear:
        their, our = min(clear.items())
        problems.append(f"the truth calls images otherwise than the run: {their!r} is taken for {our!r}, and so on")
    if len(clear) < len(theirs):
        their, our = min(pair for pair in pairs if pair[0] not in clear)
        problems.append(
            f"{len(theirs) - len(clear)} images of the truth could be several of the run's, or several of them one; "
            f"they take no part, such as {their!r} and {our!r}"
        )
    images = {clear.get(key, key): replace(entry, key=clear.get(key, key)) for key, entry in labels.images.items()}
    return replace(labels, images=images, problems=problems)


def _told(labels: Labels, run: FinishedRun) -> list[tuple[str, str]]:
    """By the key that exports with room for it write beside the image: in its record, its row, its JSON."""
    pairs = []
    for key, entry in labels.images.items():
        said = entry.metadata or {}
        inner = said.get("json")
        our = said.get("key") or (inner.get("key") if isinstance(inner, dict) else None)
        if isinstance(our, str) and our in run.outcome:
            pairs.append((key, our))
    return pairs


def _same_files(labels: Labels, run: FinishedRun) -> list[tuple[str, str]]:
    keys = {entry.uri: key for key, entry in labels.images.items() if entry.uri}
    return [(keys[uri], key) for key, uri in run.uris() if uri in keys] if keys else []


def _exported(labels: Labels, run: FinishedRun) -> list[tuple[str, str]]:
    """By the number that `pipelines.exports.files.file_name` begins names with, where the rest is the key's, too."""
    numbers = {}
    for key in labels.images:
        name = posixpath.basename(key)
        if found := EXPORTED.match(name):
            numbers[int(found[1])] = key, name
    if not numbers:
        return []
    pairs = []
    for key, image_id in run.image_ids():
        if image_id in numbers:
            their, name = numbers[image_id]
            if posixpath.splitext(name)[0] == exported_stem(image_id, key):
                pairs.append((their, key))
    return pairs


EXPORTED = re.compile(r"(\d{8,})[-.]")


def _same_endings(theirs: Iterable[str], ours: Iterable[str]) -> Iterator[tuple[str, str]]:
    by_name = defaultdict(list)
    for key in ours:
        by_name[posixpath.basename(key)].append(key)
    for key in theirs:
        for our in by_name.get(posixpath.basename(key), ()):
            if key.endswith(f"/{our}") or our.endswith(f"/{key}"):
                yield key, our

"""Folders named after classes, as loaders of image folders read them (torchvision's ImageFolder, Ultralytics)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from labelmill.pipelines.exports.dataset import ExportError

LONGEST = 200
"""Bytes of a folder's name; file systems take 255."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f%/\\<>:"|?*]|^[. ]|[. ]$')


def class_folders(classes: Sequence[str]) -> dict[str, str]:
    """Class name → name of its folder.

    That is the class's name, but for characters that a file system may refuse or that hide a folder: these are
    percent-encoded, so that no two classes share a name.

    Raises:
        ExportError: Two names differ only in upper and lower case, which are one on many disks, or a name is too long.
    """
    folders: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in classes:
        folder = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", name)
        if not name or len(folder.encode("utf-8", "backslashreplace")) > LONGEST:
            raise ExportError(f"a class must have a name of 1 to {LONGEST} bytes to name a folder but is {name!r:.60}")
        owner = owners.setdefault(folder.casefold(), name)
        if owner != name:
            raise ExportError(
                f"classes {owner!r} and {name!r} must differ in more than upper and lower case to name folders; "
                "give one of them another name in the ontology"
            )
        folders[name] = folder
    return folders

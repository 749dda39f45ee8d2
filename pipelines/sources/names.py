"""Files by names that another system wrote: backslashes, other upper and lower case."""

from __future__ import annotations

import threading

from labelmill.pipelines.sources.storage import Storage
from labelmill.pipelines.sources.uri import is_remote, join, protocol, resolve


class Names:
    """Finds files by their names as written. Remembers the folders that it had to list. Thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._lock = threading.Lock()

    def find(self, name: str, folder: str) -> str | None:
        """The location of the file that `name` means in `folder`: as it is, with ``\\`` for ``/``, or in other case.

        None where there is no such file, or where several differ by case alone and none is it.
        """
        try:
            exact = resolve(name, folder)
        except ValueError:
            return None
        if self._storage.is_file(exact):
            return exact
        if protocol(name):
            return None
        plain = name.replace("\\", "/")
        try:
            if plain != name and self._storage.is_file(found := resolve(plain, folder)):
                return found
        except ValueError:
            return None
        return None if is_remote(folder) or plain.startswith("/") else self.any_case(plain, folder)

    def any_case(self, name: str, folder: str) -> str | None:
        """Likewise, folder by folder: the part of that name, else the only one that differs from it by case."""
        place = folder
        for part in name.split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                return None
            there = self._names(place)
            same = there.get(part.lower(), [])
            if part in same:
                place = join(place, part)
            elif len(same) == 1:
                place = join(place, same[0])
            else:
                return None
        return place if place != folder else None

    def _names(self, folder: str) -> dict[str, list[str]]:
        with self._lock:
            if folder not in self._listed:
                found: dict[str, list[str]] = {}
                for name in self._storage.names(folder) if self._storage.is_folder(folder) else []:
                    found.setdefault(name.lower(), []).append(name)
                self._listed[folder] = found
            return self._listed[folder]

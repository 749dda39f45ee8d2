"""Files by location: local paths with the standard library, everything else through fsspec."""

from __future__ import annotations

import difflib
import inspect
import io
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from labelmill.operators.moment import kind_of, retry_after
from labelmill.operators.wording import counted
from labelmill.pipelines.sources.base import SourceError
from labelmill.pipelines.sources.uri import REMOTE, base_name, is_http, is_remote, parent, protocol

Result = TypeVar("Result")

ATTEMPTS = 4
"""How often something is asked of an http server before giving up."""
STORE_ATTEMPTS = 2
"""How often of an object store: its client tries again by itself, five times and more."""
PAUSE = 0.5
"""Seconds before the second attempt; twice as long before each further one, and up to as much more by chance."""
LONGEST_PAUSE = 10.0
"""A server that asks for a longer one is not asked again here."""
MAX_BYTES = 2**31 - 1
"""Largest local file read as one image."""
SMALL_BYTES = 2**22
"""A file over http that is smaller than this is read whole: some servers send no parts."""
THREADS = 16
"""Requests under way at once while a remote source is scanned."""


class Unavailable(SourceError):
    """A location cannot be read; the message says why in plain words."""


class Missing(Unavailable):
    """There is nothing at the location."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Size in bytes, where known, and what changes with the bytes."""

    size: int | None
    version: str | None


class Storage:
    """Reads locations. Thread-safe; picklable, and then opens its connections again.

    Args:
        options: For fsspec, such as ``{"endpoint_url": …}``. They belong to the object store: http(s) locations use
            them only if http knows every one of them.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.options,)

    def system(self, location: str) -> Any:
        """The fsspec file system of a remote location."""
        scheme = protocol(location)
        if scheme not in REMOTE:
            raise Unavailable(f"{location} must be a local path or start with s3://, gs:// or https://")
        with self._lock:
            if scheme not in self._systems:
                import fsspec

                options = _http_options(self.options) if is_http(location) else self.options
                defaults: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
                if scheme in ("s3", "s3a"):
                    defaults["max_concurrency"] = 1  # more would ask for the size of every image first
                self._systems[scheme] = fsspec.filesystem(scheme, **{**defaults, **options})
            return self._systems[scheme]

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of a file, or `length` of them from `offset` (fewer where it ends earlier).

        Raises:
            Missing, Unavailable: It is gone, forbidden, not a file, too large, or the network failed again and again.
        """
        if not is_remote(location):
            return _explained(location, lambda: _read_local(location, offset, length))
        if length is None and offset == 0:
            return self.ask(location, lambda system, path: bytes(system.cat_file(path)))
        end = None if length is None else offset + length
        found = self.ask(location, lambda system, path: bytes(system.cat_file(path, start=offset, end=end)))
        if length is not None and len(found) > length:  # the server ignored the range and sent the whole file
            found = found[offset : offset + length]
        return found

    def use(self, location: str, action: Callable[[BinaryIO], Result]) -> Result:
        """What `action` makes of a seekable file. It is called again if the network fails in the middle of it.

        Raises:
            Missing, Unavailable: As for `read`. A ValueError of `action` becomes Unavailable too.
        """

        def use(file: BinaryIO) -> Result:
            with file:
                return action(file)

        if not is_remote(location):
            return _explained(location, lambda: use(open(location, "rb")))
        if is_http(location) and (self.info(location).size or SMALL_BYTES) < SMALL_BYTES:
            return self.ask(location, lambda system, path: use(io.BytesIO(system.cat_file(path))))
        return self.ask(location, lambda system, path: use(system.open(path, "rb")))

    def info(self, location: str) -> FileInfo:
        """Size and version of a file. Raises: Missing, Unavailable (also where it is a folder)."""
        if not is_remote(location):
            return _explained(location, lambda: _local_info(location))
        found = self.ask(location, lambda system, path: system.info(path))
        if found.get("type") == "directory":
            raise Unavailable(f"this must be a file but is a folder: {location}")
        return remote_info(found)

    def version_here(self, location: str, problems: list[str]) -> str | None:
        """The version of a file of this machine, or why there is none as one more problem; None for a remote one.

        A remote file is not asked: that would be a request for each image.
        """
        if is_remote(location):
            return None
        try:
            return self.info(location).version
        except Unavailable as error:
            problems.append(str(error))
            return None

    def is_folder(self, location: str) -> bool:
        """Whether something lies below the location. Always False over http, which has no folders."""
        if not is_remote(location):
            return os.path.isdir(location)
        return not is_http(location) and bool(self.ask(location, lambda system, path: system.isdir(path)))

    def is_file(self, location: str) -> bool:
        """Whether the location is a file. Raises: Unavailable, where that cannot be known for the moment."""
        try:
            self.info(location)
        except Unavailable as error:
            if kind_of(error) is not None:
                raise
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder, sorted; none when it is not there or may not be listed.

        Raises:
            Unavailable: It cannot be listed for the moment.
        """
        try:
            if not is_remote(folder):
                return sorted(os.listdir(folder))
            if is_http(folder):
                return []
            found = self.ask(folder, lambda system, path: system.ls(path.rstrip("/"), detail=False))
        except (OSError, ValueError, Unavailable) as error:
            if kind_of(error) is not None:
                raise error if isinstance(error, Unavailable) else Unavailable(f"{folder}: {error}") from error
            return []
        return sorted(base_name(name) for name in found)

    def glob(self, pattern: str) -> list[str]:
        """Locations of the files that match, sorted; ``**`` matches any depth."""
        if not is_remote(pattern):
            import glob

            return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if is_http(pattern):
            raise SourceError(f"{pattern} must be one file, because http cannot list files; name the files one by one")
        found = self.ask(pattern, lambda system, path: system.glob(path, detail=True))
        scheme = protocol(pattern)
        return sorted(f"{scheme}://{path}" for path, info in found.items() if info.get("type") == "file")

    def missing(self, location: str, what: str) -> SourceError:
        """The error for a location that is not there, with the nearest name that is.

        Args:
            location: What was looked for.
            what: What it should have been, such as "the folder".
        """
        message = f"{what} {location} does not exist"
        if is_http(location):
            return SourceError(message + " or cannot be reached; try the address in a browser")
        part, above = location.rstrip("/"), parent(location)
        while above not in ("/", "") and "://" not in above[-4:] and not self._is_folder_quietly(above):
            part, above = above, parent(above)
        near = difflib.get_close_matches(base_name(part), self._names_quietly(above), n=1, cutoff=0.5)
        if near:
            return SourceError(f"{message}; did you mean {above.rstrip('/')}/{near[0]}?")
        if part != location.rstrip("/"):
            return SourceError(f"{message}: there is no {base_name(part)!r} in {above}")
        return SourceError(message)

    def _names_quietly(self, folder: str) -> list[str]:
        try:
            return self.names(folder)
        except Unavailable:
            return []

    def _is_folder_quietly(self, location: str) -> bool:
        try:
            return self.is_folder(location)
        except Unavailable:
            return False

    def ask(self, location: str, question: Callable[[Any, str], Result]) -> Result:
        """Ask the file system of a remote location, again and again where trying again can help."""
        path = _url(location) if is_http(location) else location.partition("://")[2]
        attempts = ATTEMPTS if is_http(location) else STORE_ATTEMPTS
        for attempt in range(attempts):
            try:
                return question(self.system(location), path)
            except Exception as raised:
                hidden = is_http(location) and isinstance(raised, FileNotFoundError)
                error = raised.__cause__ if hidden and isinstance(raised.__cause__, Exception) else raised
                problem = _reason(error, location)
                if problem is not None:
                    raise problem from error
                asked = retry_after(error) or 0.0
                if attempt + 1 == attempts or asked > LONGEST_PAUSE:
                    reason = f"{type(error).__name__}: {error}".strip().removesuffix(":")
                    tried = counted(attempt + 1, "attempt")
                    raise Unavailable(f"{location} could not be read in {tried}: {reason}") from error
                time.sleep(max(asked, PAUSE * 2**attempt) + random.uniform(0, PAUSE))
        raise AssertionError("unreachable")


def remote_info(found: Mapping[str, Any]) -> FileInfo:
    """Size and version from what fsspec says about a file."""
    size = found.get("size")
    tag = found.get("ETag") or found.get("etag") or found.get("md5Hash")
    if tag:
        return FileInfo(size, str(tag).removeprefix("W/").strip('"'))
    changed = found.get("LastModified") or found.get("Last-Modified") or found.get("updated") or found.get("mtime")
    return FileInfo(size, f"{size}-{changed}" if changed else None)


def local_version(status: os.stat_result) -> str:
    """The version of a local file."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _local_info(path: str) -> FileInfo:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise IsADirectoryError(path)
    return FileInfo(status.st_size, local_version(status))


def _read_local(path: str, offset: int, length: int | None) -> bytes:
    size = _local_info(path).size or 0  # before opening: opening a pipe would wait for a writer
    wanted = max(size - offset, 0) if length is None else length
    if wanted > MAX_BYTES:
        raise Unavailable(f"the file must be smaller than 2 GiB but is {wanted / 2**30:.1f} GiB: {path}")
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(wanted)


def _explained(location: str, action: Callable[[], Result]) -> Result:
    try:
        return action()
    except (OSError, ValueError) as error:
        raise _reason(error, location) or Unavailable(f"{location} cannot be read: {error}") from error


def _reason(error: Exception, location: str) -> Unavailable | None:
    """What a failure means where trying again cannot help; None where it can."""
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    if isinstance(error, Unavailable):
        return error
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) or status in (404, 410):
        return Missing(f"the file is gone: {location}")
    if isinstance(error, IsADirectoryError):
        return Unavailable(f"this must be a file but is a folder or a device: {location}")
    if isinstance(error, PermissionError) or status in (401, 403):
        return Unavailable(f"no permission to read {location}")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return Unavailable(f"no credentials to read {location}; give them in storage_options or the environment")
    if is_http(location) and any(words in str(error) for words in ("range requests", "Cannot seek")):
        return Unavailable(f"the server of {location} does not send parts of a file; download the file")
    if isinstance(error, (ImportError, ValueError, TypeError)):
        return Unavailable(f"{location} cannot be read: {error}")
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return Unavailable(f"{location} cannot be read: the server answered {status}")
    return None


def _url(location: str) -> str:
    """The location as it goes over the wire: what is percent-encoded stays, what must be becomes so."""
    return quote(location, safe="%/:=&?~+!$,;'@()*[]", errors="surrogatepass")


def _http_options(options: Mapping[str, Any]) -> dict[str, Any]:
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    known = {*inspect.signature(HTTPFileSystem).parameters, "headers", "ssl", "proxy", "auth"}
    session = {*inspect.signature(aiohttp.ClientSession).parameters}
    client = options.get("client_kwargs", {})
    fits = known >= set(options) and session >= set(client)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=60)
    chosen = dict(options) if fits else {}
    return {"encoded": True, **chosen, "client_kwargs": {"timeout": timeout, **(client if fits else {})}}

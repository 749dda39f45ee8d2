"""Uris: one string that says where the bytes of an image are, whatever holds them.

==================================================  =======================================================
``/data/a.jpg``, ``s3://bucket/a.jpg``              a file
``/data/x.tar#offset=512&length=1234``              bytes of a file: a member of a tar
``/data/x.parquet#row=12&column=image``             a cell of a Parquet file
``/data/saved#split=train&row=5&column=image``      a cell of a Hugging Face dataset (empty split: it has none)
==================================================  =======================================================

The part before ``#`` is a *location*, written with ``%``, ``#``, control characters and bytes that are not UTF-8
percent-encoded, everything else as it is. An ``http(s)`` location is a URL already and stands unchanged.
"""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes, urlencode, urlsplit

REMOTE = ("s3", "s3a", "gs", "gcs", "http", "https")
"""Protocols of locations that are not local."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_UNSAFE = re.compile("[%#\x00-\x1f\x7f\ud800-\udfff]")


def protocol(location: str) -> str:
    """``s3``, ``https``, … in lower case; empty for a local path."""
    match = _SCHEME.match(location)
    return match[1].lower() if match else ""


def has_user(location: str) -> bool:
    """Whether a URL holds a user, and with it perhaps a password."""
    return bool(protocol(location)) and "@" in location.partition("://")[2].partition("/")[0]


def is_remote(location: str) -> bool:
    """Whether the location is a URL of another machine."""
    return protocol(location) not in ("", "file")


def is_http(location: str) -> bool:
    """Whether the location is an http or https URL."""
    return protocol(location) in ("http", "https")


def as_location(text: str) -> str:
    """The location that a person or a file wrote as `text`: an absolute path or a URL.

    Raises:
        ValueError: The protocol is not supported, or the text is empty.
    """
    scheme = protocol(text)
    if not text:
        raise ValueError("a location must not be empty")
    if scheme == "file":
        return os.path.abspath(unquote(urlsplit(text).path))
    if scheme == "":
        return os.path.abspath(os.path.expanduser(text))
    if scheme not in REMOTE:
        raise ValueError(f"{text!r} must be a local path or start with s3://, gs:// or https://, but is {scheme}://")
    if scheme in ("http", "https"):
        return text.partition("#")[0]
    return text


def file_uri(location: str) -> str:
    """The uri of a whole file."""
    if not _UNSAFE.search(location) or is_http(location):
        return location
    return _UNSAFE.sub(lambda match: quote(match[0].encode("utf-8", "surrogateescape"), safe=""), location)


def member_uri(location: str, **fields: str | int) -> str:
    """The uri of a part of a file or dataset."""
    return f"{file_uri(location)}#{urlencode(fields, quote_via=quote, safe='')}"


def parse(uri: str) -> tuple[str, dict[str, str]]:
    """The location and the fields after ``#``, decoded; the reverse of `file_uri` and `member_uri`."""
    base, _, fragment = uri.partition("#")
    location = base if is_http(base) else unquote_to_bytes(base).decode("utf-8", "surrogateescape")
    return location, dict(parse_qsl(fragment, keep_blank_values=True))


def local_path(uri: str) -> str | None:
    """The path of a uri that is a whole local file; None for everything else."""
    location, fields = parse(uri)
    return None if fields or is_remote(location) else location


def join(folder: str, *names: str) -> str:
    """The location of `names` below the location `folder`. Over http the names are percent-encoded."""
    if is_http(folder):
        base, mark, query = folder.partition("?")
        return "/".join([base.rstrip("/"), *(quote(name, errors="surrogatepass") for name in names)]) + mark + query
    return "/".join([folder.rstrip("/"), *names])


def parent(location: str) -> str:
    """The location of the folder that holds it."""
    if is_http(location):
        base, mark, query = location.partition("?")
        return base.rpartition("/")[0] + mark + query
    return location.rstrip("/").rpartition("/")[0] or "/"


def base_name(location: str) -> str:
    """The last part of a location, without the query of a URL."""
    if is_http(location):
        return unquote(location.partition("?")[0].rstrip("/").rpartition("/")[2])
    return location.rstrip("/").rpartition("/")[2]


def below(location: str, root: str) -> str | None:
    """The path from the folder `root` down to `location`; None when it is not below it."""
    start = root.rstrip("/") + "/"
    return location[len(start) :] if location.startswith(start) else None


def resolve(reference: str, folder: str) -> str:
    """The location that a file lying in `folder` means by `reference`: a URL, an absolute or a relative path.

    Raises:
        ValueError: A file of another machine names a local path, or leads out of its own bucket or host.
    """
    if protocol(reference) in REMOTE:
        return as_location(reference)
    if not is_remote(folder):
        return as_location(reference if protocol(reference) else os.path.join(folder, reference))
    if protocol(reference) or reference.startswith("/"):
        raise ValueError(f"{reference!r} must be a URL or a relative path, because {folder} is not on this machine")
    name = posixpath.normpath(reference)
    up = 0
    while name == ".." or name.startswith("../"):
        name, up = name[3:], up + 1
    for _ in range(up):
        folder = parent(folder)
    if folder.partition("://")[2].strip("/") == "":
        raise ValueError(f"{reference!r} leads out of the source")
    return join(folder, name)

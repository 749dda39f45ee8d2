"""The files of a run. A file is whole or it is not there, on a disk as on an object store."""

from __future__ import annotations

import io
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, TypeVar, cast

import pyarrow as pa

from labelmill.operators.applying.patience import Limits, Patience, passes
from labelmill.operators.columns.schemas import as_detections
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.output_error import OutputError, removed, telling

TEMPORARY = ".tmp-"
LOCK = ".lock"
PATIENCE = Limits(seconds=90.0)
"""How long an object store is waited for."""

Result = TypeVar("Result")


class Store:
    """A directory below which a run keeps its files; local, or any fsspec URL.

    Paths are relative, with '/' between parts. Picklable: every process opens its own connection. While a run holds
    the directory, an object store that is away is waited for, and a directory that was removed is not made again.

    Methods that read or write raise OutputError when that fails.
    """

    def __init__(self, url: str, held: bool = False) -> None:
        self.url = url if "://" in url else os.path.abspath(url)
        self._held = held
        self._fs: Any = None
        self._root = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self._held)

    @property
    def is_local(self) -> bool:
        """Whether files have paths that the operating system knows."""
        return "://" not in self.url or self.url.startswith("file://")

    @property
    def fs(self) -> Any:
        """The fsspec filesystem."""
        if self._fs is None:
            import fsspec

            options = {} if self.is_local else {"use_listings_cache": False}
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        return self._fs

    def path(self, name: str = "") -> str:
        """The path of a file as the filesystem takes it."""
        fs = self.fs
        del fs
        return posixpath.join(self._root, name) if name else self._root

    def address(self, name: str = "") -> str:
        """The path or URL of a file as a person takes it."""
        return posixpath.join(self.url, name) if name else self.url

    def _ask(self, doing: str, action: Callable[[], Result]) -> Result:
        """What the file system gives; an object store is asked again while a run holds it and it may come back."""
        with telling(self.address(), doing):
            try:
                return action()
            except Exception as error:
                if self.is_local or not self._held or not passes(error):
                    raise
                return Patience(PATIENCE).again(action, error)

    def _folder(self, folder: str) -> None:
        """Make a folder of the directory, if that is where it was."""
        if self._held and not os.path.isdir(self.path()):
            raise removed(self.address())
        os.makedirs(folder, exist_ok=True)

    def exists(self, name: str) -> bool:
        return bool(self._ask("read", lambda: self.fs.exists(self.path(name))))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly below a folder, sorted; hidden and temporary ones left out."""
        try:
            found = self._ask("read", lambda: self.fs.ls(self.path(folder), detail=False))
        except FileNotFoundError:
            return []
        names = {posixpath.basename(str(path).rstrip("/")) for path in found}
        return sorted(name for name in names if name and not name.startswith("."))

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is none."""
        return cast(bytes, self._ask("read", lambda: self.fs.cat_file(self.path(name))))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file. A reader sees the old one, or none, or the new one; never a part."""
        try:
            self._ask("written", lambda: self._write(self.path(name), data))
        except FileNotFoundError as error:
            raise OutputError(f"the output {self.address()} cannot be written: {error}") from error

    def _write(self, path: str, data: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        folder = os.path.dirname(path)
        self._folder(folder)
        temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.exists(name):
            self._ask("written", lambda: self.fs.rm(self.path(name)))

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what had it. On an object store it is copied, then removed."""
        if not self.is_local:
            self._ask("written", lambda: self.fs.cp_file(self.path(old), self.path(new)))
            self.remove(old)
            return

        def move() -> None:
            self._folder(os.path.dirname(self.path(new)))
            os.replace(self.path(old), self.path(new))

        self._ask("written", move)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file, or some of its columns; detections as `operators.columns.schemas.DETECTIONS` whoever wrote
        them."""
        import pyarrow.parquet as pq

        # Not `read_table`: it makes a dataset of the one file first, which takes most of its time with small files.
        with (
            telling(self.address(), "read"),
            pq.ParquetFile(self.path(name) if self.is_local else pa.BufferReader(self.read(name))) as file,
        ):
            table = file.read(columns, use_threads=False)
        table = table if columns is None else table.select(columns)
        for place, column in enumerate(table.columns):
            if (now := as_detections(column)) is not column:
                table = table.set_column(place, table.field(place).with_type(now.type), now)
        return table

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file, whole."""
        self.write(name, parquet_bytes(table))

    def append(self, name: str) -> IO[bytes]:
        """A file that grows, for logs. Object stores cannot append: there it is a buffer, written when closed."""
        if self.is_local:
            with telling(self.address(), "written"):
                self._folder(os.path.dirname(self.path(name)))
                return open(self.path(name), "ab")
        return _Upload(self, name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one driver. The lock ends with the process, however that ends. Local only.

        Nothing of it stays: neither the lock's file nor, where nothing was written, a directory that was not there.

        Raises:
            UserError: Another process holds it.
        """
        if not self.is_local or os.name != "posix":
            with self._holding():
                yield
            return
        made = _not_there(self.path())
        path = os.path.join(self.path(), LOCK)
        try:
            with ExitStack() as held:
                with telling(self.address(), "written"):
                    held.enter_context(_lock(path, self.address()))
                try:
                    with self._holding():
                        yield
                finally:
                    with suppress(OSError):  # somebody removed the directory, or it is read-only by now
                        os.unlink(path)
        finally:
            for folder in made:  # not if something is in it
                with suppress(OSError):
                    os.rmdir(folder)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def clean(self) -> None:
        """Remove temporary files and folders that a killed run left behind."""
        if not self.is_local or not os.path.isdir(self.path()):
            return
        import shutil

        for folder, folders, files in os.walk(self.path()):
            for name in [name for name in folders if name.startswith(TEMPORARY)]:
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
                folders.remove(name)
            for name in files:
                if name.startswith(TEMPORARY):
                    with telling(self.address(), "written"), suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))


def _not_there(path: str) -> list[str]:
    """A folder and those above it that are not there, the innermost first."""
    made = []
    while path and not os.path.isdir(path):
        made.append(path)
        path = os.path.dirname(path)
    return made


@contextmanager
def _lock(path: str, address: str) -> Iterator[None]:
    """Hold a file's lock. One that another process removes between opening and locking is opened again."""
    import fcntl

    while True:
        with suppress(FileExistsError):  # even so: whoever was the last in the folder may be removing it
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with ExitStack() as held:
            try:
                file = held.enter_context(open(path, "ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except BlockingIOError:
                raise UserError(f"another run is at work in {address}; wait for it, or stop it") from None
            except FileNotFoundError:
                continue
            if mine:
                yield
                return


class _Upload(io.BytesIO):
    def __init__(self, store: Store, name: str) -> None:
        earlier = store.read(name) if store.exists(name) else b""
        super().__init__()
        super().write(earlier)
        self._store, self._name = store, name

    def close(self) -> None:
        if not self.closed:
            self._store.write(self._name, self.getvalue())
        super().close()


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file: the same table gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, use_dictionary=False)
    return buffer.getvalue()

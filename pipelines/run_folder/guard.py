"""A whole run, and what its output may do to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.output_error import OutputError, is_below, output_error, removed
from labelmill.pipelines.run_folder.store import Store


@contextmanager
def guarded(store: Store, marker: str) -> Iterator[None]:
    """A whole run: whatever ends it because of its output, ends it with one sentence and nothing half-written.

    Args:
        store: The output, held.
        marker: A file that every output has.
    """
    try:
        yield
    except Exception as error:
        with suppress(Exception):
            store.clean()
        if isinstance(error, UserError) and not isinstance(error, OutputError):
            raise
        if store.is_local and _is_gone(error, store, marker):
            raise removed(store.address()) from error
        if isinstance(error, OutputError):
            raise
        known = output_error(error, store.address())
        if known is None:
            raise
        raise known from error


def _is_gone(error: BaseException, store: Store, marker: str) -> bool:
    link: BaseException | None = error
    while link is not None and not isinstance(link, FileNotFoundError):
        link = link.__cause__ or getattr(link, "cause", None)
    missed = is_below(link, store.address()) and not os.path.exists(store.path(marker))
    return missed or not os.path.isdir(store.path())

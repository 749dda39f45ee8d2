"""Where images come from: a source lists entries, a fetcher loads their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labelmill.pipelines.sources.base import Entry, Refused, Source, SourceError

if TYPE_CHECKING:
    from labelmill.pipelines.sources.fetch import Fetcher
    from labelmill.pipelines.sources.spec import SourceSpec, open_source

__all__ = ["Entry", "Fetcher", "Refused", "Source", "SourceError", "SourceSpec", "open_source"]

_HOMES = {"Fetcher": "fetch", "SourceSpec": "spec", "open_source": "spec"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"labelmill.pipelines.sources.{_HOMES[name]}"), name)

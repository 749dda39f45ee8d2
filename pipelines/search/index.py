"""A run's embeddings as a FAISS index, kept inside the run and built again when there are more shards.

::

    RUN/index/9f2c61ab04d7/5d0c….faiss     named by the embedding step's fingerprint and by which shards are in it
    RUN/index/9f2c61ab04d7/5d0c….json      written after it: without this file there is no index

Up to `FLAT_UP_TO` vectors the index is flat, which is exact. Above, it is IVF-PQ (Jégou et al. 2011, Product
quantization for nearest neighbor search): it holds a byte for four dimensions and gives candidates, which the caller
scores by the vectors themselves; those stay in the step's files only. How many lists are looked into is measured for
each index: the fewest that find 99 of 100 true neighbours of some of its own vectors.

One thread computes, so that the number of cores changes no index. `pipelines.search.build` says what a build takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.store import TEMPORARY, Store
from labelmill.pipelines.search.build import AT_LEAST, Facts, Found, Matrix, Rows, build
from labelmill.pipelines.steps import Input

VERSION = 1
"""Raised when an index of the same vectors would hold something else."""

FLAT_UP_TO = 100_000
"""Vectors in a flat index, at most: 205 MB at 512 dimensions."""

CANDIDATES = 20
"""Candidates for each result that is wanted."""
MARGIN = 4
"""So many times the lists that the index's own vectors need: a text's vector lies apart from those of all images."""


@dataclass(frozen=True)
class SearchIndex:
    """Finds the image_ids whose vectors have the highest cosine with a query.

    Attributes:
        index: A FAISS index whose ids are image_ids.
        facts: What is known about it.
    """

    index: Any
    facts: Facts

    def candidates(self, query: Matrix, count: int, allowed: NDArray[np.uint8] | None = None) -> Found:
        """The image_ids that can be among the `count` nearest; more than `count`, in no particular order.

        Args:
            query: float32 (dimensions,), L2-normalised.
            count: How many results are wanted.
            allowed: One bit for each image_id, lowest bit first: those that may be found; None for all.
        """
        import faiss

        flat = self.facts.kind == "flat"
        there = self.facts.vectors if allowed is None else int(np.bitwise_count(allowed).sum())
        wanted = min(self.facts.vectors, count if flat else max(AT_LEAST, CANDIDATES * count))
        if not wanted:
            return np.zeros(0, dtype=np.int64)
        parameters: Any = faiss.SearchParameters() if flat else faiss.SearchParametersIVF()
        if allowed is not None:
            selector: Any = faiss.IDSelectorBitmap
            parameters.sel = selector(allowed)
        if not flat:
            # Where few may be found, their neighbours lie in more lists.
            share = max(1.0, self.facts.vectors / max(1, there))
            parameters.nprobe = min(self.index.nlist, int(np.ceil(MARGIN * self.facts.lists * share)))
        with _one_thread():
            found = self.index.search(query[None], wanted, params=parameters)[1][0]
            if not flat and (found < 0).any():
                parameters.nprobe = self.index.nlist
                found = self.index.search(query[None], wanted, params=parameters)[1][0]
        ids: Found = found[found >= 0]
        return ids


def open_index(layout: Layout, column: Input, shards: dict[int, int], flat_up_to: int = FLAT_UP_TO) -> SearchIndex:
    """The index of a column of vectors; built where there is none of these shards yet.

    Where the run cannot be written to, the index is built each time and not kept.

    Args:
        layout: The run.
        column: Of type fixed_size_list of a floating type; written by a step.
        shards: Number of images by shard: those for which the step is done.
        flat_up_to: Above so many vectors the index is not exact; 1,000 at least.
    """
    assert column.step is not None
    if flat_up_to < 1000:
        raise ValueError(f"flat_up_to must be at least 1000, for a quantizer to learn from, but is {flat_up_to}")
    revision = layout.departed.revision
    content = json.dumps([VERSION, column.column, sorted(shards), flat_up_to, *[revision] * bool(revision)])
    folder = f"index/{layout.steps[column.step].fingerprint}"
    name = f"{folder}/{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    known = _read(layout.store, name)
    if known is not None:
        return known
    with _one_thread():
        built = SearchIndex(*build(Rows(layout, column, shards), flat_up_to))
    try:
        return _keep(layout.store, folder, name, built)
    except OSError:  # a read-only run, or a full disk
        return built


def _keep(store: Store, folder: str, name: str, built: SearchIndex) -> SearchIndex:
    """Write an index, and remove those of the same step that held fewer shards."""
    import faiss

    with tempfile.TemporaryDirectory(prefix="labelmill-") as elsewhere:
        if store.is_local:
            os.makedirs(store.path(folder), exist_ok=True)
        path = os.path.join(store.path(folder) if store.is_local else elsewhere, f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            faiss.write_index(built.index, path)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        facts = Facts(**{**asdict(built.facts), "checksum": _checksum(path)})
        if store.is_local:
            os.replace(path, store.path(f"{name}.faiss"))
        else:
            store.fs.put_file(path, store.path(f"{name}.faiss"))
    store.write(f"{name}.json", (json.dumps(asdict(facts), indent=2) + "\n").encode())
    for other in store.names(folder):
        if not f"{folder}/{other}".startswith(name):
            store.fs.rm(store.path(f"{folder}/{other}"))
    return SearchIndex(built.index, facts)


def _read(store: Store, name: str) -> SearchIndex | None:
    """A kept index; None where there is none or the file is not what was written."""
    import faiss

    try:
        facts = Facts(**json.loads(store.read(f"{name}.json")))
        with tempfile.TemporaryDirectory(prefix="labelmill-") as folder:
            path = store.path(f"{name}.faiss")
            if not store.is_local:
                path = os.path.join(folder, "index.faiss")
                store.fs.get_file(store.path(f"{name}.faiss"), path)
            # FAISS reads what its file says: no byte of a file that is not ours gets there.
            if _checksum(path) != facts.checksum:
                return None
            return SearchIndex(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC if store.is_local else 0), facts)
    except (FileNotFoundError, ValueError, TypeError, RuntimeError):
        return None


def _checksum(path: str) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def _one_thread() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield

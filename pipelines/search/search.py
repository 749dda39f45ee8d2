"""Finds the images of a run that are nearest to a text, to an image file, or to one of its own images."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import ImageOperator
from labelmill.operators.columns.vectors import Vectors, holds_vectors
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.card import ModelCard
from labelmill.pipelines.engine.work import load, use_threads
from labelmill.pipelines.errors import UserError, nearest
from labelmill.pipelines.run_folder.image_story import explain_image
from labelmill.pipelines.run_folder.layout import Layout, column_of
from labelmill.pipelines.run_folder.outcomes import note_decisions
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.run_folder.shards import read_shard, size_of_shards
from labelmill.pipelines.search.index import open_index
from labelmill.pipelines.sources.storage import Storage
from labelmill.pipelines.sources.uri import as_location
from labelmill.pipelines.steps import Input, Step

Figures = dict[str, Any]
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """What to look for: exactly one of three.

    Attributes:
        text: What the images should show, in words.
        image: An image file: a path, or a URL that sources know.
        key: An image of the run, by its key or image_id.

    Raises:
        UserError: None is given, or more than one.
    """

    text: str | None = None
    image: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.text, self.image, self.key) if value is not None]
        if len(given) != 1:
            raise UserError(f"a search must have one of a text, --image FILE and --key KEY but has {len(given)}")
        if not given[0].strip():
            raise UserError("what to look for must not be empty")


def search_run(folder: str, query: Query, top: int = 20, everything: bool = False, step: str | None = None) -> Figures:
    """The images whose embeddings have the highest cosine with a query's, as plain values.

    Among equal cosines the first key comes first.

    Args:
        folder: The run. It need not be finished.
        query: What to look for. An image of the run is not found itself.
        top: How many images, at most.
        everything: Find images too that the run dropped, that are duplicates, or that failed in another step.
        step: Name of the step that made the embeddings; the only one if not given.

    Returns:
        ``query``: what was asked; ``step`` and ``model`` (the card's name, or None); ``index``: its kind, how many
        vectors it holds, the share of nearest neighbours that it finds (None when exact), and of how many of the run's
        shards it knows; ``results``: rank from 1, key, image_id, cosine, outcome so far, and uri of each image.

    Raises:
        UserError: There are no such embeddings, or the query cannot be compared with them.
    """
    pipeline, layout, shards = reopen(folder)
    column = _embeddings(folder, layout, step)
    assert column.step is not None
    chosen = layout.steps[column.step]
    done = layout.done(chosen.position) & shards.keys()
    if not done:
        raise UserError(f"step {chosen.name!r} of {folder} has no result yet; run its pipeline first")
    use_threads()
    vector, own = _vector(folder, query, chosen, column)
    index = open_index(layout, column, {shard: shards[shard] for shard in done})
    size = size_of_shards(layout.store, shards, pipeline.settings.shard_size)
    allowed = None if everything else _kept_bits(layout, shards, size)
    ids = index.candidates(vector, top + (own is not None), allowed)
    rows = _rows(layout, column, vector, ids[ids != own] if own is not None else ids, size)
    rows = sorted(rows, key=lambda row: (-row["cosine"], row["key"]))[:top]
    outcome = _outcomes(layout, rows, size) if everything else ["kept"] * len(rows)
    facts = index.facts
    return {
        "run": folder,
        "query": {name: value for name, value in vars(query).items() if value is not None},
        "step": chosen.name,
        "model": card.name if (card := _card(chosen)) is not None else None,
        "everything": everything,
        "index": {"kind": facts.kind, "vectors": facts.vectors, "recall": facts.recall, "shards": len(done),
                  "shards_of_run": len(shards)},
        "results": [
            {"rank": rank, **row, "cosine": round(row["cosine"], 6), "outcome": became}
            for rank, (row, became) in enumerate(zip(rows, outcome, strict=True), 1)
        ],
    }  # fmt: skip


def _embeddings(folder: str, layout: Layout, name: str | None) -> Input:
    """The column of vectors to search."""
    columns = {
        step.name: Input(step.position, field.name, field.type)
        for step in layout.steps
        for field in reversed(list(step.operator.writes()))
        if holds_vectors(field.type)
    }
    if not columns:
        raise UserError(f"the run {folder} has no embeddings: add a step such as `- embed: {{model: …}}` and run it")
    if name is None and len(columns) > 1:
        raise UserError(f"the run {folder} has more than one step with embeddings; add --step: {', '.join(columns)}")
    if name is not None and name not in columns:
        raise UserError(f"--step must be one of {', '.join(columns)} but is {name!r}{nearest(name, columns)}")
    return columns[name if name is not None else next(iter(columns))]


def _vector(folder: str, query: Query, step: Step, column: Input) -> tuple[Vector, int | None]:
    """The query's vector, L2-normalised; and the image_id where it is an image of the run."""
    if query.text is not None:
        return _of_text(query.text, step), None
    if query.image is not None:
        return _of_file(query.image, step, column), None
    assert query.key is not None
    story = explain_image(folder, query.key)
    told = story["steps"][step.position]
    values = told["columns"].get(column.column)
    if values is None:
        against = [each for each in story["steps"] if each["decision"] in ("dropped", "duplicate", "failed")]
        why = f"{against[0]['step']}: {against[0]['decision']}, {against[0]['reason']}" if against else told["decision"]
        raise UserError(f"the image {story['key']!r} has no embedding of step {step.name!r}: {why}")
    return _usable(pa.array([values], column.type), f"the image {story['key']!r}"), story["image_id"]


def _of_text(text: str, step: Step) -> Vector:
    card = _card(step)
    if card is None:
        raise UserError(
            f"step {step.name!r} has no model card for embedding, so texts cannot be compared with its vectors; "
            "use --image FILE or --key KEY"
        )
    try:
        encoder.check(card, text=True)
    except OperatorError as error:
        raise UserError(f"{error}; --image FILE and --key KEY need no text side") from error
    try:
        vector: Vector = encoder.text_encoder(card).encode([text])[0]
    except OperatorError as error:
        raise UserError(str(error)) from error
    return vector


def _of_file(file: str, step: Step, column: Input) -> Vector:
    """The vector that the step itself gives for a file, decoded and prepared as an image of the run."""
    operator = step.operator
    if not isinstance(operator, ImageOperator) or operator.reads():
        raise UserError(f"step {step.name!r} needs more than an image file to make a vector; use --key KEY")
    try:
        location = as_location(file)
    except ValueError as error:
        raise UserError(f"--image: {error}") from error
    data = Storage().read(location)
    load(step)
    rows = pa.table({"image_id": pa.array([0], pa.int64()), "key": [file]})
    job = Job(Worker(operator), rows, np.array([True]))
    table, _ = apply(job, ShardImages([file], lambda _: data), threads=1)
    answer = table.slice(0, 1).to_pylist()[0]
    if answer["decision"] != "kept":
        raise UserError(f"--image {file}: {answer['decision.reason']}")
    return _usable(table.column(column.column), f"--image {file}")


def _usable(values: pa.Array | pa.ChunkedArray, whose: str) -> Vector:
    vectors = Vectors(pa.chunked_array([values]) if isinstance(values, pa.Array) else values)
    if vectors.problems:
        raise UserError(f"{whose}: {vectors.problems[0]}")
    return vectors.take(np.array([0]))[0]


def _card(step: Step) -> ModelCard | None:
    card = getattr(step.operator.params, "model", None)
    return card if isinstance(card, ModelCard) and card.task == "embedding" else None


def _rows(
    layout: Layout, column: Input, vector: Vector, ids: NDArray[np.int64], shard_size: int
) -> list[dict[str, Any]]:
    """What is told of each of some images; cosines are those of the stored vectors, whatever the index made of them."""
    rows = []
    for shard, places in _by_shard(ids.tolist(), shard_size).items():
        told = read_shard(layout.store, shard, ["image_id", "key", "uri"]).take(pa.array(places)).to_pylist()
        stored = Vectors(column_of(layout, column, shard)).take(np.array(places))
        for row, cosine in zip(told, stored.astype(np.float64) @ vector.astype(np.float64), strict=True):
            rows.append({**row, "cosine": float(cosine)})
    return rows


def _by_shard(ids: Iterable[int], shard_size: int) -> dict[int, list[int]]:
    """Rows of each shard; an image_id is shard × shard size + row + 1."""
    places = defaultdict(list)
    for image_id in sorted(ids):
        places[(image_id - 1) // shard_size].append((image_id - 1) % shard_size)
    return places


def _kept_bits(layout: Layout, shards: dict[int, int], shard_size: int) -> NDArray[np.uint8]:
    """One bit for each image_id, lowest bit first: whether no step has decided against the image so far.

    Reading every step's decisions takes a while for a large run: they are kept until a step or a shard is added.
    """
    done = {step.position: layout.done(step.position) & shards.keys() for step in layout.steps}
    steps = [[step.fingerprint, sorted(done[step.position])] for step in layout.steps]
    content = json.dumps([shard_size, steps, layout.departed.revision])
    name = f"kept-{hashlib.sha256(content.encode()).hexdigest()[:16]}.bits"
    length = (max(shards) + 1) * shard_size + 1
    try:
        bits = np.frombuffer(layout.store.read(f"index/{name}"), dtype=np.uint8)
        if len(bits) == (length + 7) // 8:
            return bits.copy()
    except FileNotFoundError:
        pass
    kept = np.zeros(length, dtype=bool)
    for shard, count in shards.items():
        first = shard * shard_size + 1
        kept[first : first + count] = [became == "kept" for became in _outcome_so_far(layout, shard, count, done)]
    bits = np.packbits(kept, bitorder="little")
    try:
        layout.store.write(f"index/{name}", bits.tobytes())
        for other in layout.store.names("index"):
            if other.startswith("kept-") and other != name:
                layout.store.fs.rm(layout.store.path(f"index/{other}"))
    except OSError:  # a read-only run: read again next time
        pass
    return bits


def _outcomes(layout: Layout, rows: Sequence[dict[str, Any]], shard_size: int) -> list[str]:
    """What became so far of each of some images."""
    done = {step.position: layout.done(step.position) for step in layout.steps}
    became: dict[int, str] = {}
    for shard, places in _by_shard((row["image_id"] for row in rows), shard_size).items():
        final = _outcome_so_far(layout, shard, shard_size, done)
        became.update((shard * shard_size + place + 1, final[place]) for place in places)
    return [became[row["image_id"]] for row in rows]


def _outcome_so_far(layout: Layout, shard: int, count: int, done: dict[int, set[int]]) -> list[str]:
    """The first decision against each image of a shard, or kept. Steps that are not done yet say nothing."""
    final = ["kept"] * count
    for row in layout.departed.rows(shard):
        final[row] = "gone"
    for step in layout.steps:
        if shard not in done[step.position]:
            continue
        note_decisions(final, layout.table(step.position, shard, ["decision"]).column(0).to_pylist())
    return final

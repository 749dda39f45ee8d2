"""This project's side of `tests.benchmarks.compare`: `inspect` and `embed` as a worker applies them, `deduplicate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from compare_side import Request, pairs_of, serve

SHARD = 256
SAVED_ANEW = 4
"""Bits that differ at most between the hashes of a picture and of a copy that was saved anew."""
ISSUES = {"dark": 0.32, "light": 0.05, "odd_aspect_ratio": 0.35, "low_information": 0.3, "blurry": 0.29}
"""CleanVision's thresholds."""


def looked_at(folder: str, *steps: Any) -> Any:
    """What image steps write, shard by shard in one thread, decoding once; without the images that failed."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from labelmill.operators.applying.apply import Job, apply_together
    from labelmill.operators.applying.shard_images import ShardImages
    from labelmill.operators.applying.worker import Worker

    workers, paths = [Worker(step) for step in steps], sorted(Path(folder).iterdir())
    tables = []
    for start in range(0, len(paths), SHARD):
        files = paths[start : start + SHARD]
        rows = pa.table({"image_id": range(start + 1, start + 1 + len(files)), "key": [path.name for path in files]})
        images = ShardImages([str(path) for path in files], lambda uri: Path(uri).read_bytes())
        images.remember = False
        active = np.ones(len(files), dtype=bool)
        done = apply_together([Job(worker, rows, active) for worker in workers], images, threads=1)
        for worker, (found, _) in zip(workers, done, strict=True):
            kept = pc.equal(found.column("decision"), "kept")
            active &= kept.to_numpy(zero_copy_only=False)
            for name in worker.operator.writes().names:
                rows = rows.append_column(name, found.column(name))
        tables.append(rows.filter(pa.array(active)))
    return pa.concat_tables(tables)


def inspector() -> Any:
    from labelmill.operators.inspect import Inspect

    operator = Inspect(Inspect.Params())
    operator.load()
    return operator


def embedder() -> Any:
    """`embed` with the CLIP miniature, which learned on other scenes of the drawn world which pictures are copies."""
    import torch

    from labelmill.operators.embed import Embed
    from labelmill.operators.models import load_card
    from labelmill.operators.models.card import ROOT

    torch.set_num_threads(1)
    card = load_card(ROOT / "conf" / "models" / "clip-miniature.yaml")
    operator = Embed(Embed.Params.model_validate({"model": card}))
    operator.load()
    return operator


def deduplicated(table: Any, **params: Any) -> Any:
    """The rows that `deduplicate` decided about first: image_id, key, group."""
    import pyarrow as pa

    from labelmill.operators.deduplicate import Deduplicate

    operator = Deduplicate(Deduplicate.Params.model_validate(params))
    new = table.select(["image_id", "key", *operator.reads()])
    old = new.slice(0, 0)
    for field in [*operator.writes(), pa.field("decision", pa.string())]:
        old = old.append_column(field, pa.array([], field.type))
    columns = operator.compute(new, old).columns
    assert columns is not None
    return new.select(["image_id", "key"]).append_column("group", columns.column("group"))


def told(table: Any) -> list[list[str]]:
    """Pairs of a kept image and each of its copies."""
    sets: dict[int, list[str]] = {}
    names = dict(zip(table.column("image_id").to_pylist(), table.column("key").to_pylist(), strict=True))
    for image_id, group in zip(table.column("image_id").to_pylist(), table.column("group").to_pylist(), strict=True):
        if image_id != group:
            sets.setdefault(group, [names[group]]).append(names[image_id])
    return pairs_of(list(sets.values()))


def copies(request: Request) -> Any:
    """By `hashes`, by `embeddings`, or by `both`; exact copies count where files are inspected.

    Beside embeddings hashes have to be as near as those of a copy that was saved anew: more bits would add wrong pairs.
    """
    import cv2  # noqa: F401
    import pillow_heif  # noqa: F401
    import xxhash  # noqa: F401

    import labelmill.operators.deduplicate  # noqa: F401

    steps: list[Any] = []
    params: dict[str, Any] = {}
    if request["by"] == "embeddings":
        params["by"] = ()
    else:
        steps.append(inspector())
        params.update(distance=request["distance"] if request["by"] == "hashes" else SAVED_ANEW, flips=True)
    if request["by"] != "hashes":
        steps.append(embedder())
        params["threshold"] = request["same"]

    def work() -> Any:
        return deduplicated(looked_at(request["images"], *steps), **params)

    return work, lambda table: {"pairs": told(table), "version": f"labelmill, {request['by']}"}


def issues(request: Request) -> Any:
    from labelmill.operators.odd_size import OddSize

    copies({**request, "by": "hashes"})  # imports
    inspect = inspector()

    def work() -> Any:
        table = looked_at(request["images"], inspect)
        sizes = table.select(["image_id", "key", "size"])
        found = OddSize(OddSize.Params()).compute(sizes, sizes.slice(0, 0)).columns
        assert found is not None
        return table.append_column("odd_size", found.column(0)), deduplicated(table, distance=0)

    def tell(result: Any) -> dict[str, Any]:
        table, groups = result
        keys = table.column("key").to_pylist()
        limits = {**ISSUES, "grayscale": 0.5, "odd_size": 0.5}
        below = {
            issue: [key for key, score in zip(keys, table.column(issue).to_pylist(), strict=True) if score < limit]
            for issue, limit in limits.items()
        }
        return {"pairs": told(groups), "issues": below}

    return work, tell


def vectors(request: Request) -> Any:
    import faiss  # noqa: F401
    import numpy as np
    import pyarrow as pa
    import threadpoolctl  # noqa: F401
    import torch

    import labelmill.operators.deduplicate  # noqa: F401

    torch.set_num_threads(1)
    rows = np.load(request["vectors"])
    table = pa.table(
        {
            "image_id": range(len(rows)),
            "key": [f"{row:09d}" for row in range(len(rows))],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float16).ravel()), rows.shape[1]),
        }
    )

    return lambda: deduplicated(table, by=(), threshold=request["threshold"]), removed


def hashes(request: Request) -> Any:
    import numpy as np
    import pyarrow as pa

    import labelmill.operators.deduplicate  # noqa: F401

    values = np.load(request["hashes"])
    keys = [f"{row:09d}" for row in range(len(values))]
    table = pa.table({"image_id": range(len(values)), "key": keys, "phash": values})
    return lambda: deduplicated(table, by=(), distance=request["distance"]), removed


def removed(found: Any) -> dict[str, Any]:
    """Rows whose group is another's."""
    import numpy as np

    groups = found.column("group").to_numpy()
    return {"removed": np.flatnonzero(groups != np.arange(len(groups))).tolist()}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.path.remove(str(Path(__file__).parent))  # this folder has a module named `operators` too
    serve({"copies": copies, "issues": issues, "hashes": hashes, "vectors": vectors}, "labelmill")

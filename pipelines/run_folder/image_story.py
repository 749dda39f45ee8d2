"""One image's story: where it is, and what each step computed and decided."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from labelmill.pipelines.errors import UserError, nearest
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.run_folder.shards import read_shard


def explain_image(folder: str, key: str) -> dict[str, Any]:
    """One image's story: where it is, and for each step what it computed and decided.

    Raises:
        UserError: The run has no such image.
    """
    _, layout, shards = reopen(folder)
    shard, row = _find(layout, shards, key)
    image = read_shard(layout.store, shard).slice(row, 1).to_pylist()[0]
    gone = row in layout.departed.rows(shard)
    steps = []
    for step in layout.steps:
        try:
            values = layout.table(step.position, shard).slice(row, 1).to_pylist()[0]
        except FileNotFoundError:
            steps.append({"step": step.name, "decision": "not done yet", "columns": {}})
            continue
        columns = {name: values[name] for name in step.operator.writes().names}
        told = {name: values[f"decision.{name}"] for name in ("reason", "score", "threshold")}
        steps.append({"step": step.name, "decision": values["decision"] or "passed over", **told, "columns": columns})
    return {"run": folder, "shard": shard, "gone": gone, **image, "steps": steps}


def _find(layout: Layout, shards: dict[int, int], key: str) -> tuple[int, int]:
    import pyarrow.compute as pc

    keys: list[str] = []
    for shard in sorted(shards):
        table = read_shard(layout.store, shard, ["image_id", "key"])
        row = pc.index(table.column("key"), pa.scalar(key)).as_py()
        if row < 0 and key.isdecimal():
            row = pc.index(table.column("image_id"), pa.scalar(int(key))).as_py()
        if row >= 0:
            return shard, row
        if len(keys) < 100_000:
            keys += table.column("key").to_pylist()
    hint = nearest(key, keys) or (f"; its keys are like {keys[0]!r}, its image_ids like 1" if keys else "")
    raise UserError(f"the run has no image {key!r}{hint}")

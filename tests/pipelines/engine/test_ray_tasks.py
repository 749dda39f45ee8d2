"""Parts of a dataset step as Ray tasks: the same result, whatever happens to a worker, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine import ray_tasks
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run import Options, run
from tests.drawing import folder_of_images
from tests.pipelines.test_run import tree
from tests.toys import logged

IMAGES = 22


def go(options: Options, output: str, **parted: Any) -> dict[str, Any]:
    steps = [{"tests.toys:Parted": parted}]
    document = {"name": "toy", "source": {"folder": "data"}, "output": output, "shard_size": 5, "steps": steps}
    Path("p.yaml").write_text(yaml.safe_dump(document))
    return run(load_pipeline("p.yaml"), options, TerminalReporter())


def squares(output: str) -> list[int]:
    files = sorted(Path(output).glob("steps/*/*.parquet"))
    return [value for file in files for value in pq.ParquetFile(file).read().column("square").to_pylist()]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_that_dies_is_replaced_and_the_result_is_that_of_one_process(workers: int) -> None:
    folder_of_images(Path("data"), IMAGES)
    go(Options(inline=True), "alone")
    log, marker = Path("parts.log").absolute(), Path("died").absolute()
    go(Options(workers=workers, ray=True), "spread", log=str(log), die_marker=str(marker))
    assert marker.exists(), "a worker died"
    assert squares("spread") == squares("alone") == [number**2 for number in range(1, IMAGES + 1)]
    assert list(tree("spread/steps").values()) == list(tree("alone/steps").values()), "the same bytes"
    assert len(logged(log)) > IMAGES and os.getpid() not in logged(log)
    assert not [path for path in Path("spread").iterdir() if path.name.startswith(".tmp-")]


def test_a_part_that_fails_ends_the_run_with_its_own_words() -> None:
    folder_of_images(Path("data"), IMAGES)
    with pytest.raises(Exception, match="this part was told to fail"):
        go(Options(workers=2, ray=True), "spread", fail=3)
    assert not list(Path("spread").glob("steps/*/*.parquet"))
    assert not [path for path in Path("spread").iterdir() if path.name.startswith(".tmp-")]


@pytest.mark.parametrize(
    ("gpu", "free", "width"),
    [
        (True, [4.0], 4),
        (True, [0.0, 0.5, 1.0], 4),
        (True, [0.0], 16),
        (False, [4.0], 16),
    ],
    ids=["free", "given back", "held by others", "not wanted"],
)
def test_parts_take_gpus_that_are_free_and_else_cpus(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, free: list[float], width: int
) -> None:
    import ray

    monkeypatch.setattr(ray_tasks, "WAIT_SECONDS", 0.7)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 4.0})
    seen = iter([*free, *[free[-1]] * 100])
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": next(seen)})
    tasks = ray_tasks.RayTasks("folder", gpu)
    assert tasks.width == width

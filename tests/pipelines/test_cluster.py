"""A cluster on this machine runs what `ray job submit --working-dir .` ships, and loses a node in the middle."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.drawing import folder_of_images
from tests.pipelines.test_run import tree
from tests.toys import logged

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGES, SHARD = 60, 3
WORKERS = 2
PATIENCE = 300.0
"""Seconds that a part may take on a machine that is busy with other things; 10 to 20 where it is not."""

STAMP = '''
from tests.toys import Brightness


class Stamp(Brightness):
    """An operator that only the shipped copy of the repository has."""

    name = "stamp"
'''


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What arrives on a cluster, packed as Ray packs a working directory."""
    from ray._private.runtime_env.packaging import create_package

    folder = tmp_path_factory.mktemp("shipped")
    package = folder / "package.zip"
    create_package(str(CHECKOUT), package, include_gitignore=True, logger=logging.getLogger("quiet"))
    with zipfile.ZipFile(package) as packed:
        packed.extractall(folder / "labelmill")
    return folder


def test_what_is_shipped_is_small_and_whole(shipped: Path) -> None:
    copy = shipped / "labelmill"
    assert (shipped / "package.zip").stat().st_size < 100e6, "Ray takes 512 MiB at most"
    assert {path.name for path in copy.iterdir()} >= {"conf", "labelmill", "operators", "pipelines", "pyproject.toml"}
    for left_behind in (".git", ".venv", "build", "data", "runs", "weights"):
        assert not (copy / left_behind).exists(), left_behind
    ours = {path.name for path in (CHECKOUT / "operators/miniatures").rglob("*.safetensors")}
    assert {path.name for path in (copy / "operators/miniatures").rglob("*.safetensors")} == ours


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without a CPU or GPU for work, and workers of one CPU each."""
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "5")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False, "num_gpus": 0}
    made = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0})
    try:
        while len(made.worker_nodes) < WORKERS:
            add_worker(made, {**small, "num_cpus": 1})
        made.wait_for_nodes(timeout=PATIENCE)
        yield made
    finally:
        made.shutdown()


def add_worker(cluster: Any, arguments: dict[str, Any]) -> None:
    """Add a node. Ray gives it 30 s to start, which on a busy machine may be too few: then it is tried again."""
    for attempts_left in (2, 1, 0):
        try:
            cluster.add_node(wait=False, **arguments)
            return
        except Exception as error:
            if "timed out during startup" not in str(error) or not attempts_left:
                raise


def document(output: str) -> dict[str, Any]:
    slow = {"log": str(Path(f"{output}.log").absolute()), "sleep": 0.1}
    return {
        "name": "cluster",
        "source": {"folder": str(Path("data").absolute())},
        "output": str(Path(output).absolute()),
        "shard_size": SHARD,
        "steps": ["inspect", {"stamp": slow}, {"keep": "brightness >= 60"}, "deduplicate", {"odd_size": None}],
        "export": {"split": {"train": 0.5, "val": 0.5}, "coco": {}, "yolo": {}},
    }


def start(home: Path, output: str, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """The driver, in the shipped copy as its working directory, as Ray starts the entrypoint of a job."""
    file = Path(f"{output}.yaml").absolute()
    file.write_text(yaml.safe_dump(document(output)))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-m", "labelmill", "run", str(file), *flags], cwd=home, env={**clean, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished_shards(output: str) -> set[int]:
    return {int(path.stem) for path in Path(output).glob("steps/*stamp*/[0-9]*.parquet")}


def images_of(shards: set[int]) -> set[int]:
    return {shard * SHARD + row + 1 for shard in shards for row in range(SHARD)}


def decisions(output: str) -> list[dict[str, Any]]:
    """What every step decided of every image, and why: says more than that some file differs."""
    files = sorted(Path(output).glob("steps/*/[0-9]*.parquet"))
    return [
        {"file": str(file.relative_to(output)), **row}
        for file in files
        for row in pq.ParquetFile(file).read(["image_id", "decision", "decision.reason"]).to_pylist()
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_node_dies_and_nothing_is_lost_or_done_twice(shipped: Path, cluster: Any) -> None:
    home = Path("labelmill").absolute()
    shutil.copytree(shipped / "labelmill", home)
    (home / "operators/stamp.py").write_text(STAMP)
    registry = home / "operators/registry.py"
    registry.write_text(
        registry.read_text().replace("BUILT_IN = {", 'BUILT_IN = {\n    "stamp": "labelmill.operators.stamp:Stamp",')
    )
    folder_of_images(Path("data"), IMAGES)

    job = json.dumps({"runtime_env": {"working_dir": str(home)}})
    process = start(home, "run", "--address", cluster.address, RAY_JOB_CONFIG_JSON_ENV_VAR=job)
    deadline = time.monotonic() + PATIENCE
    while len(finished_shards("run")) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    before = finished_shards("run")
    victim = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0]
    cluster.remove_node(victim, allow_graceful=False)
    assert 0 < len(before) < IMAGES / SHARD, "the node must die in the middle of the run"
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    assert "Traceback" not in told

    calls = Counter(logged("run.log"))
    assert set(calls) == set(range(1, IMAGES + 1)), "nothing is lost"
    assert all(calls[image] == 1 for image in images_of(before)), "nothing finished is done twice"
    again = {image for image, times in calls.items() if times > 1}
    assert len(again) <= 2 * SHARD, "only the shards that the node was on are computed again"

    inline = start(home, "whole", "--inline")
    told, _ = inline.communicate(timeout=PATIENCE)
    assert inline.returncode == 0, told
    assert decisions("run") == decisions("whole")
    found = {path.replace("run/", "whole/", 1): digest for path, digest in tree("run/exports", "run/steps").items()}
    assert found == tree("whole/exports", "whole/steps")
    assert (
        json.loads(Path("run/summary.json").read_text())["outcome"]
        == json.loads(Path("whole/summary.json").read_text())["outcome"]
    )

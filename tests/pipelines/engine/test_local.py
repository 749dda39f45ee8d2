"""What processes of one machine do beyond what test_run.py and test_kill.py ask of every runner."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine import runners
from labelmill.pipelines.engine.local import local_session
from labelmill.pipelines.engine.resources import Resources
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run import Options, run
from tests.drawing import folder_of_images

OPERATORS = '''
import os, pathlib, threading, time
import pyarrow as pa
from labelmill.operators.base import DatasetOperator, ImageOperator, Needs, OperatorParams, TableResult, tuning

class Where(ImageOperator):
    """Which process an image was seen by, and which GPU that has."""
    class Params(OperatorParams):
        gb: float = 4.0
        gpu: bool = True
    def needs(self): return Needs(gpu=self.params.gpu, memory_gb=self.params.gb)
    def writes(self): return pa.schema([("gpu", pa.string()), ("pid", pa.int64())])
    def infer(self, items):
        time.sleep(0.2)
        return [{"gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "none"), "pid": os.getpid()} for _ in items]

class Dies(DatasetOperator):
    """Dies as often as it is told to."""
    class Params(OperatorParams):
        times: int = tuning(0)
    def writes(self): return pa.schema([("number", pa.int64())])
    def compute(self, new, old):
        for number in range(self.params.times):
            try:
                os.close(os.open(f"died{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os._exit(9)
        return TableResult(pa.table({"number": pa.array(range(new.num_rows), pa.int64())}))

class LosesGpu(Where):
    """Says once, or always, what torch says of a GPU that has failed."""
    def infer(self, items):
        if self.params.gb > 1 or not os.path.exists("lost"):
            open("lost", "w").close()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().infer(items)

class Cuts(Where):
    """Raises what no runner knows."""
    def infer(self, items): raise SystemExit("cut")
'''

THREAD = "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def go(steps: list[Any], options: Options | None = None, images: int = 12, output: str = "run") -> list[str]:
    if not Path("data").exists():
        folder_of_images(Path("data"), images)
    if not Path("user_local.py").exists():
        Path("user_local.py").write_text(OPERATORS)
    document = {"name": "toy", "source": {"folder": "data"}, "output": output, "shard_size": 2, "steps": steps}
    Path("p.yaml").write_text(yaml.safe_dump(document))
    notes = Notes()
    run(load_pipeline("p.yaml"), options or Options(workers=2), notes)  # type: ignore[arg-type]
    return notes.notes


def rows(output: str = "run") -> list[dict[str, Any]]:
    return [
        row
        for path in sorted(Path(output).glob("steps/*/*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]


@pytest.fixture(autouse=True)
def _fresh_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "user_local", raising=False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "resources_here", lambda *_: Resources(4.0, 2.0, 10.0, 64.0))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("visible", "expected"), [(None, {"0", "1"}), ("3,5", {"3", "5"})])
def test_every_gpu_has_workers_and_a_worker_sees_its_own_alone(
    visible: str | None, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    notes = go([{"user_local:Where": {}}], Options())
    assert {row["gpu"] for row in rows()} == expected
    assert len({row["pid"] for row in rows()}) > 1 and os.getpid() not in {row["pid"] for row in rows()}
    assert "on 2 GPUs" in notes[0]


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_without_a_gpu_sees_none() -> None:
    go([{"user_local:Where": {"gpu": False, "gb": 0}}], Options())
    assert {row["gpu"] for row in rows()} == {""}


def test_a_library_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("user_local.py").write_text(OPERATORS + THREAD)
    go([{"user_local:Where": {"gb": 0.1}}])
    pids = {row["pid"] for row in rows()}
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_dataset_step_that_dies_is_tried_again_and_at_last_told() -> None:
    go([{"user_local:Dies": {"times": 2}}])
    assert Path("died1").exists()
    with pytest.raises(UserError, match="workers died 5 times on the same work"):
        go([{"user_local:Dies": {"times": 9}}], output="other")


def test_a_gpu_that_only_another_process_can_mend_gets_one() -> None:
    go([{"user_local:LosesGpu": {"gb": 0.1}}])
    assert Path("lost").exists() and all(row["decision"] == "kept" for row in rows())
    with pytest.raises(UserError, match="lost its GPU: CUDA error"):
        go([{"user_local:LosesGpu": {"gb": 1.1}}], output="other")


def test_what_a_worker_raises_is_raised_here_with_its_traceback_and_no_process_stays() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(SystemExit, match="cut") as caught:
        go([{"user_local:Cuts": {"gb": 0.1}}])
    assert any("user_local.py" in note for note in caught.value.__notes__)
    gone(before)


def test_processes_end_with_the_block_whatever_they_do() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(KeyboardInterrupt), local_session():
        raise KeyboardInterrupt
    gone(before)


def gone(before: set[int]) -> None:
    deadline = time.monotonic() + 10
    while {child.pid for child in psutil.Process().children(recursive=True)} - before:
        assert time.monotonic() < deadline, "a process stays"
        time.sleep(0.05)


def test_memory_bounds_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "resources_here", lambda *_: Resources(8.0, memory_gb=13.0))
    notes = go([{"user_local:Where": {"gb": 4.0}}], Options())
    assert notes[0].startswith("runs in 2 processes of this machine")  # (1 + 4) GB each of 80 % of 13 GB


@pytest.mark.parametrize(
    ("options", "images", "told"),
    [
        (Options(), 2, "runs in this process, as there is one shard to do"),
        (Options(workers=1), 12, "runs in this process, as there is one CPU for it"),
        (Options(local=True), 2, "runs in 1 process of this machine"),
        (Options(workers=2), 12, "runs in 2 processes of this machine"),
        (Options(inline=True), 12, None),
    ],
)
def test_what_runs_is_chosen_by_size_and_said(options: Options, images: int, told: str | None) -> None:
    notes = go([{"user_local:Where": {"gb": 0.1}}], options, images)
    assert notes[0].startswith(told) if told else notes == [], notes


def test_a_cluster_that_is_named_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "labelmill.pipelines.engine.ray_session.ray_session", lambda address, *_: asked.append(address) or 1 / 0
    )
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for options in (Options(), Options(ray=True), Options(address="auto")):
        with pytest.raises(ZeroDivisionError):
            go([{"user_local:Where": {"gb": 0.1}}], options, output=f"run{len(asked)}")
    go([{"user_local:Where": {"gb": 0.1}}], Options(local=True, workers=2), output="here")
    assert asked == [None, None, "auto"]
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # as in a job of a cluster
    with pytest.raises(ZeroDivisionError):
        go([{"user_local:Where": {"gb": 0.1}}], output="job")

"""The one rule, seen from outside: what is computed when, and that the same comes out however it is run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from labelmill.operators.applying.results import ContractError
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run import Options, run
from tests.drawing import encode, folder_of_images, noise
from tests.toys import logged

IMAGES = 22


def document(**changes: Any) -> dict[str, Any]:
    bright = {"log": str(Path("bright.log").absolute()), **changes.pop("bright", {})}
    keep = {"at_least": 60.0, "log": str(Path("keep.log").absolute()), **changes.pop("keep", {})}
    rank = {"log": str(Path("rank.log").absolute())}
    return {
        "name": "toy",
        "source": {"folder": "data"},
        "output": "run",
        "shard_size": 5,
        "steps": [
            {"tests.toys:Brightness": bright},
            {"tests.toys:Threshold": keep},
            {"tests.toys:Rank": rank},
            {"tests.toys:Brightness": {"log": str(Path("again.log").absolute()), "scale": 2.0}, "as": "again"},
        ],
        "export": {"split": {"train": 0.5, "val": 0.5}, "coco": {}, "yolo": {}},
        **changes,
    }


def go(options: Options | None = None, **changes: Any) -> dict[str, Any]:
    Path("p.yaml").write_text(yaml.safe_dump(document(**changes)))
    return run(load_pipeline("p.yaml"), options or Options(inline=True), TerminalReporter())


def tree(*folders: str) -> dict[str, str]:
    """Digest of every file below folders."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def new_calls(name: str, before: int) -> list[int]:
    return logged(f"{name}.log")[before:]


@pytest.fixture
def data() -> Path:
    return folder_of_images(Path("data"), IMAGES)


@pytest.mark.usefixtures("data")
def test_every_image_has_one_outcome_and_the_sums_close() -> None:
    Path("data/a/broken.jpg").write_bytes(b"")
    Path("data/b/text.png").write_text("no image")
    summary = go()
    assert summary["images"] == IMAGES + 2
    assert sum(summary["outcome"].values()) == IMAGES + 2
    assert summary["outcome"]["failed"] == 2
    assert summary["outcome"]["dropped"] > 0
    for step in summary["steps"]:
        assert step["seen"] == step["kept"] + step["dropped"] + step["duplicate"] + step["failed"]
    quarantine = pq.read_table("run/quarantine.parquet").to_pylist()
    assert {row["key"] for row in quarantine} == {"a/broken.jpg", "b/text.png"}
    assert all(row["reason"] for row in quarantine)
    decided = pq.read_table("run/decisions.parquet").to_pylist()
    dropped = [row for row in decided if row["decision"] == "dropped"]
    assert len(dropped) == summary["outcome"]["dropped"]
    assert all(row["score"] < row["threshold"] == 60 for row in dropped)
    exported = json.loads(Path("run/exports/coco/annotations/instances_train.json").read_text())["images"]
    exported += json.loads(Path("run/exports/coco/annotations/instances_val.json").read_text())["images"]
    assert len(exported) == summary["outcome"]["kept"]
    assert json.loads(Path("run/summary.json").read_text()) == summary


@pytest.mark.usefixtures("data")
def test_nothing_changed_nothing_runs() -> None:
    first = go()
    before, files = len(logged("bright.log")), tree("run/steps", "run/exports", "run/shards")
    times = {path: Path(path).stat().st_mtime_ns for path in files}
    assert go() == first
    assert len(logged("bright.log")) == before
    assert tree("run/steps", "run/exports", "run/shards") == files
    assert {path: Path(path).stat().st_mtime_ns for path in files} == times


@pytest.mark.usefixtures("data")
def test_a_changed_threshold_runs_only_what_reads_it() -> None:
    go()
    counts = {name: len(logged(f"{name}.log")) for name in ("bright", "keep", "rank", "again")}
    go(keep={"at_least": 90.0})
    assert new_calls("bright", counts["bright"]) == []
    assert len(new_calls("keep", counts["keep"])) == IMAGES
    assert new_calls("rank", counts["rank"]) != []
    counts = {name: len(logged(f"{name}.log")) for name in counts}
    go(keep={"at_least": 60.0})
    assert all(new_calls(name, count) == [] for name, count in counts.items()), "what was there before is used again"


@pytest.mark.usefixtures("data")
def test_dropped_images_are_passed_over() -> None:
    go()
    dropped = {
        row["image_id"] for row in pq.read_table("run/decisions.parquet").to_pylist() if row["decision"] == "dropped"
    }
    assert dropped
    assert set(logged("again.log")) == set(range(1, IMAGES + 1)) - dropped


def test_images_added_later_keep_everything_that_was_done(data: Path) -> None:
    go()
    keys = {row["key"]: row["image_id"] for row in read_steps("run/shards")}
    bright, ranks = len(logged("bright.log")), {r["image_id"]: r["rank"] for r in read_steps("run/steps/*rank*")}
    for index in range(100, 107):
        (data / "a" / f"0000-{index}.jpg").write_bytes(encode(noise(index)))
    summary = go()
    assert summary["images"] == IMAGES + 7
    rows = read_steps("run/shards")
    assert {row["key"]: row["image_id"] for row in rows}.items() >= keys.items()
    assert len({row["image_id"] for row in rows}) == IMAGES + 7
    assert len(new_calls("bright", bright)) == 7, "only the new images are computed"
    later = {r["image_id"]: r["rank"] for r in read_steps("run/steps/*rank*")}
    assert later.items() >= ranks.items(), "what was decided about earlier shards stands"


def read_steps(pattern: str) -> list[dict[str, Any]]:
    (folder,) = Path().glob(pattern)
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def test_the_order_of_a_listing_does_not_matter(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go()
    expected = tree("run/exports", "run/shards", "run/steps")
    from labelmill.pipelines.sources.folder import FolderSource

    scan = FolderSource.scan
    monkeypatch.setattr(FolderSource, "scan", lambda self: reversed(list(scan(self))))
    go(output="other")
    found = tree("other/exports", "other/shards", "other/steps")
    assert {path.replace("other", "run"): digest for path, digest in found.items()} == expected


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_1_2_and_4_workers_give_the_bytes_of_an_inline_run(runner: str) -> None:
    expected_summary = go()
    expected = tree("run/exports", "run/shards", "run/steps")
    for workers in (1, 2, 4):
        output = f"run{workers}"
        summary = go(Options(workers=workers, **{runner: True}), output=output)
        found = tree(f"{output}/exports", f"{output}/shards", f"{output}/steps")
        assert {path.replace(output, "run", 1): digest for path, digest in found.items()} == expected
        assert summary["steps"] == expected_summary["steps"]


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_worker_that_dies_is_replaced_and_nothing_is_lost_or_done_twice(runner: str) -> None:
    expected = go()
    dies = {"die_at": 13, "die_marker": str(Path("died").absolute()), "log": str(Path("dying.log").absolute())}
    summary = go(Options(workers=2, **{runner: True}), output="other", bright=dies)
    assert Path("died").exists(), "no worker died, so nothing was tested"
    assert summary["steps"] == expected["steps"]
    seen = logged("dying.log")
    assert set(seen) == set(range(1, IMAGES + 1))
    again = {image_id for image_id in seen if seen.count(image_id) > 1}
    assert again <= {11, 12, 13, 14, 15}, "only the shard that the dead worker was on is computed again"


def test_an_output_that_is_no_run_is_left_alone() -> None:
    folder_of_images(Path("data"), 3)
    Path("run").mkdir()
    Path("run/mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and no run of labelmill"):
        go()
    assert [path.name for path in Path("run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("changes", [{"name": "other"}, {"source": {"folder": "elsewhere"}}])
def test_an_output_of_another_pipeline_is_left_alone(changes: dict[str, Any]) -> None:
    folder_of_images(Path("data"), 3)
    folder_of_images(Path("elsewhere"), 3)
    go()
    before = tree("run")
    with pytest.raises(UserError, match="belongs to another pipeline"):
        go(**changes)
    assert tree("run") == before


def test_an_empty_source_is_a_clear_error() -> None:
    Path("data").mkdir()
    with pytest.raises(UserError, match="data"):
        go()
    assert not Path("run").exists(), "a refused run leaves nothing"
    with pytest.raises(UserError, match="nowhere"):
        go(source={"folder": "nowhere"})


@pytest.mark.usefixtures("data")
def test_another_shard_size_is_for_images_that_are_new() -> None:
    before = go()
    Path("data/a/new.jpg").write_bytes(encode(noise(77)))
    after = go(shard_size=7)
    assert after["images"] == before["images"] + 1
    rows = [row for shard in range(6) for row in pq.read_table(f"run/shards/{shard:05d}.parquet").to_pylist()]
    assert len({row["image_id"] for row in rows}) == len({row["key"] for row in rows}) == IMAGES + 1
    assert go(shard_size=5)["images"] == IMAGES + 1


@pytest.mark.usefixtures("data")
def test_changed_and_vanished_images_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    go()
    Path("data/a/0000.jpg").write_bytes(encode(noise(77)))
    Path("data/b/0001.jpg").unlink()
    capsys.readouterr()
    summary = go()
    told = capsys.readouterr().out
    assert "1 image has changed: done again" in told
    assert "a/0000.jpg" in told
    assert "1 image is gone from the source" in told
    assert summary["outcome"]["gone"] == 1
    assert sum(summary["outcome"].values()) == summary["images"] == IMAGES


def test_missing_weights_are_told_before_any_image_is_read() -> None:
    folder_of_images(Path("data"), 3)
    Path("card.yaml").write_text(
        "task: embedding\nengine: open_clip\narchitecture: ViT-B-32\nlicence: MIT\nmemory_gb: 1\n"
        "weights: {hub: nobody/nothing, revision: main, file: x.safetensors}\n"
    )
    with pytest.raises(UserError, match=r"step 'embed': weights of card card are not here .*labelmill models pull"):
        go(steps=["inspect", {"embed": {"model": "card.yaml"}}])
    assert not list(Path("run").glob("steps/*/*.parquet"))


def test_source_and_run_on_an_object_store_give_what_a_local_run_gives(s3: str) -> None:
    import fsspec

    folder_of_images(Path("data"), IMAGES)
    expected = go()
    fs = fsspec.filesystem("s3")
    fs.put("data", f"{s3}/data", recursive=True)
    summary = go(source={"folder": f"s3://{s3}/data"}, output=f"s3://{s3}/run")
    assert summary["steps"] == expected["steps"]
    assert summary["outcome"] == expected["outcome"]
    local = {path.removeprefix("run/"): Path(path).read_bytes() for path in tree("run/exports", "run/steps")}
    remote = {path.removeprefix(f"{s3}/run/"): fs.cat_file(path) for path in fs.find(f"{s3}/run")}
    for path, data in local.items():
        if not path.endswith(".export.json"):  # it names the output
            assert remote[path] == data, path
    before = len(logged("bright.log"))
    assert go(source={"folder": f"s3://{s3}/data"}, output=f"s3://{s3}/run")["outcome"] == expected["outcome"]
    assert len(logged("bright.log")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [Options(inline=True), Options(local=True), Options(workers=2, ray=True)], ids=["inline", "local", "ray"]
)
@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ({"tests.toys:Unloadable": {}}, UserError, "step 'unloadable': the weights are of another model"),
        ({"tests.toys:Wrong": {"how": "missing"}}, ContractError, "must give the columns"),
    ],
    ids=["load", "contract"],
)
def test_what_is_wrong_with_an_operator_stops_the_run(
    options: Options, step: dict[str, Any], error: type[Exception], message: str
) -> None:
    folder_of_images(Path("data"), 3)
    with pytest.raises(error, match=message):
        go(options, steps=[step], export={})


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_an_image_that_kills_every_worker_ends_the_run_and_does_not_hang(runner: str) -> None:
    with pytest.raises(UserError, match="workers died 5 times on the same work"):
        go(Options(workers=2, **{runner: True}), bright={"die_at": 13})
    Path("p.yaml").write_text(yaml.safe_dump(document()))
    assert go()["outcome"]["failed"] == 0, "what was finished is kept, and the run can go on"


@pytest.mark.usefixtures("data")
def test_two_runs_do_not_work_in_one_output() -> None:
    from labelmill.pipelines.run_folder.store import Store

    with Store("run").locked(), pytest.raises(UserError, match="another run is at work in"):
        go()
    assert sum(go()["outcome"].values()) == IMAGES


def test_a_lock_leaves_no_file_and_only_the_folders_in_which_something_is() -> None:
    from labelmill.pipelines.run_folder.store import Store

    with pytest.raises(KeyError), Store("deep/er/run").locked():
        raise KeyError
    assert not Path("deep").exists()
    with Store("deep/run").locked():
        Path("deep/run/file").write_text("x")
    assert [str(path) for path in Path("deep").rglob("*")] == ["deep/run", "deep/run/file"]


def test_processes_take_turns_at_a_lock_whose_file_comes_and_goes() -> None:
    """Adding one to a number in a file a hundred times in four processes gives four hundred."""
    import subprocess
    import sys

    code = (
        "from pathlib import Path; from labelmill.pipelines.run_folder.store import Store; from "
        "labelmill.pipelines.errors import "
        "UserError\n"
        "done, number = 0, Path('number')\n"
        "while done < 100:\n"
        "    try:\n"
        "        with Store('run').locked():\n"
        "            number.write_text(str(int(number.read_text()) + 1)); done += 1\n"
        "    except UserError: pass\n"
    )
    Path("number").write_text("0")
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])})
        for _ in range(4)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert Path("number").read_text() == "400"

"""A source that changes between two runs: what comes out is what a fresh run over it gives, but for ids."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run import Options, run
from labelmill.pipelines.run_folder.shards import known_shards, size_of_shards
from labelmill.pipelines.run_folder.store import Store
from tests.drawing import encode
from tests.toys import logged

Labels = list[tuple[str, int]]


class World:
    """A folder of images and a COCO file beside it, and a run over them."""

    def __init__(self, folder: Path, duplicates: bool = False) -> None:
        self.folder, self.duplicates = folder, duplicates
        self.images: dict[str, int] = {}
        self.labels: dict[str, Labels] = {}
        self.shard_size, self.order, self.clock = 4, 1, 0
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "images").mkdir(parents=True)

    def put(self, key: str, shade: int) -> None:
        self.images[key] = shade
        self.labels.setdefault(key, [("cat", 2)])
        path = self.folder / "images" / key
        noise = np.random.default_rng(shade).integers(0, 40, (24, 32, 3))
        path.write_bytes(encode(Image.fromarray((noise + shade * 9).clip(0, 255).astype(np.uint8)), "PNG"))
        self.clock += 1  # two writes within one tick of the file system's clock must differ here too
        os.utime(path, ns=(self.clock * 10**9, self.clock * 10**9))

    def delete(self, key: str) -> None:
        del self.images[key]
        (self.folder / "images" / key).unlink()

    def write_labels(self) -> None:
        keys = sorted(self.images)[:: self.order]
        names = sorted({name for key in keys for name, _ in self.labels[key]} | {"cat"})
        annotations = [
            {"image_id": keys.index(key) + 1, "category_id": names.index(name) + 1, "bbox": [at, 3, 9, 8]}
            for key in keys
            for name, at in self.labels[key]
        ]
        document = {
            "images": [{"id": n + 1, "file_name": key, "width": 32, "height": 24} for n, key in enumerate(keys)],
            "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
            "annotations": [{"id": n + 1, "area": 72, "iscrowd": 0, **each} for n, each in enumerate(annotations)],
        }
        (self.folder / "images" / "labels.json").write_text(json.dumps(document))

    def go(self, output: str, shard_size: int | None = None) -> dict[str, Any]:
        self.write_labels()
        steps: list[Any] = [
            "inspect",
            {"tests.toys:Brightness": {"log": str(self.folder / f"{output}.log"), "batch": 4}},
            {"keep": "brightness >= 45 and len(source.labels) < 3"},
            {
                "tests.toys:Brightness": {"scale": 2.0, "batch": 4, "log": str(self.folder / f"{output}.again")},
                "as": "more",
            },
        ]
        if self.duplicates:
            steps.insert(1, {"deduplicate": {"keep": "first"}})
        pipeline = {
            "name": "world",
            "source": {"coco": str(self.folder / "images" / "labels.json")},
            "output": str(self.folder / output),
            "shard_size": shard_size or self.shard_size,
            "steps": steps,
            "export": {"coco": {}, "split": {"train": 1.0}},
        }
        file = self.folder / f"{output}.yaml"
        file.write_text(yaml.safe_dump(pipeline))
        return run(load_pipeline(str(file)), Options(inline=True), TerminalReporter())

    def exported(self, output: str) -> dict[str, Any]:
        """What the export holds, by the name of the image; without ids."""
        found: dict[str, Any] = {}
        for file in sorted((self.folder / output / "exports" / "coco").rglob("*.json")):
            document = json.loads(file.read_text())
            if not isinstance(document, dict) or "images" not in document:
                continue
            names = {each["id"]: each["name"] for each in document["categories"]}
            for image in document["images"]:
                boxes = [
                    (names[each["category_id"]], *each["bbox"])
                    for each in document["annotations"]
                    if each["image_id"] == image["id"]
                ]
                found[Path(image["file_name"]).name.partition("-")[2]] = (
                    image["width"],
                    image["height"],
                    sorted(boxes),
                )
        return found

    def rows(self, output: str) -> list[dict[str, Any]]:
        return [
            row
            for file in sorted((self.folder / output / "shards").glob("*.parquet"))
            for row in pq.read_table(file).select(["image_id", "key"]).to_pylist()
        ]

    def values(self, output: str) -> dict[str, Any]:
        """What the model step says of each image that the run kept."""
        found: dict[str, Any] = {}
        for folder in (self.folder / output / "steps").glob("*-more-*"):
            for file in folder.glob("*.parquet"):
                shard = pq.read_table(self.folder / output / "shards" / file.name)
                for key, row in zip(shard.column("key").to_pylist(), pq.read_table(file).to_pylist(), strict=True):
                    if row["decision"] == "kept" and key in self.images:
                        found[key] = row["brightness"]
        return found


def assert_as_fresh(world: World) -> None:
    summary = world.go("run")
    outcome = summary["outcome"]
    assert sum(outcome.values()) == summary["images"]
    assert summary["images"] - outcome["gone"] == len(world.images)
    shutil.rmtree(world.folder / "fresh", ignore_errors=True)
    fresh = world.go("fresh", 4)
    assert {kind: outcome[kind] for kind in ("kept", "dropped", "failed", "duplicate")} == {
        kind: fresh["outcome"][kind] for kind in ("kept", "dropped", "failed", "duplicate")
    }
    assert world.exported("run") == world.exported("fresh")
    assert world.values("run") == world.values("fresh")


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "world")
    for number in range(9):
        made.put(f"{number}.png", 3 + 2 * number)
    made.go("run")
    return made


def computed(world: World, name: str = "run.log") -> list[int]:
    found = logged(str(world.folder / name))
    (world.folder / name).unlink(missing_ok=True)
    return sorted(found)


def test_corrected_labels_come_out_and_no_model_is_called_again(world: World) -> None:
    computed(world)
    computed(world, "run.again")
    world.labels["8.png"] = [("dog", 5)]
    assert_as_fresh(world)
    assert computed(world) == []
    assert world.exported("run")["8.png"][2] == [("dog", 5, 3, 9, 8)]


def test_an_overwritten_image_is_computed_again_alone(world: World) -> None:
    computed(world)
    world.put("5.png", 20)
    assert_as_fresh(world)
    assert computed(world) == [6]


def test_a_file_that_was_only_touched_is_not(world: World) -> None:
    computed(world)
    world.put("5.png", world.images["5.png"])
    assert_as_fresh(world)
    assert computed(world) == []


def test_a_deleted_image_is_gone_and_comes_back(world: World) -> None:
    computed(world)
    before = world.rows("run")
    world.delete("7.png")
    summary = world.go("run")
    assert summary["outcome"]["gone"] == 1
    assert "7.png" not in world.exported("run")
    world.put("7.png", 17)
    assert_as_fresh(world)
    assert world.rows("run") == before
    assert computed(world) == []


def test_an_image_in_front_takes_nothing_from_the_others(world: World) -> None:
    world.put("00.png", 18)
    assert_as_fresh(world)
    assert world.rows("run")[-1]["key"] == "00.png"


@pytest.mark.parametrize("size", [1, 3, 7])
def test_another_shard_size_gives_no_id_twice(world: World, size: int) -> None:
    world.shard_size = size
    world.put("00.png", 18)
    world.put("zz.png", 19)
    assert_as_fresh(world)
    ids = [row["image_id"] for row in world.rows("run")]
    assert len(set(ids)) == len(ids) == 11


def test_a_row_is_found_by_its_id_whatever_shard_size_is_asked_for(world: World) -> None:
    world.shard_size = 3
    world.put("zz.png", 19)
    world.go("run")
    size = size_of_shards(Store(str(world.folder / "run")), known_shards(Store(str(world.folder / "run"))), 3)
    assert size == 4
    for shard in range(3):
        rows = pq.read_table(world.folder / "run" / "shards" / f"{shard:05d}.parquet").column("image_id").to_pylist()
        assert rows == [shard * size + row + 1 for row in range(len(rows))]


def test_the_copy_of_a_deleted_original_comes_back(tmp_path: Path) -> None:
    world = World(tmp_path / "world", duplicates=True)
    for number in range(6):
        world.put(f"{number}.png", 8 + number)
    world.put("copy.png", 8)
    assert world.go("run")["outcome"]["duplicate"] == 1
    assert "copy.png" not in world.exported("run")
    world.delete("0.png")
    assert_as_fresh(world)
    assert "copy.png" in world.exported("run")


def test_a_parquet_file_with_a_row_in_front_gives_no_image_anothers_results(tmp_path: Path) -> None:
    import pyarrow as pa

    def write(shades: list[int]) -> None:
        pictures = [encode(Image.new("RGB", (32, 24), (shade, shade, shade)), "PNG") for shade in shades]
        pq.write_table(pa.table({"image": pa.array(pictures, pa.binary())}), tmp_path / "data.parquet")
        os.utime(tmp_path / "data.parquet", ns=(len(shades) * 10**9, len(shades) * 10**9))

    def go() -> list[float]:
        pipeline = {
            "name": "rows",
            "source": {"parquet": str(tmp_path / "data.parquet")},
            "output": str(tmp_path / "run"),
            "shard_size": 2,
            "steps": [{"tests.toys:Brightness": {}}],
        }
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(pipeline))
        run(load_pipeline(str(tmp_path / "p.yaml")), Options(inline=True), TerminalReporter())
        files = sorted((tmp_path / "run" / "steps").glob("*/*.parquet"))
        return [value for file in files for value in pq.read_table(file).column("brightness").to_pylist()]

    write([50, 100, 150])
    assert go() == [50, 100, 150]
    write([10, 50, 100, 150])
    assert go() == [10, 50, 100, 150]


class Killed(BaseException):
    pass


class Changes(RuleBasedStateMachine):
    """Things that happen to a source between runs, and runs that are killed at some write."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.temporary = tempfile.TemporaryDirectory()
        self.world = World(Path(self.temporary.name) / "world")
        self.ids: dict[str, int] = {}

    def teardown(self) -> None:
        self.temporary.cleanup()

    @initialize(count=st.integers(2, 7))
    def begin(self, count: int) -> None:
        for number in range(count):
            self.world.put(f"{number}.png", 4 + 3 * number)
        self.world.go("run")

    @rule(name=st.integers(0, 12), shade=st.integers(0, 25))
    def put(self, name: int, shade: int) -> None:
        self.world.put(f"{name}.png", shade)

    @rule(pick=st.integers(0, 50))
    def delete(self, pick: int) -> None:
        if len(self.world.images) > 1:
            self.world.delete(sorted(self.world.images)[pick % len(self.world.images)])

    @rule(
        pick=st.integers(0, 50),
        labels=st.lists(st.tuples(st.sampled_from(["cat", "dog"]), st.integers(0, 9)), max_size=3),
    )
    def relabel(self, pick: int, labels: Labels) -> None:
        self.world.labels[sorted(self.world.images)[pick % len(self.world.images)]] = labels

    @rule()
    def reorder(self) -> None:
        self.world.order *= -1

    @rule(size=st.integers(1, 6))
    def other_shard_size(self, size: int) -> None:
        self.world.shard_size = size

    @rule(write=st.integers(0, 12))
    def killed_run(self, write: int) -> None:
        left = [write]
        real = Store.write

        def dying(store: Store, name: str, data: bytes) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            real(store, name, data)

        Store.write = dying  # type: ignore[method-assign]
        try:
            self.world.go("run")
        except Killed:
            pass
        finally:
            Store.write = real  # type: ignore[method-assign]

    @rule()
    def whole_run(self) -> None:
        assert_as_fresh(self.world)

    @invariant()
    def ids_are_for_ever(self) -> None:
        rows = self.world.rows("run") if (self.world.folder / "run" / "shards").exists() else []
        assert len({row["image_id"] for row in rows}) == len(rows)
        for row in rows:
            assert self.ids.setdefault(row["key"], row["image_id"]) == row["image_id"]


TestChanges = Changes.TestCase
TestChanges.settings = settings(
    max_examples=12, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)

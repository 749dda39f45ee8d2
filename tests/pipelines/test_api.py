"""`import labelmill`: the examples of its documentation run, and an operator says what a run says, bit for bit."""

from __future__ import annotations

import doctest
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import labelmill
from labelmill.operators.miniatures.write import write_world
from labelmill.pipelines import api
from labelmill.pipelines.errors import ConfigError, UnfinishedRun, UserError

MODELS = {
    "inspect": {},
    "embed": {"model": "clip-miniature"},
    "detect": {"model": "grounding-dino-miniature", "ontology": ["cup", "fish", "house"], "floor": 0.05},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 8, 3)
    (folder / "images" / "broken.jpg").write_bytes(b"no image")
    return folder / "images"


@pytest.fixture(scope="module")
def run(world: Path) -> labelmill.Run:
    steps: list[Any] = [{name: params} for name, params in MODELS.items()]
    steps += [
        {"select": {"score": 0.1, "ontology": MODELS["detect"]["ontology"]}},
        {"segment": {"model": "sam-miniature"}},
    ]
    output = str(world.parent / "run")
    return labelmill.run({"name": "w", "source": {"folder": str(world)}, "output": output, "steps": steps})


def test_the_examples(world: Path) -> None:
    Path("images").symlink_to(world)
    done = doctest.testmod(api)
    assert done.attempted >= 10 and done.failed == 0


@pytest.mark.parametrize("name", MODELS)
def test_an_operator_says_what_a_run_says(name: str, run: labelmill.Run, world: Path) -> None:
    columns = [column for column in run.columns if column.startswith(f"{name}.")]
    table = run.images(columns)
    files = [world / key for key in table.column("key").to_pylist()]
    asked = labelmill.operator(name, **MODELS[name])
    found = asked(files)
    for column in columns:
        assert found.column(column.partition(".")[2]).to_pylist() == table.column(column).to_pylist()
    outcomes = [decision if decision == "failed" else "kept" for decision in table.column("outcome").to_pylist()]
    assert found.column("decision").to_pylist() == outcomes and "failed" in outcomes


def test_an_image_may_come_as_anything(world: Path) -> None:
    path = sorted(world.glob("*.jpg"))[0]
    picture = Image.open(path)
    embed = labelmill.operator("embed", **MODELS["embed"])
    expected = embed(path)["embedding"]
    for image in (str(path), path.read_bytes(), picture, np.asarray(picture)):
        assert embed(image)["embedding"] == expected
    assert embed([]).num_rows == 0
    with pytest.raises(TypeError, match=r"uint8 array \(height, width, 3\).* but is an array of float64 \(2, 2\)"):
        embed(np.zeros((2, 2)))
    with pytest.raises(TypeError, match="but is 'int'"):
        embed([7])


def test_a_pil_image_of_a_camera_that_lay_on_its_side_is_turned_upright(world: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    inspect = labelmill.operator("inspect")
    for image in (buffer.getvalue(), Image.open(buffer)):
        assert (inspect(image)["width"], inspect(image)["height"]) == (20, 40)


def test_a_run_is_joined(run: labelmill.Run) -> None:
    assert run.steps == ("inspect", "embed", "detect", "select", "segment")
    assert run.outcomes == {"kept": 8, "failed": 1} and len(run) == 9
    whole, kept = run.images(), run.images([], kept=True)
    assert whole.column_names == ["image_id", "key", "uri", "split", "outcome", *run.columns]
    assert (whole.num_rows, kept.num_rows) == (9, 8)
    frame = run.to_pandas(["width", "select.detections"])
    assert list(frame.index) == whole.column("key").to_pylist()
    assert frame.loc["broken.jpg", "outcome"] == "failed"
    assert repr(run).startswith("Run(") and "9 images" in repr(run)


def test_detections_are_supervisions(run: labelmill.Run) -> None:
    rows = run.images(["segment.detections"], kept=True).to_pylist()
    row = max(rows, key=lambda row: len(row["segment.detections"]))
    found = run.detections(row["key"])
    assert len(found) == len(row["segment.detections"]) > 0
    assert found.xyxy.tolist() == [
        [each[side] for side in ("x1", "y1", "x2", "y2")] for each in row["segment.detections"]
    ]
    assert list(found.data["class_name"]) == [each["class"] for each in row["segment.detections"]]
    width, height = run.image(row["key"]).size
    assert (
        found.mask is not None and found.mask.shape == (len(found), height, width) and found.mask.any(axis=(1, 2)).all()
    )
    assert run.detections(row["key"], "detect.detections").mask is None


def test_what_is_not_there_is_told(run: labelmill.Run, world: Path) -> None:
    with pytest.raises(UserError, match="there is no run at 'nowhere'"):
        labelmill.open_run("nowhere")
    with pytest.raises(UserError, match=r"the run has no image 'brken.jpg'; did you mean 'broken.jpg'"):
        run.image("brken.jpg")
    with pytest.raises(UserError, match=r"column 'inspect.with' .*did you mean 'inspect.width'"):
        run.images(["inspect.with"])
    with pytest.raises(UserError, match="must hold detections but holds"):
        run.detections("broken.jpg", "inspect.width")
    with pytest.raises(UserError, match="nobody looked"):
        run.detections("broken.jpg", "detect.detections")
    with pytest.raises(UserError, match=r"operator 'segment' reads detections; put it into a pipeline"):
        labelmill.operator("segment", model="sam-miniature")
    with pytest.raises(UserError, match=r"operator 'keep' reads columns, not images"):
        labelmill.operator("keep", where="a > 1")
    with pytest.raises(ConfigError, match="operator must be one of"):
        labelmill.operator("detec")
    with pytest.raises(AttributeError, match="module 'labelmill' has no attribute 'open'"):
        labelmill.open  # noqa: B018


def test_an_unfinished_run_says_so(run: labelmill.Run, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    next((folder / "steps").glob("*embed*/*.parquet")).unlink()
    with pytest.raises(UnfinishedRun):
        labelmill.open_run(folder).images()


def test_models_are_listed() -> None:
    cards = {card["name"]: card for card in labelmill.models()}
    assert cards["clip-miniature"]["here"] and cards["clip-miniature"]["task"] == "embedding"


def test_a_run_of_no_images_has_no_rows(tmp_path: Path) -> None:
    assert isinstance(labelmill.operator("inspect")([]), pa.Table)

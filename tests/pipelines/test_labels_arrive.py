"""Labels that come in are read, unread or refused, from every kind of source to every export; a generated table."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import ConfigError, UserError
from labelmill.pipelines.exports import EXPORT_NAMES, exporter
from labelmill.pipelines.inspection.look import look_at
from labelmill.pipelines.run import Options, run
from tests.pipelines.sources.helpers import picture, write

STATES = ("read", "unread", "refused")
GOOD, BAD = [4, 5, 10, 12], [4, 5, 0, 0]
"""A box that every source takes and one that none does: x, y, width, height in 48 x 32 pixels."""

Boxes = dict[str, list[list[int]] | None]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def labelmill(*words: str) -> Result:
    from labelmill.pipelines.cli import app

    return CliRunner().invoke(app, list(words))


def image_of(state: str) -> bytes:
    return picture(STATES.index(state), 48, 32, "JPEG")


def corners(box: list[int]) -> tuple[int, int, int, int]:
    x, y, w, h = box
    return x, y, x + w, y + h


def as_coco(boxes: Boxes) -> dict[str, Any]:
    images, annotations = [], []
    for number, (name, found) in enumerate(boxes.items(), 1):
        write(Path(f"data/images/{name}.jpg"), image_of(name))
        images.append({"id": number, "file_name": f"{name}.jpg", "width": 48, "height": 32})
        if found is None:
            images[-1]["label_state"] = "unread"
        for box in found or []:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    write(Path("data/annotations/instances.json"), json.dumps(document).encode())
    return {"coco": "data"}


def as_yolo(boxes: Boxes) -> dict[str, Any]:
    for name, found in boxes.items():
        write(Path(f"data/images/train/{name}.jpg"), image_of(name))
        if found is not None:
            lines = [f"0 {(x + w / 2) / 48} {(y + h / 2) / 32} {w / 48} {h / 32}\n" for x, y, w, h in found]
            write(Path(f"data/labels/train/{name}.txt"), "".join(lines).encode())
    write(Path("data/data.yaml"), b"train: images/train\nnames: [car]\n")
    return {"yolo": "data/data.yaml"}


def as_voc(boxes: Boxes) -> dict[str, Any]:
    for name, found in boxes.items():
        write(Path(f"data/JPEGImages/{name}.jpg"), image_of(name))
        if found is not None:
            things = "".join(
                f"<object><name>car</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
                f"<ymax>{y2}</ymax></bndbox></object>"
                for x1, y1, x2, y2 in map(corners, found)
            )
            write(Path(f"data/Annotations/{name}.xml"), f"<annotation>{things}</annotation>".encode())
    Path("data/Annotations").mkdir(exist_ok=True)
    return {"voc": "data"}


def as_cvat(boxes: Boxes) -> dict[str, Any]:
    lines = []
    for number, (name, found) in enumerate(boxes.items()):
        write(Path(f"data/images/{name}.jpg"), image_of(name))
        shapes = "".join(
            f'<box label="car" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
            for x1, y1, x2, y2 in map(corners, found or [])
        )
        lines.append(f'<image id="{number}" name="{name}.jpg" width="48" height="32">{shapes}</image>')
    write(Path("data/annotations.xml"), f"<annotations>{''.join(lines)}</annotations>".encode())
    return {"cvat": "data"}


def as_label_studio(boxes: Boxes) -> dict[str, Any]:
    tasks = []
    for name, found in boxes.items():
        write(Path(f"data/images/{name}.jpg"), image_of(name))
        result = [
            {"type": "rectanglelabels", "original_width": 48, "original_height": 32, "value":
             {"x": x / 0.48, "y": y / 0.32, "width": w / 0.48, "height": h / 0.32, "rectanglelabels": ["car"]}}
            for x, y, w, h in found or []
        ]  # fmt: skip
        annotations = [] if found is None else [{"result": result}]
        tasks.append({"data": {"image": f"/data/upload/1/0a1b2c3d-{name}.jpg"}, "annotations": annotations})
    write(Path("data/project-1.json"), json.dumps(tasks).encode())
    return {"label_studio": "data"}


def rows(boxes: Boxes) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": image_of(name), "path": f"{name}.jpg"}, "key": f"{name}.jpg",
         "objects": None if found is None else [{"bbox": box, "label": "car"} for box in found]}
        for name, found in boxes.items()
    ]  # fmt: skip


def as_parquet(boxes: Boxes) -> dict[str, Any]:
    Path("data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows(boxes)), "data/train-00000.parquet")
    return {"parquet": "data", "key": "key"}


def as_huggingface(boxes: Boxes) -> dict[str, Any]:
    import datasets

    datasets.Dataset.from_list(rows(boxes)).cast_column("image", datasets.Image()).save_to_disk("data")
    return {"huggingface": "data"}


def as_webdataset(boxes: Boxes) -> dict[str, Any]:
    Path("data").mkdir()
    with tarfile.open("data/train-0.tar", "w") as tar:
        for name, found in boxes.items():
            told = None if found is None else [{"bbox": box, "category": "car"} for box in found]
            for suffix, data in (("jpg", image_of(name)), ("json", json.dumps({"objects": told}).encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"webdataset": "data"}


SOURCES: dict[str, Callable[[Boxes], dict[str, Any]]] = {
    "coco": as_coco, "yolo": as_yolo, "voc": as_voc, "cvat": as_cvat, "label_studio": as_label_studio,
    "parquet": as_parquet, "huggingface": as_huggingface, "webdataset": as_webdataset,
}  # fmt: skip

CANNOT_SAY = {("cvat", "unread")}
"""CVAT's file has no place for whether anybody looked."""


def go(source: Mapping[str, Any], export: Mapping[str, Any], steps: list[Any] | None = None, **options: Any) -> Any:
    document = {"name": "arrive", "source": dict(source), "output": "run", "steps": steps or ["inspect"],
                "export": dict(export)}  # fmt: skip
    Path("p.yaml").write_text(yaml.safe_dump(document))
    reporter = TerminalReporter()
    summary = run(load_pipeline("p.yaml"), Options(inline=True, **options), reporter)
    reporter.finished(summary, "run")
    return summary


def without_crash_of(name: str) -> dict[str, Any]:
    return {} if name != "yolo" else {"task": "detect"}


@pytest.mark.parametrize("kind", SOURCES)
def test_each_state_from_each_source_to_each_export(kind: str) -> None:
    boxes: Boxes = {"read": [GOOD], "unread": None, "refused": [BAD, GOOD]}
    states = [state for state in STATES if (kind, state) not in CANNOT_SAY]
    source = SOURCES[kind]({state: boxes[state] for state in states})
    summary = go(source, {name: without_crash_of(name) for name in EXPORT_NAMES})
    assert summary["labels"] == {
        "images": {state: int(state in states) for state in STATES}, "refused": 1
    }  # fmt: skip
    (row,) = pq.read_table("run/refused.parquet").to_pylist()
    assert "area" in row["reason"]
    for found in summary["exports"]:
        tasks = exporter(found["export"]).images_alone == "always"
        left_out = {} if tasks else {state: 1 for state in states if state != "read"}
        assert (found["export"], found["left_out"]) == (found["export"], left_out)
        if found["export"] != "crops":
            assert (found["export"], sum(found["images"].values())) == (found["export"], len(states) if tasks else 1)
        assert (found["export"], sum(found["annotations"].values())) == (found["export"], 1)
        if not tasks:
            assert any("left out" in note for note in found["notes"])


@pytest.mark.parametrize("kind", SOURCES)
def test_those_left_out_are_written_when_they_are_asked_for(kind: str) -> None:
    boxes: Boxes = {"read": [], "unread": None, "refused": [BAD, GOOD]}
    states = [state for state in STATES if (kind, state) not in CANNOT_SAY]
    source = SOURCES[kind]({state: boxes[state] for state in states})
    asked = {"unread": "background", "refused": "rest"}
    summary = go(source, {"coco": asked, "yolo": asked, "voc": asked, "huggingface": asked, "webdataset": asked})
    for found in summary["exports"]:
        assert (found["left_out"], sum(found["images"].values())) == ({}, len(states))
        assert sum(found["annotations"].values()) == 1, "the rest of the refused one's labels"


@pytest.mark.parametrize("kind", SOURCES)
def test_labels_that_are_missing_altogether_are_said_at_the_head_and_strict_stops(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SOURCES[kind]({"refused": [BAD]})
    go(source, {"yolo": {}})
    told = " ".join(capsys.readouterr().out.split())
    assert "none of 1 image has labels that could be read: 1 refused" in told
    assert "looked for" in told or kind in ("coco", "webdataset")
    assert "1 label refused: run/refused.parquet" in told
    assert "yolo: 0 images, 0 labels; 1 image left out: refused labels" in told
    with pytest.raises(UserError, match="with --strict all labels of the source must be taken"):
        go(source, {"yolo": {}}, strict=True)
    assert look_at(load_pipeline("p.yaml")).missing
    checked = labelmill("check", "p.yaml", "--strict")
    assert checked.exit_code == 2
    assert "none of 1 image has labels" in " ".join(checked.output.split())


@pytest.mark.parametrize("kind", ["yolo", "voc", "label_studio"])
def test_unread_images_are_not_background(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No label file in a whole folder, no annotation of any task."""
    source = SOURCES[kind]({"read": None, "unread": None})
    summary = go(source, {"yolo": {}})
    told = " ".join(capsys.readouterr().out.split())
    assert "none of 2 images has labels that could be read: there are none; looked for" in told
    assert summary["exports"][0]["left_out"] == {"unread": 2}
    assert not list(Path("run/exports/yolo").rglob("labels/**/*.txt"))


def detector(**more: Any) -> dict[str, Any]:
    return {"detect": {"model": "grounding-dino-random", "ontology": ["car"], **more}}


@pytest.mark.slow
def test_raw_detections_are_no_labels() -> None:
    """Without `select` an export takes the source's labels; if there are none it refuses, before the work."""
    source = as_coco({"read": [GOOD]})
    summary = go(source, {"coco": {}}, ["inspect", detector(floor=0.0)])
    assert sum(summary["exports"][0]["annotations"].values()) == 1
    write(Path("bare/a.jpg"), image_of("read"))
    with pytest.raises((UserError, ConfigError), match=r"'detect' writes raw detections only.*select"):
        _other({"folder": "bare"}, {"coco": {}}, ["inspect", detector()])


def test_a_folder_with_labels_beside_its_images_is_not_taken_for_bare_images_without_a_word() -> None:
    as_yolo({"read": [GOOD]})
    document = {"name": "x", "source": {"folder": "data"}, "output": "run", "steps": ["inspect"]}
    Path("p.yaml").write_text(yaml.safe_dump(document))
    (told,) = look_at(load_pipeline("p.yaml")).missing
    assert "it looks like yolo" in told
    for place in ("loose/a", "loose/images/b"):
        write(Path(f"{place}.jpg"), image_of("read"))
    write(Path("loose/labels/b.txt"), b"0 0.5 0.5 0.5 0.5")
    Path("p.yaml").write_text(yaml.safe_dump({**document, "source": {"folder": "loose"}}))
    (told,) = look_at(load_pipeline("p.yaml")).missing
    assert "such as labels/b.txt, that may be their labels" in told


@pytest.mark.parametrize("kind", SOURCES)
def test_a_first_pipeline_recognises_what_a_source_reads(kind: str) -> None:
    SOURCES[kind]({"read": [GOOD]})
    made = labelmill("new", "mine.yaml", "-y", "--source", "data", "--want", "clean")
    assert made.exit_code == 0, made.output
    text = Path("mine.yaml").read_text()
    assert f"{kind}: " in text.partition("source")[2].partition("steps")[0]
    assert f"found {kind}: 1 image, labels: 1 read" in made.output


def test_boxes_in_a_column_that_no_reader_takes_are_said() -> None:
    """Case 8: a list-of-struct column with boxes."""
    Path("data").mkdir()
    odd = [{"image": {"bytes": image_of("read"), "path": "a.jpg"}, "things": [{"polygon": [1, 2, 3, 4, 5, 6]}]}]
    pq.write_table(pa.Table.from_pylist(odd), "data/a.parquet")
    Path("p.yaml").write_text(yaml.safe_dump({"name": "x", "source": {"parquet": "data"}, "steps": ["inspect"]}))
    (told,) = look_at(load_pipeline("p.yaml")).missing
    assert "has boxes that are not read in things" in told


def test_images_in_no_set_and_classes_that_are_no_folders_are_found_before_the_work() -> None:
    """Cases 15 and 25."""
    source = as_voc({"read": [GOOD], "refused": [GOOD]})
    write(Path("data/ImageSets/Main/train.txt"), b"read\n")
    with pytest.raises(UserError, match=r"1 image, such as 'JPEGImages/refused.jpg', is in none.*split is not null"):
        go(source, {"coco": {}})
    assert not Path("run/steps").exists()
    summary = go(source, {"coco": {}}, ["inspect", {"keep": "source.split is not null"}])
    assert summary["exports"][0]["images"] == {"train": 1}
    document = json.loads(Path("run/exports/coco/annotations/instances_train.json").read_text())
    document["categories"] = [{"id": 1, "name": "A"}, {"id": 2, "name": "a"}]
    write(Path("run/exports/coco/annotations/instances_train.json"), json.dumps(document).encode())
    with pytest.raises(UserError, match="'A' and 'a' must differ in more than upper and lower case"):
        _other({"coco": "run/exports/coco"}, {"crops": {}})


def _other(source: Mapping[str, Any], export: Mapping[str, Any], steps: list[Any] | None = None) -> Any:
    document = {"name": "other", "source": dict(source), "output": "other", "steps": steps or ["inspect"]}
    document["export"] = dict(export)
    Path("o.yaml").write_text(yaml.safe_dump(document))
    return run(load_pipeline("o.yaml"), Options(inline=True), TerminalReporter())


def test_what_else_a_coco_file_says_comes_back_from_its_export_and_is_named_by_the_others() -> None:
    """Case 13: keypoints, attributes, supercategory, skeleton, tracks, another area, crowds."""
    write(Path("data/a.jpg"), image_of("read"))
    more = {
        "keypoints": [8, 9, 2, 12, 15, 1], "num_keypoints": 2, "track_id": 4, "area": 77.5,
        "attributes": {"occluded": True, "colour": "red"},
    }  # fmt: skip
    category = {"id": 1, "name": "person", "supercategory": "human", "keypoints": ["l", "r"], "skeleton": [[1, 2]]}
    found = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": GOOD, "iscrowd": 0, **more},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30], "iscrowd": 1},
    ]
    images = [{"id": 1, "file_name": "a.jpg", "width": 48, "height": 32}]
    document = {"images": images, "annotations": found, "categories": [category]}
    write(Path("data/labels.json"), json.dumps(document).encode())
    summary = go({"coco": "data/labels.json"}, {"coco": {}, "yolo": {}, "voc": {}})
    written = json.loads(Path("run/exports/coco/annotations/instances.json").read_text())
    assert written["categories"] == [category]
    first, second = written["annotations"]
    assert {key: first[key] for key in more} == more
    assert [first["iscrowd"], second["iscrowd"]] == [0, 1]
    assert second["bbox"] == [1, 1, 30, 30]
    for found in summary["exports"][1:]:
        assert sum(found["annotations"].values()) == 1
        told = " ".join(found["notes"])
        assert "1 regions to ignore" in told or "1 region to ignore" in told
        assert "keypoints of 1" in told


@pytest.mark.parametrize(("more", "good"), [([], False), ([{"segment": {"model": "sam-miniature"}}], True)])
def test_a_segment_export_without_masks_is_found_by_check(more: list[Any], good: bool) -> None:
    write(Path("bare/a.jpg"), image_of("read"))
    steps = [detector(), {"select": {"ontology": ["car"]}}, *more]
    document = {"name": "x", "source": {"folder": "bare"}, "steps": steps,
                "export": {"yolo": {"task": "segment"}}}  # fmt: skip
    Path("p.yaml").write_text(yaml.safe_dump(document))
    problems = look_at(load_pipeline("p.yaml")).problems
    assert [("task: segment" in problem, "add a step `segment`" in problem) for problem in problems] == [
        (True, True)
    ] * (not good)

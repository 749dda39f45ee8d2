from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from labelmill.operators.review import REVIEWS
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.review.collect import import_review
from labelmill.pipelines.review.export import export_review
from labelmill.pipelines.review.print import print_exported, print_imported
from labelmill.pipelines.run_folder.store import Store
from tests.pipelines.review.runs import IMAGES, MODEL, cvat_answers, finished, label_studio_answers, tasks_in, told


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    finished(folder)
    return folder


@pytest.fixture
def street(pristine: Path) -> str:
    """The run, with no review given out yet."""
    store = Store(str(pristine / "run"))
    if store.exists("review"):
        store.fs.rm(store.path("review"), recursive=True)
    return store.url


def numbers_in(folder: Path) -> dict[int, dict[str, Any]]:
    """What the manifest says, by the number in the key."""
    return {int(Path(row["key"]).stem): row for row in pq.read_table(folder / "review.parquet").to_pylist()}


def by_number(run: str, step: str, columns: list[str]) -> dict[int, dict[str, Any]]:
    """Columns of a step, by the number in the key."""
    store, found = Store(run), {}
    (folder,) = (name for name in store.names("steps") if f"-{step}-" in name)
    for name in store.names("shards"):
        keys = store.read_table(f"shards/{name}", ["key"]).column(0).to_pylist()
        rows = store.read_table(f"steps/{folder}/{name}", columns).to_pylist()
        found |= {int(Path(key).stem): row for key, row in zip(keys, rows, strict=True)}
    return found


def plain(label: dict[str, Any]) -> tuple[Any, ...]:
    corners = tuple(round(label[side], 2) for side in ("x1", "y1", "x2", "y2"))
    return (label["class"], *corners, label["mask"])


def test_what_is_doubtful_is_chosen_with_its_reason(street: str, tmp_path: Path) -> None:
    found = export_review(street, "label-studio", tmp_path / "out", 9, 4)
    chosen = numbers_in(tmp_path / "out")
    assert (found["images"], found["random"], found["kept"], found["labels"]) == (9, 9 - 3, IMAGES, "select.detections")
    assert chosen[7]["reasons"] == ["agreement about a label is 0.05"]
    assert "car scored 0.29, the threshold is 0.3" in chosen[5]["reasons"]
    assert "tram is rare: 1 in all" in chosen[3]["reasons"]
    data = {task["data"]["image_id"]: task["data"] for task in tasks_in(tmp_path / "out")}
    assert data[8]["reasons"] == chosen[7]["reasons"]
    assert "random" not in data[8]
    assert [plain(label) for label in chosen[3]["detections"]] == [plain(label) for label in sorted_told(3)]


def sorted_told(number: int) -> list[dict[str, Any]]:
    return sorted((label for label in told(number) if label["score"] >= 0.3), key=lambda label: -label["score"])


def test_the_random_slice_depends_on_nothing_but_seed_and_key(street: str, tmp_path: Path) -> None:
    slices = {}
    for name, images, seed in (("a", 9, 0), ("b", 14, 0), ("c", 9, 1)):
        store = Store(street)
        if store.exists("review"):
            store.fs.rm(store.path("review"), recursive=True)
        export_review(street, "cvat", tmp_path / name, images, 6, seed)
        slices[name] = {number for number, row in numbers_in(tmp_path / name).items() if row["random"]}
    assert slices["a"] <= slices["b"]
    assert slices["a"] != slices["c"]
    export_review(street, "cvat", tmp_path / "next", 9, 6, 1)
    again = {number for number, row in numbers_in(tmp_path / "next").items() if row["random"]}
    assert not again & slices["c"], "the next slice draws others"


def edit(answers: list[dict[str, Any]]) -> dict[str, int]:
    """A person's work in Label Studio: one bus moved, one removed, one made a tram, one added, a mask redrawn."""
    image_ids = {}
    ordinary = [answer for answer in answers if len(answer["annotations"][0]["result"]) == 2]
    for name, answer in zip(("moved", "removed", "renamed", "added", "redrawn"), ordinary, strict=False):
        image_ids[name] = answer["data"]["image_id"]
        result = answer["annotations"][0]["result"]
        bus = next(region for region in result if region["type"] == "rectanglelabels")
        if name == "moved":
            bus["value"]["x"] += 2
        elif name == "removed":
            result.remove(bus)
        elif name == "renamed":
            bus["value"]["rectanglelabels"] = ["tram"]
        elif name == "added":
            value = {**bus["value"], "x": 0.0, "y": 75.0, "width": 25.0, "height": 25.0}
            result.append({**bus, "id": "Xy_1", "value": value, "origin": "manual"})
        else:
            polygon = next(region for region in result if region["type"] == "polygonlabels")
            polygon["value"]["points"] = [[10, 10], [50, 10], [50, 50], [10, 50]]
    return image_ids


def test_label_studio_round_trip(street: str, tmp_path: Path) -> None:
    export_review(street, "label-studio", tmp_path / "out", 12, 12)
    answers = label_studio_answers(tasks_in(tmp_path / "out"))
    edited = edit(answers)
    (tmp_path / "export.json").write_text(json.dumps(answers))
    found = import_review(tmp_path / "export.json", street)
    shown = sum(len(task["predictions"][0]["result"]) for task in tasks_in(tmp_path / "out"))
    assert found["problems"] == []
    assert (found["reviewed"], found["not_reviewed"], found["skipped"]) == (12, 0, 0)
    # renamed: the bus is gone and a tram is there; redrawn: overlaps the old one by less than half
    assert (found["untouched"], found["changed"], found["removed"], found["added"]) == (shown - 4, 1, 3, 3)
    precision, recall = found["estimate"]["precision"], found["estimate"]["recall"]
    assert (precision["right"], precision["of"]) == (shown - 3, shown)
    assert (recall["right"], recall["of"]) == (shown - 3, shown)
    n, k, z = shown, shown - 3, 1.959963984540054
    middle, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * (k * (n - k) / n + z * z / 4) ** 0.5
    assert (precision["low"], precision["high"]) == pytest.approx((middle - half, middle + half))
    folder = Path(street).parent
    applied = finished(
        folder,
        {"labelmill.operators.review:Review": {"decisions": found["decisions"]}, "as": "review"},
        output="applied",
    )
    rows = by_number(applied, "review", ["detections", "reviewer", "reviewed_at"])
    before = by_number(applied, "select", ["detections"])
    reviewed = {answer["data"]["image_id"] - 1 for answer in answers}
    for number, row in rows.items():
        labels = row["detections"]
        assert row["reviewer"] == ("ada@example.org" if number in reviewed else None)
        assert (row["reviewed_at"] is not None) == (number in reviewed)
        if number + 1 not in edited.values():
            assert labels == before[number]["detections"], "untouched labels keep score, prompt, mask and models"
    labels = {name: rows[image_id - 1]["detections"] for name, image_id in edited.items()}
    was = {name: before[image_id - 1]["detections"] for name, image_id in edited.items()}
    assert [label["class"] for label in labels["removed"]] == ["car"]
    assert labels["moved"][1]["x1"] == pytest.approx(was["moved"][1]["x1"] + 0.02 * 80, abs=0.01)
    assert (labels["moved"][1]["score"], labels["moved"][1]["models"]) == (None, None)
    assert labels["moved"][0]["models"] == MODEL
    assert [label["class"] for label in labels["renamed"]] == ["car", "tram"]
    assert plain(labels["added"][-1]) == ("bus", 0, 45, 20, 60, None)
    (redrawn,) = (label for label in labels["redrawn"] if label["class"] == "car")
    assert (redrawn["x1"], redrawn["y1"], redrawn["x2"], redrawn["y2"]) == (8, 6, 40, 30)
    assert redrawn["mask"] is not None
    first = rows[answers[0]["data"]["image_id"] - 1]
    assert first["reviewed_at"].isoformat() == "2026-03-01T11:00:00.500000+00:00"


@pytest.mark.parametrize("zipped", [False, True])
def test_cvat_round_trip(street: str, tmp_path: Path, zipped: bool) -> None:
    export_review(street, "cvat", tmp_path / "out", 8, 8)
    document = cvat_answers(tmp_path / "out")
    images = list(document.iterfind("image"))
    images[0].find("box").set("xbr", "75.00")  # type: ignore[union-attr]
    images[1].remove(images[1].find("mask"))  # type: ignore[arg-type]
    mask = images[2].find("mask")
    assert mask is not None
    for name, value in (("rle", "0, 4, 12"), ("left", "2"), ("top", "3"), ("width", "4"), ("height", "4")):
        mask.set(name, value)
    file = tmp_path / "annotations.xml"
    ElementTree.ElementTree(document).write(file, encoding="utf-8", xml_declaration=True)
    if zipped:
        with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
            archive.write(file, "annotations.xml")
        file = tmp_path / "task.zip"
    found = import_review(file, street)
    assert found["problems"] == []
    shown = sum(len(row["detections"]) for row in numbers_in(tmp_path / "out").values())
    assert (found["reviewed"], found["untouched"]) == (8, shown - 3)
    rows = pq.read_table(found["decisions"]).to_pylist()
    assert {row["reviewer"] for row in rows} == {"grace"}
    assert rows[0]["reviewed_at"].isoformat() == "2026-03-02T12:00:00.123000+00:00"
    names = [int(Path(image.get("name", "")).stem.split("-")[1]) for image in images]
    by_key = {int(Path(row["key"]).stem): row["detections"] for row in rows}
    (bus,) = (label for label in by_key[names[0]] if label["class"] == "bus")
    assert (bus["x2"], bus["models"]) == (75, None)
    assert [label["class"] for label in by_key[names[1]] if label["class"] != "tram"] == ["bus"]
    (car,) = (label for label in by_key[names[2]] if label["class"] == "car")
    assert (car["x1"], car["y1"], car["x2"], car["y2"], car["score"]) == (2, 3, 6, 4, None)


def test_a_later_answer_wins_and_earlier_ones_of_other_images_stay(street: str, tmp_path: Path) -> None:
    export_review(street, "label-studio", tmp_path / "out", 6, 6)
    answers = label_studio_answers(tasks_in(tmp_path / "out"))
    (tmp_path / "one.json").write_text(json.dumps(answers[:4]))
    first = import_review(tmp_path / "one.json", street)
    assert (first["random_reviewed"], first["random"]) == (4, 6)
    later = label_studio_answers(tasks_in(tmp_path / "out")[3:], completed_by=7)
    later[0]["annotations"][0]["result"] = []
    (tmp_path / "two.json").write_text(json.dumps(later))
    second = import_review(tmp_path / "two.json", street)
    assert (second["random_reviewed"], second["random"]) == (6, 6)
    rows = pq.read_table(second["decisions"]).to_pylist()
    assert len(rows) == 6
    assert pq.read_schema(second["decisions"]).equals(REVIEWS)
    (emptied,) = (row for row in rows if row["image_id"] == later[0]["data"]["image_id"])
    assert (emptied["detections"], emptied["reviewer"]) == ([], "user 7")
    again = export_review(street, "label-studio", tmp_path / "next", 3, 0)
    assert again["images"] == 3
    seen = {row["key"] for row in rows}
    assert not seen & {row["key"] for row in numbers_in(tmp_path / "next").values() if row["reasons"]}


def test_the_commands_say_what_they_did_as_json(street: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from labelmill.pipelines.commands.review import review

    out, runner = tmp_path / "out", CliRunner()
    given = runner.invoke(review, ["export", str(out), "--run", street, "--to", "cvat", "--images", "3", "--json"])
    assert given.exit_code == 0, given.output
    assert json.loads(given.stdout)["images"] == 3
    back = runner.invoke(
        review, ["import", str(out / "annotations.xml"), "--run", street, "--reviewer", "me", "--json"]
    )
    assert back.exit_code == 0, back.output
    found = json.loads(back.stdout)
    assert (found["reviewed"], found["problems"]) == (3, [])
    assert {row["reviewer"] for row in pq.read_table(found["decisions"]).to_pylist()} == {"me"}
    assert runner.invoke(review, ["export", str(out), "--run", street]).exit_code == 2


def test_it_prints_what_matters(street: str, tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(record=True, width=160)
    print_exported(export_review(street, "label-studio", tmp_path / "out", 6, 6), console)
    answers = label_studio_answers(tasks_in(tmp_path / "out"))
    answers.append({"id": 5, "data": {"image_id": 999}, "annotations": []})
    (tmp_path / "one.json").write_text(json.dumps(answers))
    print_imported(import_review(tmp_path / "one.json", street), console)
    shown = console.export_text()
    assert "6 of 24 images" in shown
    assert "from the random slice, 6 of 6 images reviewed" in shown
    assert "100.0 %" in shown
    assert "task 5 is about image_id 999, which was not given out for review" in shown


@pytest.mark.parametrize(
    ("change", "told_"),
    [
        ({"tool": "labelstudio"}, "did you mean 'label-studio'"),
        ({"random_images": 10}, "must be at most --images, 9, but is 10"),
        ({"out": "full"}, "must be a new or empty directory"),
    ],
)
def test_what_cannot_be_given_out_is_said(street: str, tmp_path: Path, change: dict[str, Any], told_: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    given: dict[str, Any] = {"tool": "cvat", "images": 9, **change, "out": tmp_path / change.get("out", "out")}
    with pytest.raises(UserError, match=told_):
        export_review(street, **given)


def test_a_file_that_is_no_export_is_refused(street: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match=r"nothing of .* was given out for review"):
        import_review(tmp_path / "a.json", street)
    export_review(street, "cvat", tmp_path / "out", 2)
    bad = {
        "a.json": ('{"tasks": []}', "must be a list of tasks"),
        "b.json": ("[{", "must be JSON"),
        "c.xml": ("<annotations><image", "must be XML"),
        "d.xml": ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "declares a document type"),
    }
    for name, (content, expected) in bad.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=expected):
            import_review(tmp_path / name, street)
    with pytest.raises(UserError, match="there is no file"):
        import_review(tmp_path / "none.json", street)


def test_tasks_that_were_lost_can_be_given_out_again_also_for_another_tool(street: str, tmp_path: Path) -> None:
    """Case 20: nobody has reviewed any, so none of them has been reviewed."""
    first = export_review(street, "label-studio", tmp_path / "one", 24, 24)
    again = export_review(street, "cvat", tmp_path / "two", 24, 24)
    assert first["images"] == again["images"] == 24
    assert (tmp_path / "two" / "annotations.xml").is_file()

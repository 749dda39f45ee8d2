"""Everything that can be wrong with what a tool gives back: told with its id, left out, never the end of the import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labelmill.pipelines.exports.dataset import ExportImage
from labelmill.pipelines.exports.label_studio import regions
from labelmill.pipelines.review.answers import Answer, Report, moment, shown_labels
from labelmill.pipelines.review.cvat import read_cvat
from labelmill.pipelines.review.estimate import estimate
from labelmill.pipelines.review.label_studio import read_label_studio
from labelmill.pipelines.review.manifest import Details, Given
from tests.pipelines.exports.scenes import detection, disc, ring

WIDTH, HEIGHT = 100, 50
CLASSES = ("car", "bus")
DETAILS = Details("0a1b2c3d", "street", "label_studio", "select.detections", "f" * 12, CLASSES, 0, 9, 1)


def given(*labels: dict[str, Any], image_id: int = 7) -> dict[int, Given]:
    image = ExportImage(image_id, f"{image_id}.png", "", WIDTH, HEIGHT, None, list(labels), "PNG")
    return {image_id: Given(image, f"{image_id:08d}-{image_id}.png", True, DETAILS)}


def task(result: list[Any], image_id: Any = 7, **fields: Any) -> dict[str, Any]:
    annotation = {"id": 1, "completed_by": 3, "result": result, "updated_at": "2026-03-01T11:00:00Z", **fields}
    return {"id": 41, "data": {"image_id": image_id}, "annotations": [annotation]}


def rectangle(x: float, y: float, width: float, height: float, name: str = "car", **value: Any) -> dict[str, Any]:
    values = {"x": x, "y": y, "width": width, "height": height, "rectanglelabels": [name], **value}
    return {"id": "r1", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": values}


def polygon(points: Any, region_id: str = "p1", **fields: Any) -> dict[str, Any]:
    value = {"points": points, "polygonlabels": ["car"]}
    return {"id": region_id, "type": "polygonlabels", "from_name": "polygon", "value": value, **fields}


def studio(tmp_path: Path, tasks: list[Any], *labels: dict[str, Any]) -> tuple[list[Answer], Report]:
    report = Report()
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    return list(read_label_studio(tmp_path / "export.json", given(*labels), report)), report


def cvat(tmp_path: Path, xml: str, *labels: dict[str, Any]) -> tuple[list[Answer], Report]:
    report = Report()
    (tmp_path / "annotations.xml").write_text(f"<annotations>{xml}</annotations>")
    return list(read_cvat(tmp_path / "annotations.xml", given(*labels), report)), report


@pytest.mark.parametrize(
    ("region", "told"),
    [
        (rectangle(10, 10, 0, 5), "has a box without area: 0 x 2.5"),
        (rectangle(10, 10, 5, -5), "has a box without area"),
        (rectangle(150, 10, 5, 5), "has a box outside the image of 100 x 50"),
        (rectangle(10, 10, 5, 5, "dog"), "has the label 'dog', which must be one of car, bus"),
        (rectangle(10, 10, 5, 5, rectanglelabels=[]), "has no label"),
        (rectangle(10, 10, 5, "x"), "must have numbers"),  # type: ignore[arg-type]
        ({**rectangle(1, 1, 5, 5), "value": None}, "must have a type and a value"),
        ({**rectangle(1, 1, 5, 5), "type": "brushlabels"}, "is of type brushlabels, which must be one of"),
        (polygon([[1, 1], [9, 9]]), "polygon of 4 numbers"),
        (polygon([[1, 1], [9, 9], [5]]), "must have 2 numbers"),
        (polygon([[1, 1], [1.001, 1], [1, 1.001]], "p1"), "covers no pixel"),
        (polygon(None), "must have points"),
        ("text", "must have a type and a value"),
    ],
)
def test_label_studio_regions_that_cannot_be_used(tmp_path: Path, region: Any, told: str) -> None:
    answers, report = studio(tmp_path, [task([region, rectangle(50, 50, 10, 10, "bus")])])
    assert [label["class"] for label in answers[0].detections] == ["bus"]
    (problem,) = report.problems
    assert problem.startswith("task 41, region ")
    assert told in problem


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (task([], 8), "task 41 is about image_id 8, which was not given out for review"),
        (task([], None), "task 41 is about image_id None"),
        ({"id": 41, "annotations": []}, "task 41 must have data with the image_id"),
        ({"id": 41, "data": {"image_id": 7}}, "must have a list of annotations; export as JSON, not JSON-MIN"),
        ({**task([]), "data": {"image_id": 7, "key": "other.png"}}, "'other.png' as image_id 7, which is '7.png'"),
        ("text", "task number 1 must have data"),
    ],
)
def test_label_studio_tasks_that_cannot_be_used(tmp_path: Path, bad: Any, told: str) -> None:
    answers, report = studio(tmp_path, [bad, task([rectangle(1, 1, 9, 9)])])
    assert len(answers) == 1
    (problem,) = report.problems
    assert told in problem


def test_of_several_annotations_the_last_changed_counts(tmp_path: Path) -> None:
    late = task([rectangle(1, 1, 9, 9)], updated_at="2026-03-02T00:00:00+02:00", completed_by={"email": "late"})
    early = {**task([], updated_at="2026-03-01T21:59:59Z", completed_by={"email": "early"}), "id": 42}
    for tasks in ([late, early], [early, late]):
        answers, report = studio(tmp_path, tasks)
        assert [(each.reviewer, len(each.detections)) for each in answers] == [("late", 1)]
        (problem,) = report.problems
        assert "is another annotation of 7.png" in problem


def test_a_skipped_task_and_one_without_answer_are_no_decisions(tmp_path: Path) -> None:
    answers, report = studio(tmp_path, [task([], was_cancelled=True)])
    assert (answers, report.skipped, report.not_reviewed) == ([], 1, 0)
    answers, report = studio(tmp_path, [{**task([]), "annotations": []}])
    assert (answers, report.skipped, report.not_reviewed) == ([], 0, 1)


def test_a_turned_box_becomes_the_upright_one_around_it(tmp_path: Path) -> None:
    answers, report = studio(tmp_path, [task([rectangle(50, 20, 10, 40, rotation=90)])])
    (label,) = answers[0].detections
    assert [label[side] for side in ("x1", "y1", "x2", "y2")] == pytest.approx([30, 10, 50, 20])
    assert "is turned by 90 degrees" in report.problems[0]
    xml = '<image id="0" name="7.png"><box label="car" xtl="40" ytl="15" xbr="60" ybr="35" rotation="45"/></image>'
    answers, report = cvat(tmp_path, xml)
    (label,) = answers[0].detections
    half = 200**0.5
    assert [label[side] for side in ("x1", "y1", "x2", "y2")] == pytest.approx(
        [50 - half, 25 - half, 50 + half, 25 + half]
    )
    assert "is turned by 45 degrees" in report.problems[0]


def test_label_studio_returns_its_own_regions_untouched_whatever_the_mask(tmp_path: Path) -> None:
    masks = [ring(HEIGHT, WIDTH, 20, 20, 15, 6), disc(HEIGHT, WIDTH, 60, 20, 9) | disc(HEIGHT, WIDTH, 85, 35, 6)]
    shown = [*(detection("car", mask=mask, models=["m@1"]) for mask in masks), detection("bus", (1.5, 2.25, 40, 45))]
    (only,) = given(*shown).values()
    result = [region for label in shown_labels(only) for region in regions(only.image, label, CLASSES)]
    for region in result:  # as a browser's arithmetic would move it
        for name in ("x", "y"):
            if name in region["value"]:
                region["value"][name] += 3e-7
    answers, report = studio(tmp_path, [task(list(reversed(result)))], *shown)
    assert report.problems == []
    assert answers[0].untouched == 3
    assert sorted(map(str, answers[0].detections)) == sorted(map(str, shown))
    parts = [region for region in result if region["id"].startswith("object-2")]
    answers, _ = studio(tmp_path, [task(parts[:1])], *shown)
    assert answers[0].untouched == 0
    assert answers[0].detections[0]["models"] is None, "a part was removed, so it is a person's"


def test_two_equal_labels_need_two_equal_answers(tmp_path: Path) -> None:
    twice = [detection("car", (10, 10, 20, 20)), detection("car", (10, 10, 20, 20))]
    answers, _ = studio(tmp_path, [task([rectangle(10, 20, 10, 20)])], *twice)
    assert (len(answers[0].detections), answers[0].untouched) == (1, 1)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ('<box label="car" xtl="9" ytl="1" xbr="9" ybr="5"/>', "has a box without area: 0 x 4"),
        ('<box label="car" xtl="nan" ytl="1" xbr="9" ybr="5"/>', "must have numbers as xtl, ytl, xbr, ybr"),
        ('<box label="car" xtl="1" ytl="1" xbr="9"/>', "must have numbers as xtl, ytl, xbr, ybr"),
        ('<box label="dog" xtl="1" ytl="1" xbr="9" ybr="5"/>', "has the label 'dog'"),
        ('<box label="car" xtl="101" ytl="1" xbr="109" ybr="5"/>', "has a box outside the image"),
        ('<polygon label="car" points="1,1;2,2"/>', "polygon of 4 numbers"),
        ('<polygon label="car" points="1,1;2"/>', "polygon of 3 numbers"),
        ('<polygon label="car" points="a"/>', "must have points as x,y;x,y"),
        ('<mask label="car" rle="1, 2" left="0" top="0" width="2" height="2"/>', "does not fill 2 x 2 pixels"),
        ('<mask label="car" rle="4" left="0" top="0" width="2" height="2"/>', "covers no pixel"),
        ('<mask label="car" rle="0, 4" left="99" top="0" width="2" height="2"/>', "leaves the image of 100 x 50"),
        ('<mask label="car" rle="" left="0" top="0" width="2" height="2"/>', "rle is not whole numbers"),
        ('<mask label="car" rle="0" left="0" top="0" width="0" height="2"/>', "has a mask without area"),
        ('<ellipse label="car" cx="1" cy="1" rx="1" ry="1"/>', "must be one of box, polygon, mask"),
    ],
)
def test_cvat_shapes_that_cannot_be_used(tmp_path: Path, shape: str, told: str) -> None:
    good = '<box label="bus" xtl="1" ytl="1" xbr="9" ybr="5"/>'
    answers, report = cvat(tmp_path, f'<image id="3" name="7.png">{shape}{good}</image>')
    assert [label["class"] for label in answers[0].detections] == ["bus"]
    (problem,) = report.problems
    assert problem.startswith("image 3 (7.png), ")
    assert told in problem


def test_cvat_images_that_cannot_be_used(tmp_path: Path) -> None:
    xml = '<image id="0" name="x.png"/><image id="1"/><track id="4"/>'
    same = '<image id="2" name="7.png"><box label="car" xtl="1" ytl="1" xbr="9" ybr="5"/></image>'
    answers, report = cvat(tmp_path, xml + same + '<image id="3" name="a/00000007-7.png"/>')
    assert [each.detections for each in answers] == [[]], "the last one counts"
    assert (answers[0].reviewer, answers[0].reviewed_at) == (None, None)
    assert report.problems == [
        "image 0 (x.png) was not given out for review",
        "image 1 () was not given out for review",
        "track 4 must be shapes of an image: export as CVAT for images",
        "image 7.png stands in the file twice; the last one counts",
    ]


def test_cvat_says_who_and_when(tmp_path: Path) -> None:
    owner = "<owner><username>boss</username></owner>"
    for inner, who in ((f"{owner}<assignee/>", "boss"), (f"{owner}<assignee>ada</assignee>", "ada"), ("", None)):
        meta = f"<meta><task>{inner}<updated>2026-03-01 12:00:00+02:00</updated></task></meta>"
        answers, _ = cvat(tmp_path, meta + '<image id="0" name="7.png"/>')
        assert answers[0].reviewer == who
        assert answers[0].reviewed_at == moment("2026-03-01T10:00:00Z")


def test_moments_without_a_zone_are_utc_and_nonsense_is_none() -> None:
    assert moment("2026-03-01 10:00:00") == moment("2026-03-01T11:00:00+01:00")
    assert [moment(text) for text in ("yesterday", "", None, 5)] == [None] * 4


def test_an_estimate_without_labels_is_none() -> None:
    found = estimate([(1, [], [])], CLASSES)
    assert (found["images"], found["precision"]["estimate"], found["precision_by_class"]) == (1, None, {})
    half = estimate(
        [(1, [detection("car", (0, 0, 9, 9))], [detection("car", (0, 0, 9, 9)), detection("bus", (0, 0, 9, 9))])],
        CLASSES,
    )
    assert (half["precision"]["estimate"], half["recall"]["estimate"]) == (1.0, 0.5)
    assert half["precision"]["low"] == pytest.approx(0.2065, abs=1e-4)  # 1 of 1: 1 / (1 + z²)

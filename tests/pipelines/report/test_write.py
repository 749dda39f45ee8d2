"""The report of a run without a browser: what is in the file, that it is right, and that it stays small."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import html5lib
import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from labelmill.pipelines.commands.report import report
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.exports.masks import read_mask
from labelmill.pipelines.report import page as page_module
from labelmill.pipelines.report.gather import gather
from labelmill.pipelines.report.histogram import MAX_BINS, SHOWN, Histogram
from labelmill.pipelines.report.limits import DUPLICATE_GROUPS, MAP_POINTS, MAX_PICTURE_BYTES
from labelmill.pipelines.report.overlays import mask_path
from labelmill.pipelines.report.page import duration
from labelmill.pipelines.report.picking import Lowest, draw
from labelmill.pipelines.report.pictures import Pictures
from labelmill.pipelines.report.run_reader import RunReader
from labelmill.pipelines.report.write import write_report
from labelmill.pipelines.run import Options, run
from tests.drawing import encode, folder_of_images, noise
from tests.pipelines.report.runs import CLASSES, EVIL, large_run, score_of, small_run, truth_of

FAR = re.compile(
    r"""(?:src|href|action|poster|data|srcset)\s*=\s*["']?\s*(?!data:|#)[^"'>\s]+|url\(|@import""", re.IGNORECASE
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def found(small: Path) -> dict[str, Any]:
    return gather(RunReader(str(small)), None)


@pytest.fixture(scope="module")
def page(small: Path) -> str:
    return Path(write_report(str(small))).read_text("utf-8")


@pytest.fixture(scope="module")
def judged(small: Path) -> str:
    """The page of the same run with truth."""
    truth = truth_of(small, small.parent / "truth.json")
    return Path(write_report(str(small), truth, small.parent / "judged.html")).read_text("utf-8")


def tree(page: str) -> Any:
    """The page as a browser's parser sees it; a mistake in it is an error."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def told(page: str) -> str:
    """All that the page says outside of scripts and styles."""
    return " ".join(
        text for element in tree(page).iter() if element.tag not in ("script", "style")
        for text in (element.text or "", element.tail or "")
    )  # fmt: skip


@pytest.mark.parametrize("which", ["page", "judged"])
def test_page_is_valid_and_needs_nothing_else(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which)
    root = tree(page)
    scripts = list(root.iter("script"))
    assert not any("src" in element.attrib for element in scripts)
    assert not list(root.iter("link")) and not list(root.iter("iframe"))
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not [hit for hit in FAR.findall(markup) if hit]
    policy = next(e.attrib["content"] for e in root.iter("meta") if e.attrib.get("http-equiv"))
    assert "default-src 'none'" in policy and "img-src data:;" in policy and "'unsafe-eval'" not in policy
    assert policy.count("sha256-") == sum(e.attrib.get("type") != "application/json" for e in scripts)


def test_names_are_text_wherever_they_come_from(page: str, judged: str) -> None:
    root = tree(page)
    assert len(list(root.iter("script"))) == 6  # four that run, two that are data
    assert [e.text for e in root.iter("title") if EVIL not in (e.text or "")] == ["odd – labelmill report"]
    shown = told(page)
    assert f"{EVIL}/x.png" in shown  # a file
    assert re.search(re.escape(EVIL) + r" 0\.\d\d", shown)  # a class
    assert "missed: cup" in told(judged)
    assert f"reads “{EVIL}”" in shown  # a word
    assert f"the model stumbled over {EVIL}" in shown  # a reason
    assert EVIL in [option.text for option in root.iter("option")]


def test_data_is_json_and_holds_what_the_run_holds(page: str, found: dict[str, Any]) -> None:
    parts = {e.attrib["id"]: json.loads(e.text) for e in tree(page).iter("script") if "id" in e.attrib}
    assert parts["data"]["funnel"]["images"] == found["funnel"]["images"] == 40
    assert all(url.startswith("data:image/jpeg;base64,") for url in parts["pictures"].values())
    shown = {e.attrib["data-picture"] for e in tree(page).iter("img")}
    assert shown <= parts["pictures"].keys()


def test_the_funnel_closes_and_agrees_with_the_summary(small: Path, found: dict[str, Any]) -> None:
    summary = json.loads((small / "summary.json").read_text())
    funnel = found["funnel"]
    for kind in ("dropped", "duplicate", "failed"):
        assert sum(step[kind] for step in funnel["steps"]) == summary["outcome"][kind] > 0
    assert funnel["steps"][-1]["left"] == summary["outcome"]["kept"]
    quarantine = pq.read_table(small / "quarantine.parquet").to_pylist()
    assert sum(each["count"] for each in funnel["failures"]) == len(quarantine)
    assert {each["image"] for each in funnel["failed"]} == {row["image_id"] for row in quarantine}
    dropped = {told["image"] for reason in funnel["dropped"] for told in reason["images"]}
    assert {found["keys"][image] for image in dropped} == {"dull.png"}


def test_a_threshold_keeps_what_the_report_says(small: Path, found: dict[str, Any]) -> None:
    score = next(each for each in found["scores"] if each["name"] == "boxes.detections · score")
    tables = [pq.read_table(file) for file in sorted(next((small / "steps").glob("*-boxes-*")).glob("*.parquet"))]
    lists = [row for table in tables for row in table.column("detections").to_pylist() if row is not None]
    assert score["images"] == len(lists) and score["threshold"] == 0.3
    for place in (0, 30, 47, 99):
        least = np.float32(place / 100)
        kept = [[box for box in boxes if np.float32(box["score"]) >= least] for boxes in lists]
        assert sum(score["counts"][place:]) == sum(map(len, kept))
        assert sum(score["best"][place:]) == sum(bool(boxes) for boxes in kept)
        for each in score["classes"]:
            mine = [[box for box in boxes if box["class"] == each["name"]] for boxes in kept]
            assert sum(each["counts"][place:]) == sum(map(len, mine))
            assert sum(each["best"][place:]) == sum(bool(boxes) for boxes in mine)
    assert [each["name"] for each in score["classes"]] == sorted(CLASSES)


def test_labels_are_those_of_kept_images(small: Path, found: dict[str, Any]) -> None:
    labels = found["labels"]
    kept = set(range(1, 41)) - {told["image"] for told in found["funnel"]["failed"]}
    kept -= {told["image"] for reason in found["funnel"]["dropped"] for told in reason["images"]}
    kept -= {copy["image"] for step in found["duplicates"] for group in step["groups"] for copy in group["copies"]}
    boxes = {n: [CLASSES[(n + w) % 3] for w in (0, 1) if n % 5 and score_of(n, w) >= 0.3] for n in kept}
    assert labels["images"] == len(kept) and labels["boxes"] == sum(map(len, boxes.values()))
    assert labels["without"] == sum(not names for names in boxes.values())
    for each in labels["classes"]:
        assert each["boxes"] == sum(names.count(each["name"]) for names in boxes.values())
        assert each["boxes"] == each["small"] + each["medium"] + each["large"] == sum(each["sizes"])
    lowest = {n: min(score_of(n, w) for w in (0, 1) if score_of(n, w) >= 0.3) for n, names in boxes.items() if names}
    assert found["picked"]["worst"] == sorted(lowest, key=lambda n: (round(lowest[n], 4), n))[:36]
    assert set(found["picked"]["empty"]) <= {n for n, names in boxes.items() if not names}


def test_duplicates_stand_beside_what_they_copy(found: dict[str, Any]) -> None:
    (step,) = found["duplicates"]
    pairs = {
        (found["keys"][g["kept"]], found["keys"][c["image"]], c["kind"]) for g in step["groups"] for c in g["copies"]
    }
    assert pairs == {("a/0000.jpg", "a/zz-copy.jpg", "file")}


def test_truth_shows_what_is_wrong_and_missing(small: Path, tmp_path: Path) -> None:
    found = gather(RunReader(str(small)), truth_of(small, tmp_path / "truth.json"))
    by_image = {image: (each["wrong"], each["missing"]) for image, each in found["overlays"].items()}
    extra = sum(score_of(6, which) >= 0.3 for which in (0, 1))
    assert by_image[6] == (extra, 0) and by_image[7][1] == 1
    assert all(sum(wrong) == 0 for image, wrong in by_image.items() if image not in (6, 7))
    assert set(found["picked"]["worst"]) == {6, 7} and found["labels"]["ranked_by_mistakes"]
    classes = {each["name"]: each for each in found["quality"]["classes"]}
    assert sum(each["wrong"] for each in classes.values()) == extra and classes["cup"]["missed"] == 1
    labels = found["quality"]["labels"]
    assert sum(each["right"] for each in classes.values()) == round(labels["precision"] * labels["labels"])


def test_the_same_run_gives_the_same_page(small: Path, tmp_path: Path) -> None:
    first, second = (Path(write_report(str(small), out=tmp_path / name)).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_it_is_written_again_only_if_something_changed(small: Path) -> None:
    address = Path(write_report(str(small)))
    before = address.stat().st_mtime_ns
    assert write_report(str(small), again=False) == str(address)
    assert address.stat().st_mtime_ns == before
    address.write_text(re.sub(r'(labelmill-state" content=")\w{8}', r"\g<1>00000000", address.read_text()))
    write_report(str(small), again=False)
    assert address.stat().st_mtime_ns != before


def test_an_unfinished_run_says_so(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_report(str(small), out=tmp_path / "no" / "such.html")
    file = next((small / "steps").glob("*-select-*/00001.parquet"))
    aside = file.rename(file.with_suffix(".aside"))
    try:
        with pytest.raises(UserError, match="not finished; run its pipeline again"):
            write_report(str(small))
    finally:
        aside.rename(file)


def test_pictures_keep_to_the_budget_and_say_what_cannot_be_shown() -> None:
    files = {"broken": b"no image", **{f"{n}": encode(noise(n, 400, 300)) for n in range(6)}}
    pictures = Pictures()
    pictures.ask([9, 0, 1, 2, 3, 4, 5], 64)
    pictures.ask([1], 200)
    made = pictures.make({9: "broken", **{n: str(n) for n in range(6)}}, files.__getitem__)
    assert "not an image" in made[9].problem and len(made) == 7
    assert (made[0].width, made[0].height) == (400, 300) and len(made[1].url) > 2 * len(made[0].url)
    room = sum(len(made[n].url) for n in (0, 1, 2))
    few = pictures.make({9: "broken", **{n: str(n) for n in range(6)}}, files.__getitem__, budget=room)
    assert list(few) == [9, 0, 1, 2] and few[2] == made[2]


@pytest.mark.slow
def test_a_run_of_100_000_images_stays_small_and_quick(tmp_path: Path) -> None:
    folder = large_run(tmp_path, 100_000)
    started = time.process_time()
    page = Path(write_report(str(folder)))
    seconds = time.process_time() - started
    assert page.stat().st_size < MAX_PICTURE_BYTES + 3_000_000
    assert seconds < 90
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[0])
    assert data["funnel"]["images"] == 100_000
    assert len(data["maps"][0]["points"]) == MAP_POINTS
    assert page.read_text().count('<ul class="group"') == DUPLICATE_GROUPS


@given(st.lists(st.lists(st.floats(-1e7, 1e7, width=32), max_size=20), max_size=5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_histograms_count_everything_in_whatever_order(parts: list[list[float]], random: Any) -> None:
    values = np.array([value for part in parts for value in part])
    whole, pieces = Histogram(), Histogram()
    whole.add(values)
    random.shuffle(parts)
    for part in parts:
        pieces.add(np.array(part))
    assert whole.finish() == pieces.finish()
    found = whole.finish()
    assert sum(found["counts"]) == whole.count == len(values) and len(found["counts"]) <= max(SHOWN, MAX_BINS // 50) + 2
    for index in np.flatnonzero(found["counts"]).tolist():
        low = found["start"] + index * found["width"]
        assert np.any((values >= low - 0.01 * found["width"]) & (values <= low + 1.01 * found["width"]))


def test_histograms_put_round_figures_above_their_edge() -> None:
    histogram = Histogram()
    histogram.add(np.array([0.7, 0.3, 0.29, np.nan, np.inf, 1.0], dtype=np.float32))
    found = histogram.finish()
    edges = {round(found["start"] + place * found["width"], 3): n for place, n in enumerate(found["counts"]) if n}
    assert edges == {0.29: 1, 0.3: 1, 0.7: 1, 1.0: 1} and found["width"] == 0.01


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), unique_by=lambda pair: pair[0]), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_the_lowest_are_the_lowest(pairs: list[tuple[int, int]], count: int) -> None:
    lowest = Lowest(count)
    for start in range(0, len(pairs), 7):
        part = pairs[start : start + 7]
        lowest.add(np.array([i for i, _ in part]), np.array([f for _, f in part], dtype=float))
    assert lowest.ids.tolist() == [i for i, f in sorted(pairs, key=lambda pair: (pair[1], pair[0]))[:count]]


def test_the_draw_is_even_and_always_the_same() -> None:
    figures = draw(np.arange(1, 4001))
    assert np.array_equal(figures[10:20], draw(np.arange(11, 21)))
    assert abs(figures.mean() - 0.5) < 0.02 and abs(np.corrcoef(figures, np.arange(4000))[0, 1]) < 0.05


def test_mask_outlines_fill_the_mask_with_its_hole() -> None:
    from matplotlib.path import Path as Outline
    from pycocotools import mask as coco_mask

    painted = np.zeros((40, 60), np.uint8, order="F")
    painted[5:30, 10:50] = 1
    painted[12:20, 20:35] = 0
    painted[33:38, 3:8] = 1
    mask = read_mask(coco_mask.encode(painted)["counts"].decode(), 40, 60)
    rings = [
        np.array([[float(x) for x in point.split()] for point in ring.split("L")])
        for ring in re.findall(r"M([^Z]+)Z", mask_path(mask, 0.0))
    ]
    assert len(rings) == 3
    y, x = np.mgrid[:40, :60] + 0.5
    inside = np.sum([Outline(ring).contains_points(np.c_[x.ravel(), y.ravel()]) for ring in rings], axis=0) % 2
    assert np.array_equal(inside.reshape(40, 60), painted)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_for_people(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_vendored_files_are_those_that_their_page_names() -> None:
    folder = Path(page_module.HERE) / "vendor"
    named = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.MULTILINE))
    assert named == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.js")}


def test_a_run_without_labels_and_embeddings_has_a_report(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "images", 5)
    document = {"name": "bare", "source": {"folder": str(tmp_path / "images")}, "output": str(tmp_path / "run"),
                "steps": ["inspect", {"keep": "width > 1000"}]}  # fmt: skip
    (tmp_path / "bare.yaml").write_text(json.dumps(document))
    run(load_pipeline(str(tmp_path / "bare.yaml"), []), Options(inline=True), TerminalReporter())
    page = Path(write_report(str(tmp_path / "run"))).read_text()
    parts = {section.attrib["id"] for section in tree(page).iter("section")}
    assert {"funnel", "scores", "speed", "made_with"} <= parts and not {"overlays", "labels", "clusters"} & parts
    assert "Of 5 images 0 were kept" in told(page)


def test_the_command_writes_where_it_is_told(small: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    told = CliRunner().invoke(app, [str(small), "--out", str(tmp_path / "here.html")])
    assert told.exit_code == 0 and told.stdout.strip() == str(tmp_path / "here.html")
    assert "labelmill report" in (tmp_path / "here.html").read_text()
    failed = CliRunner().invoke(app, [str(small), "--truth", str(tmp_path / "none")])
    assert failed.exit_code == 2 and "truth must be labels of any kind" in failed.output

"""`labelmill new`: whatever is answered, the file that it writes passes the check, and nothing is overwritten."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from labelmill.pipelines.commands import new as command
from labelmill.pipelines.config.pipeline import Pipeline, load_pipeline
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.new.source import Found, look, name_of
from labelmill.pipelines.new.write import (
    EXPORT_NEEDS,
    LABELLED,
    NEEDS_CLASSES,
    ON_CPU,
    ON_GPU,
    WANTS,
    Answers,
    complete,
    fitting_exports,
    parse_classes,
    pipeline_text,
)
from labelmill.pipelines.sources.guess import guess_kind
from labelmill.pipelines.sources.spec import KINDS
from tests.drawing import folder_of_images

CHECKOUT = Path(__file__).resolve().parents[3]

STEPS = {
    "clean": ["odd_size", "keep"],
    "deduplicate": ["deduplicate"],
    "classify": ["embed", "classify"],
    "boxes": ["detect", "select"],
    "masks": ["segment"],
    "text": ["read"],
    "captions": ["ask"],
}

app = typer.Typer(rich_markup_mode=None)
app.command()(command.new)


def new(*words: str, code: int = 0, answers: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(words), input=answers, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def loaded(text: str) -> Pipeline:
    Path("p.yaml").write_text(text)
    return load_pipeline("p.yaml")


def without_comments(lines: list[str]) -> list[str]:
    """Keys and steps of a pipeline that no comment stands above."""
    bare = []
    for index, line in enumerate(lines):
        starts = line.startswith("  - ") or (
            line[:1].isalpha() and line.split(":")[0] not in ("name", "steps", "export")
        )
        if starts and not any(lines[index - back].lstrip().startswith("#") for back in (1, 2)):
            bare.append(line)
    return bare


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_every_combination_passes_the_check_and_does_what_was_wanted(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    wants = complete(data.draw(st.lists(st.sampled_from(list(WANTS)), unique=True)), kind)
    fitting = [name for name, lacks in fitting_exports(wants).items() if lacks is None]
    exports = tuple(data.draw(st.lists(st.sampled_from(fitting), unique=True)))
    classes = data.draw(st.sampled_from([{"car": ["car", "taxi"], "stop sign": ["stop sign"]}, {"yes": ["no"]}]))
    found = Found(data.draw(st.sampled_from([None, 1, 200, 5000, 100_001])), data.draw(st.booleans()))
    gpu = data.draw(st.booleans())
    answers = Answers("street", "data/a street, {odd}", kind, wants, classes, exports, gpu, found)
    text = pipeline_text(answers)

    pipeline = loaded(text)
    steps = ["inspect", *(step for want in wants for step in STEPS[want])]
    steps += ["split"] * bool(exports and not found.splits)
    assert [step.name for step in pipeline.steps] == steps
    assert [export.name for export in pipeline.exports] == list(exports)
    assert pipeline.settings.source.kind == kind
    if set(wants) & set(NEEDS_CLASSES):
        assert pipeline.settings.ontology is not None
        assert {name: list(prompts) for name, prompts in pipeline.settings.ontology.root.items()} == classes
    lines = text.splitlines()
    assert without_comments(lines) == []
    assert max(len(line) for line in lines if line.lstrip().startswith("#")) <= 90
    assert "  \n" not in text and "\n\n\n" not in text


@settings(max_examples=15, deadline=None)
@given(
    source=names,
    classes=st.lists(names.filter(lambda name: "$" not in name), min_size=1, max_size=4, unique_by=str.casefold),
)
def test_odd_names_come_back_as_they_were(source: str, classes: list[str]) -> None:
    answers = Answers("x", f"a{source}".replace("$", ""), "folder", ("classify",), {name: [name] for name in classes})
    pipeline = loaded(pipeline_text(answers))
    assert pipeline.settings.source.folder == answers.source
    assert pipeline.settings.ontology is not None
    assert list(pipeline.settings.ontology.classes) == classes


def test_masks_need_boxes_unless_the_source_has_labels() -> None:
    assert complete(["masks"], "folder") == ("boxes", "masks")
    for kind in LABELLED:
        assert complete(["masks"], kind) == ("masks",)
        assert "detections: source.labels" in pipeline_text(Answers("x", "x", kind, ("masks",)))  # type: ignore[arg-type]


def test_every_card_is_one_that_there_is_and_none_is_a_miniature() -> None:
    from labelmill.pipelines.config.cards import card_files

    named = {*ON_GPU.values(), *ON_CPU.values()}
    assert named <= card_files().keys()
    assert not any("miniature" in name or "random" in name for name in named)


def test_classes_that_share_a_prompt_are_refused() -> None:
    with pytest.raises(UserError, match=r"^ontology: prompt 'taxi' must mean one class"):
        pipeline_text(Answers("x", "x", "folder", ("boxes",), {"car": ["taxi"], "cab": ["taxi"]}))


def test_every_question_is_an_option() -> None:
    folder_of_images(Path("data/my street/images"), 12)
    told = new(
        "my.yaml", "--source", "data/my street/images", "--want", "boxes, clean", "--classes", "car=car|taxi,bus",
        "--export", "yolo", "--no-gpu",
    ).output  # fmt: skip
    assert "wrote my.yaml, for 12 images" in told
    assert "labelmill models pull grounding-dino-tiny" in told
    assert "labelmill run my.yaml" in told
    pipeline = load_pipeline("my.yaml")
    assert pipeline.settings.name == "my-street"
    assert pipeline.settings.shard_size == 16
    assert [step.name for step in pipeline.steps] == ["inspect", "odd_size", "keep", "detect", "select", "split"]


def test_what_it_writes_runs() -> None:
    from labelmill.pipelines.engine.terminal import TerminalReporter
    from labelmill.pipelines.run import Options, run

    folder_of_images(Path("data/street"), 12, width=96, height=96)
    new("--source", "data/street", "--yes")
    summary = run(load_pipeline("street.yaml"), Options(inline=True), TerminalReporter())
    assert summary["images"] == 12
    assert [export["export"] for export in summary["exports"]] == ["coco"]


def test_without_a_terminal_it_says_which_options_to_give() -> None:
    told = new(code=2).output
    for option in ("--source", "--want", "--export", "--gpu or --no-gpu", "--yes"):
        assert option in told
    told = new("--source", "x", "--want", "boxes", "--yes", code=2).output
    assert "--classes" in told
    assert "--want" not in told
    assert list(Path().iterdir()) == []


def test_no_file_is_overwritten_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of_images(Path("street"), 2)
    Path("street.yaml").write_text("mine")
    assert "is there already" in new("--source", "street", "--yes", code=2).output
    assert Path("street.yaml").read_text() == "mine"
    monkeypatch.setattr(command, "in_terminal", lambda: True)
    words = ["--source", "street", "--want", "clean", "--export", "none", "--no-gpu"]
    assert "is there already" in new(*words, answers="n\n", code=2).output
    assert Path("street.yaml").read_text() == "mine"
    new(*words, answers="y\n")
    assert load_pipeline("street.yaml").settings.name == "street"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "nowhere"], "nowhere"),
        (["--source", "empty"], "empty"),
        (["--source", "street", "--want", "bozes"], "did you mean 'boxes'"),
        (["--source", "street", "--export", "yollo"], "did you mean 'yolo'"),
        (["--source", "street", "--kind", "foldr"], "did you mean 'folder'"),
        (["--source", "street", "--want", "boxes", "--classes", " , "], "classes must name at least one"),
        (["--source", "street", "--want", "boxes", "--classes", "car,car=taxi"], "'car' is named twice"),
        (["--source", "street", "--want", "boxes", "--classes", "=taxi"], "one is '=taxi'"),
        (["--source", "street", "--want", "boxes", "--classes", "none.yaml"], "there is no ontology file 'none.yaml'"),
        (["no/folder.yaml", "--source", "street"], "no/folder.yaml cannot be written"),
    ],
)
def test_mistakes_end_with_2_and_a_sentence(words: list[str], message: str) -> None:
    folder_of_images(Path("street"), 2)
    Path("empty").mkdir()
    assert message in new(*words, "--yes", code=2).output
    assert not list(Path().glob("*.yaml"))


def test_an_export_that_cannot_be_written_says_what_to_want() -> None:
    folder_of_images(Path("street"), 2)
    lacking = {name: want for name, want in fitting_exports(()).items() if want is not None}
    for name, want in lacking.items():
        told = new("--source", "street", "--want", "clean", "--export", name, "--yes", code=2).output
        assert f"export {name} needs {want}" in told
        assert want in EXPORT_NEEDS.values()


def test_an_ontology_file_is_named_not_copied() -> None:
    folder_of_images(Path("street"), 2)
    Path("classes.yaml").write_text("car: [car, taxi]\n")
    new("--source", "street", "--want", "boxes", "--classes", "classes.yaml", "--yes")
    assert "ontology: classes.yaml" in Path("street.yaml").read_text()
    assert parse_classes("a=b|c, d") == {"a": ["b", "c"], "d": ["d"]}


def test_kinds_are_guessed_from_names_and_content() -> None:
    for name in (
        "yolo/data.yaml",
        "tars/0.tar",
        "tables/0.parquet",
        "hub/dataset_info.json",
        "plain/1.jpg",
        "voc/Annotations/1.xml",
        "voc/JPEGImages/1.jpg",
    ):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    guessed = {
        name: guess_kind(name)
        for name in ("yolo", "voc", "tars", "tables", "hub", "plain", "a.json", "s3://b/x.parquet")
    }
    assert guessed == {
        "yolo": ("yolo/data.yaml", "yolo"),
        "voc": ("voc", "voc"),
        "tars": ("tars", "webdataset"),
        "tables": ("tables", "parquet"),
        "hub": ("hub", "huggingface"),
        "plain": ("plain", "folder"),
        "a.json": ("a.json", "coco"),
        "s3://b/x.parquet": ("s3://b/x.parquet", "parquet"),
    }


def test_remote_sources_are_not_counted_and_local_ones_are() -> None:
    assert look("s3://no-such-bucket/images", "folder") == Found()
    folder_of_images(Path("street"), 3)
    assert look("street", "folder") == Found(3, splits=False)


def test_names_come_from_the_nearest_telling_folder() -> None:
    found = [
        name_of(text) for text in ("data/street", "/x/my cats/images/", "yard/data.yaml", "s3://b/day/*.tar", "images")
    ]
    assert found == ["street", "my-cats", "yard", "day", "dataset"]


def test_it_asks_in_a_terminal_and_asks_again_after_a_wrong_answer() -> None:
    folder_of_images(Path("street"), 3)
    main, terminal = pty.openpty()
    code = "import typer; from labelmill.pipelines.commands.new import new; a = typer.Typer(); a.command()(new); a()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TERM": "dumb"},
    )  # fmt: skip
    os.close(terminal)
    dialogue = [
        ("Where are the images?", "nowhere"), ("What is it?", ""), ("Where are the images?", "street"),
        ("What is it?", ""), ("3 images there", None), ("Want", "bozes"), ("did you mean 'boxes'", None),
        ("Want", "boxes"), ("Classes", "car=car|taxi,bus"), ("GPU?", "n"), ("Export", "yolo"),
        ("wrote street.yaml", None),
    ]  # fmt: skip
    seen = ""
    for expected, answer in dialogue:
        deadline = time.monotonic() + 60
        while expected not in seen and time.monotonic() < deadline:
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 4096).decode()
        assert expected in seen, seen
        seen = seen.partition(expected)[2]
        if answer is not None:
            os.write(main, f"{answer}\n".encode())
    process.wait(timeout=60)
    os.close(main)
    pipeline = load_pipeline("street.yaml")
    assert [step.name for step in pipeline.steps] == ["inspect", "detect", "select", "split"]
    assert [export.name for export in pipeline.exports] == ["yolo"]

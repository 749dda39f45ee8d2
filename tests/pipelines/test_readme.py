"""Every command in README.md is run, or where it needs a network at least parsed; its pipeline passes the check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline
from tests.drawing import folder_of_images
from tests.pipelines.command_lines import check_command, options_of, words_of

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()

NEEDS_NETWORK = (["models", "pull"],)
ENDS_WHEN_IT_IS_STOPPED = [["serve"]]  # tests/pipelines/serve runs it

SMALL = {
    "clip-vit-b-32": "clip-random",
    "grounding-dino-tiny": "grounding-dino-random",
    "sam-vit-b": "sam-miniature",
}
"""Cards of the README's pipeline → cards whose weights are in the repository."""


def fences(text: str) -> Iterator[tuple[str, list[str]]]:
    """Language and lines of every fenced block."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield language, body.splitlines()


def shell_lines(program: str) -> list[str]:
    """Lines of fenced blocks that call a program, without their comments."""
    lines = [line for language, body in fences(README) if language in ("", "sh", "bash", "console") for line in body]
    return [line for line in lines if re.match(rf"{program}\b", line) and not re.match(r"\S+/", line)]


def inline(program: str) -> list[str]:
    """Code within sentences that calls a program."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose) if re.match(rf"{program}\s", code)]


def pipelines() -> list[str]:
    """Fenced YAML that is a pipeline."""
    blocks = ["\n".join(body) for language, body in fences(README) if language == "yaml"]
    return [block for block in blocks if "source" in (yaml.safe_load(block) or {})]


def test_what_is_looked_for_is_found() -> None:
    assert len(shell_lines("labelmill")) >= 8
    assert len(shell_lines("make")) >= 2
    assert len(inline("labelmill")) >= 3
    assert pipelines()


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    for line in [*shell_lines("make"), *inline("make")]:
        assert set(words_of(line)[1:]) <= targets, line


@pytest.mark.parametrize("line", shell_lines("labelmill"))
def test_the_command_line_takes_every_command(line: str) -> None:
    check_command(line)


@pytest.mark.parametrize("line", inline("labelmill"))
def test_commands_in_sentences_exist_with_their_options(line: str) -> None:
    words = words_of(line)[1:]
    group = typer.main.get_command(app)
    names = []
    while words and hasattr(group, "commands") and words[0] in group.commands:
        names.append(words.pop(0))
        group = group.commands[names[-1]]
    assert names, f"there is no command {words[0]!r}"
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options_of(names)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for line in ("labelmill runn street.yaml", "labelmill run", "labelmill run street.yaml --sett a=1"):
        with pytest.raises(Exception, match=r"No such|Missing"):
            check_command(line)


def test_modules_that_are_run_are_there() -> None:
    lines = [line for code in ("python", r"\.venv/bin/python") for line in [*inline(code), *shell_lines(code)]]
    modules = {match.group(1) for line in lines if (match := re.search(r"-m (\S+)", line))}
    for module in modules - {"pytest", "pip", "venv"}:
        path = CHECKOUT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_files_that_are_linked_or_named_are_there() -> None:
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    named = re.findall(r"`((?:conf|operators|pipelines|tests)/[\w./-]+\.(?:py|yaml|md))`", README)
    for name in [*linked, *named]:
        assert (CHECKOUT / name).exists(), name


@pytest.mark.parametrize("text", pipelines())
def test_the_pipeline_passes_the_check(text: str) -> None:
    Path("street.yaml").write_text(text)
    load_pipeline("street.yaml")


@pytest.mark.slow
def test_the_commands_do_what_they_say_on_a_few_images() -> None:
    """All of them, in their order, on the README's pipeline with small models in place of the large ones."""
    text = pipelines()[0]
    for large, small in SMALL.items():
        text = text.replace(large, small)
    Path("street.yaml").write_text(text)
    folder = folder_of_images(Path("data/street"), 9, width=96, height=80)
    (folder / "b/0001.jpg").rename(folder / "a/0001.jpg")
    Path("truth.json").write_text(json.dumps(coco_truth(folder)))

    ran = []
    for line in shell_lines("labelmill"):
        names = check_command(line)
        if names in NEEDS_NETWORK or names in ENDS_WHEN_IT_IS_STOPPED:
            continue
        words = words_of(line)[1:] + ["--inline"] * (names == ["run"])
        result = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
        assert result.exit_code == 0, f"{line}\n{result.output}{result.exception!r}"
        assert result.output.strip(), line
        ran.append(names)
    assert ["run"] in ran
    assert ["explain"] in ran
    exported = json.loads(Path("runs/street/summary.json").read_text())["exports"]
    assert {export["export"] for export in exported} >= {"coco", "yolo"}


def coco_truth(folder: Path) -> dict[str, object]:
    """A COCO file for a folder of images of one size, one car in each."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    return {
        "images": [{"id": i, "file_name": name, "width": 96, "height": 80} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 40, 30], "area": 1200, "iscrowd": 0}
            for i in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "car"}],
    }

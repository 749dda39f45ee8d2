"""What TAB offers, asked for as each shell's completion script asks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labelmill.operators import registry
from labelmill.operators.base import Operator
from labelmill.pipelines.cli import app
from labelmill.pipelines.commands import completion
from labelmill.pipelines.config.cards import card_files

CHECKOUT = Path(__file__).resolve().parents[3]
HEAVY = (
    "torch",
    "ray",
    "transformers",
    "pyarrow",
    "pandas",
    "numpy",
    "cv2",
    "duckdb",
    "omegaconf",
    "labelmill.operators.base",
)

PIPELINE = """
name: street
source: {folder: data}
ontology: [car]
steps:
  - inspect
  - detect: {model: grounding-dino-random}
  - detect: {model: owlv2-random}
    as: again
  - my_module:MyOwn
export:
  yolo: {task: segment}
"""

MY_OWN = '''
raise RuntimeError("completion must not import this")
from tests.toys import Brightness
class MyOwn(Brightness):
    class Params(Brightness.Params):
        """Mine.

        Attributes:
            strength: How much of it.
        """
        strength: float = 1.0
'''


@pytest.fixture(autouse=True)
def files() -> None:
    Path("street.yaml").write_text(PIPELINE)
    Path("card.yaml").write_text("task: detection\n")
    Path("my_module.py").write_text(MY_OWN)
    for name in ("runs/one", "runs/two", "elsewhere/three"):
        Path(name).mkdir(parents=True)
        Path(name, "pipeline.yaml").write_text(PIPELINE)
    Path("runs/no_run").mkdir()
    Path("conf/pipelines").mkdir(parents=True)
    Path("conf/pipelines/deep.yml").write_text("# a comment\nsource: data\n")


def ask(shell: str, line: str) -> list[str]:
    """The words offered at the end of a command line, as the shell's own completion script asks for them."""
    words = line.split(" ")
    protocol = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    code = (
        "import sys, json, time\n"
        "from labelmill.pipelines.cli import app\n"
        "sys.argv[0] = 'labelmill'\n"
        "try:\n    app(prog_name='labelmill')\n"
        "finally:\n"
        "    json.dump([sorted(sys.modules), time.process_time()], open('about.json', 'w'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "_LABELMILL_COMPLETE": f"complete_{shell}", **protocol}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    if shell == "zsh":
        assert done.stdout == "_files\n" or done.stdout.startswith("_arguments '*: :((")
        return re.findall(r'^(?:_arguments \'\*: :\(\()?"((?:[^"\\]|\\.)*)"', done.stdout, re.MULTILINE)
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_told_without_importing_anything_heavy(shell: str) -> None:
    offered = ask(shell, "labelmill run street.yaml --set detect.")
    assert {"detect.floor=", "detect.model=", "detect.batch="} <= set(offered)
    assert all(word.startswith("detect.") for word in offered)
    modules, seconds = json.loads(Path("about.json").read_text())
    assert not set(HEAVY) & set(modules)
    assert seconds < 1.5, "of the processor; 0.45 s on a busy core, of which Typer and Pydantic take 0.4"
    assert set(ask(shell, "labelmill status ")) == {"runs/one", "runs/two"}


def offered(line: str) -> list[str]:
    """The same in this process, as bash asks."""
    protocol = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_LABELMILL_COMPLETE": "complete_bash"}
    return CliRunner().invoke(app, [], env=protocol, prog_name="labelmill").output.split()


def test_commands_arguments_and_options_offer_what_they_take() -> None:
    assert {"run", "plan", "models"} <= set(offered("labelmill "))
    assert offered("labelmill plan str") == ["street.yaml"]
    assert offered("labelmill explain a.jpg --run runs/t") == ["runs/two"]
    assert offered("labelmill ops insp") == ["inspect"]
    assert offered("labelmill models pull clip-mini") == ["clip-miniature"]
    assert offered("labelmill plan street.yaml --workers 2 --set a=1 --set again.fl") == ["again.floor="]


def test_pipeline_files_are_those_with_a_source() -> None:
    assert completion.pipeline_files("") == ["conf/pipelines/deep.yml", "elsewhere/three/pipeline.yaml", "street.yaml"]
    assert completion.pipeline_files("conf/p") == ["conf/pipelines/deep.yml"]
    assert completion.pipeline_files("./str") == ["./street.yaml"]
    assert completion.pipeline_files(f"{Path.cwd()}/st") == [f"{Path.cwd()}/street.yaml"]
    assert completion.pipeline_files("nowhere/x") == []


def test_a_folder_of_very_many_files_does_not_hold_up_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "ENTRIES", 5)
    for index in range(50):
        Path(f"conf/{index}.txt").touch()
    assert len(completion.pipeline_files("")) <= 1


def test_runs_are_found_below_runs_and_where_a_path_was_begun() -> None:
    assert completion.run_folders("") == ["runs/one", "runs/two"]
    assert completion.run_folders("elsewhere/") == ["elsewhere/three"]
    assert completion.run_folders("runs/o") == ["runs/one"]
    assert completion.run_folders("[") == []


def test_keys_are_those_of_the_file_and_of_its_steps() -> None:
    keys = dict(completion.keys_to_set("street.yaml", ""))
    assert {"name=", "output=", "source.folder=", "export.yolo.task=", "again.floor="} <= keys.keys()
    assert keys["my_own.strength="] == "How much of it"
    assert "my_own.sleep=" in keys, "a parameter of the base"
    assert not any(key.startswith("inspect.") and "shorthand" in key for key in keys)
    assert [key for key, _ in completion.keys_to_set("street.yaml", "again.fl")] == ["again.floor="]


@pytest.mark.parametrize("file", [None, "none.yaml", "runs", "bad.yaml", "list.yaml"])
def test_without_a_readable_pipeline_no_key_is_offered(file: str | None) -> None:
    Path("bad.yaml").write_text("a: [")
    Path("list.yaml").write_text("- 1")
    assert completion.keys_to_set(file, "") == []


def test_odd_steps_do_not_stop_completion() -> None:
    Path("odd.yaml").write_text("source: x\nsteps: [1, {a: 1, b: 2}, {nowhere:Nothing: {known: 1}}, keep: x > 1]\n")
    keys = [key for key, _ in completion.keys_to_set("odd.yaml", "")]
    assert "nothing.known=" in keys
    assert "keep.where=" in keys


def fields(cls: type[Operator]) -> set[str]:
    return {field.alias or name for name, field in cls.Params.model_fields.items()}


def test_what_is_read_from_sources_is_what_the_classes_have() -> None:
    assert completion.operators("") == registry.names()
    for name in registry.names():
        assert set(completion.parameters(name)) == fields(registry.find(name)), name
    assert set(completion.parameters("tests.toys:Threshold")) == fields(registry.find("tests.toys:Threshold"))
    steps = ["keep", "tests.toys:Brightness", "x:OddURLName2", {"detect": None}, {"embed": {}, "as": "clip"}]
    from labelmill.pipelines.config.yaml_file import step_label

    assert [completion._step(step)[0] for step in steps] == [step_label(step) for step in steps]


def test_cards_are_those_that_there_are() -> None:
    offered: dict[str, Any] = dict(completion.model_cards(""))
    assert offered.keys() == card_files().keys()
    assert offered["clip-vit-b-32"] == "CLIP ViT-B/32 trained on LAION-2B"

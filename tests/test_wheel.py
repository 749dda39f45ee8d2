"""The wheel and the source distribution: whole, and run as a user does who has nothing else of labelmill.

The wheel is installed without its dependencies into an environment of its own, which sees those of the environment that
runs the tests but not the labelmill in it, and is used from an empty directory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[1]
UV = Path(sysconfig.get_path("scripts")) / "uv"
ROOMS = ("conf", "labelmill", "operators", "pipelines")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not UV.exists(), reason="uv is not in the environment that runs the tests"),
]

PIPELINE = {
    "name": "tiny",
    "source": {"folder": "drawn/images"},
    "output": "out",
    "ontology": {"cup": ["cup", "mug"], "star": "star"},
    "steps": [
        "inspect",
        {"embed": {"model": "clip-miniature"}},
        {"detect": {"model": "grounding-dino-miniature"}},
        {"select": {"score": 0.3}},
        {"segment": {"model": "sam-miniature"}},
    ],
    "export": {"coco": {}},
}


@dataclass(frozen=True)
class Installed:
    """A wheel in an environment of its own."""

    environment: Path

    @property
    def site(self) -> Path:
        return next(self.environment.glob("lib/python*/site-packages"))

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run its ``labelmill`` in the working directory; what it printed.

        Paths that lead to the checkout by way of this process's environment are taken out.
        """
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        clean |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [self.environment / "bin" / "labelmill", *words],
            env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        assert str(CHECKOUT) not in done.stdout + done.stderr
        return done.stdout + done.stderr


def tracked(*rooms: str) -> set[str]:
    """Files of rooms of the checkout that git knows or would take; without git, all but what Python leaves behind."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *rooms]
    if (CHECKOUT / ".git").exists() and shutil.which("git"):
        names = subprocess.run(asked, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.splitlines()
        return {name for name in names if (CHECKOUT / name).is_file()}
    found = (path for room in rooms for path in (CHECKOUT / room).rglob("*") if path.is_file())
    return {str(path.relative_to(CHECKOUT)) for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both distributions, the wheel made from the other: built with the setuptools that is here, without a network."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    for name in tracked(*ROOMS, "tests", *(path.name for path in CHECKOUT.iterdir() if path.is_file())):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, copy / name)
    command = [UV, "build", "--offline", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def labelmill(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment that has this one's packages, but not its labelmill, behind its own."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    command = [UV, "pip", "install", "--offline", "--no-deps", "--python", python, built["wheel"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    installed = Installed(environment)
    # A line with a path makes it part of sys.path; .pth files there, such as an editable labelmill's, are not read.
    (installed.site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's working directory."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ---------------------------------------------------------------- what is in them


def test_every_file_of_the_rooms_is_in_the_wheel_below_one_name(built: dict[str, Path]) -> None:
    names = {name for name in zipfile.ZipFile(built["wheel"]).namelist() if ".dist-info/" not in name}
    assert names == {f"labelmill/{name.removeprefix('labelmill/')}" for name in tracked(*ROOMS)}


def test_the_wheel_asks_for_what_a_user_needs_alone(built: dict[str, Path]) -> None:
    wheel = zipfile.ZipFile(built["wheel"])
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert any("ray" in line for line in needed)
    assert not any(word in line for line in needed for word in ("pytest", "ruff", "mypy", "moto", "playwright"))


def test_the_source_distribution_has_what_builds_and_tests_it(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= tracked(*ROOMS, "tests")
    assert names >= {"pyproject.toml", "setup.py", "MANIFEST.in", "uv.lock", "Makefile", "README.md", "LICENSE"}


# ---------------------------------------------------------------- what a user does with it


def test_its_own_code_runs(labelmill: Installed) -> None:
    assert labelmill("--version").strip() == f"labelmill {version('labelmill')}"
    found = subprocess.run(
        [labelmill.environment / "bin" / "python", "-I", "-c",
         "import labelmill, labelmill.operators, labelmill.pipelines as p; print(labelmill.CONF, *p.__path__)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert found == [str(labelmill.site / "labelmill" / room) for room in ("conf", "pipelines")]


def test_every_card_is_listed_and_what_ships_is_here(labelmill: Installed) -> None:
    listed = {card["name"]: card for card in json.loads(labelmill("models", "--json"))}
    assert set(listed) == {path.stem for path in (CHECKOUT / "conf/models").glob("*.yaml")}
    assert not [card for card in listed.values() if "problem" in card]
    assert all(card["here"] for name, card in listed.items() if name.endswith(("-miniature", "-random")))
    assert all(card["file"].startswith(str(labelmill.site)) for card in listed.values())
    assert {name for name in listed if name.endswith("-miniature")}


def test_a_pipeline_of_miniatures_from_drawing_to_export(labelmill: Installed) -> None:
    labelmill("world", "drawn", "--images", "4", "--seed", "3")
    Path("tiny.yaml").write_text(yaml.safe_dump(PIPELINE, sort_keys=False))
    assert "good" in labelmill("check", "tiny.yaml")
    labelmill("run", "tiny.yaml", "--inline")
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["images"] == 4, summary
    coco = json.loads(next(Path("out/exports/coco").rglob("*.json")).read_text())
    assert {one["name"] for one in coco["categories"]} == {"cup", "star"}
    assert "<html" in Path("out/report.html").read_text()[:2000].lower()
    assert "nothing to compute" in labelmill("run", "tiny.yaml", "--inline")


def test_new_writes_a_pipeline_that_passes_the_check(labelmill: Installed) -> None:
    labelmill("world", "drawn", "--images", "2")
    labelmill("new", "mine.yaml", "-y", "--source", "drawn/images", "--want", "boxes", "--classes", "cup, star")
    assert "good" in labelmill("check", "mine.yaml")


def test_pipelines_and_class_lists_that_come_with_it_are_found_by_name(labelmill: Installed) -> None:
    assert "good" in labelmill("check", "conf/pipelines/autolabel.yaml")
    assert "no file" in labelmill("check", "conf/pipelines/none.yaml", code=2)
    Path("conf/pipelines").mkdir(parents=True)
    Path("conf/pipelines/autolabel.yaml").write_text(yaml.safe_dump({**PIPELINE, "name": "my-own"}))
    assert "5 steps" in labelmill("check", "conf/pipelines/autolabel.yaml"), "one's own comes first"


def test_a_card_of_one_s_own(labelmill: Installed) -> None:
    """Copied from one that ships, into the working directory's conf/models or beside the pipeline."""
    card = (labelmill.site / "labelmill/conf/models/clip-miniature.yaml").read_text()
    own = {**PIPELINE, "steps": ["inspect", {"embed": {"model": "my-card"}}], "export": {}}
    own.pop("ontology")
    Path("mine.yaml").write_text(yaml.safe_dump(own))
    assert "model must be one of" in labelmill("check", "mine.yaml", code=2)

    Path("my-card.yaml").write_text(card)
    assert "for the file here write 'my-card.yaml'" in labelmill("check", "mine.yaml", code=2)
    Path("beside.yaml").write_text(yaml.safe_dump({**own, "steps": ["inspect", {"embed": {"model": "my-card.yaml"}}]}))
    assert "good" in labelmill("check", "beside.yaml")

    Path("conf/models").mkdir(parents=True)
    Path("my-card.yaml").rename("conf/models/my-card.yaml")
    assert "good" in labelmill("check", "mine.yaml")
    listed = {one["name"]: one for one in json.loads(labelmill("models", "--json"))}
    assert listed["my-card"]["here"] and "clip-miniature" in listed
    Path("conf/models/my-card.yaml").write_text(card.replace("engine:", "enginee:"))
    said = labelmill("check", "mine.yaml", code=2)
    assert "mine.yaml:" in said and "my-card.yaml: engine: Field required" in said


def test_weights_that_one_gets_oneself_lie_in_the_working_directory(labelmill: Installed, empty: Path) -> None:
    own = {
        **PIPELINE,
        "steps": [{"read": {"model": "doctr-db-resnet50", "recognition": "doctr-crnn-vgg16"}}],
        "export": {},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(own))
    weights = empty / "weights"
    said = labelmill("check", "mine.yaml", code=2)
    assert f"must be at {weights / 'db_resnet50-79bd7d70.pt'}" in said
    weights.mkdir()
    for name in ("db_resnet50-79bd7d70.pt", "crnn_vgg16_bn-0417f351.pt"):
        (weights / name).write_bytes(b"not looked into by the check")
    assert {one["name"]: one["here"] for one in json.loads(labelmill("models", "--json"))}["doctr-db-resnet50"]

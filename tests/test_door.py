"""`import labelmill` is the one door: what an installed package is, seen from outside of the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import labelmill
from labelmill.operators.registry import UnknownOperator, find, is_built_in

BEFORE = "operators"
"""What the room was imported as before there was one name."""


def elsewhere(code: str, folder: Path) -> str:
    """What a program prints that runs in another folder, with this environment's labelmill."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_everything_is_below_one_name(tmp_path: Path) -> None:
    code = (
        "import importlib.util\n"
        "import labelmill.operators.detections.boxes as boxes\n"
        "tops = ('operators', 'pipelines', 'conf')\n"
        "print(boxes.__name__, *(importlib.util.find_spec(name) is None for name in tops))"
    )
    assert elsewhere(code, tmp_path) == "labelmill.operators.detections.boxes True True True"


def test_importing_it_takes_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, labelmill; heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'pandas', 'transformers', 'pydantic'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert elsewhere(code, tmp_path) == "[]"


def test_where_things_lie() -> None:
    assert (labelmill.CONF / "models" / "clip-random.yaml").is_file()
    assert (labelmill.ROOT / "operators" / "base.py").is_file()
    assert (labelmill.IMPORT_PATH / "labelmill" / "__init__.py").is_file()


def test_an_operator_that_a_pipeline_names_as_before_is_the_built_in_one() -> None:
    fuse = find(f"{BEFORE}.fuse:Fuse")
    assert fuse is find("fuse") and is_built_in(fuse)


def test_a_module_of_the_users_that_is_called_operators_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "operators").mkdir()
    (tmp_path / "operators" / "mine.py").write_text(
        "from labelmill.operators.base import TableOperator\nclass Mine(TableOperator): pass\n"
    )
    code = "from labelmill.operators.registry import find; print(find('operators.mine:Mine').__module__)"
    assert elsewhere(code, tmp_path) == "operators.mine"


def test_an_operator_made_of_another_copy_of_the_contract_is_told_what_to_import(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_directory / "old_style.py").write_text(
        f"from {BEFORE}.base import TableOperator\nclass Old(TableOperator): pass\n"
    )
    monkeypatch.syspath_prepend(str(labelmill.ROOT))
    monkeypatch.syspath_prepend(str(working_directory))
    for name in (BEFORE, f"{BEFORE}.base"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UnknownOperator, match=r"write `from labelmill\.operators\.base import"):
        find("old_style:Old")

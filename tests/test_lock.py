"""uv.lock, what a fresh machine installs: whole, from PyPI alone, with hashes, and of this pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CHECKOUT = Path(__file__).resolve().parents[1]
TEXT = (CHECKOUT / "uv.lock").read_text()
LOCK = tomllib.loads(TEXT)
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PACKAGES: list[dict[str, Any]] = LOCK["package"]


def wanted() -> set[tuple[str, str, str]]:
    """Name, extras and bounds of everything that pyproject.toml asks for."""
    project = PROJECT["project"]
    texts = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
        *(text for group in PROJECT["dependency-groups"].values() for text in group),
    ]
    return {asked(Requirement(text).name, Requirement(text).extras, str(Requirement(text).specifier)) for text in texts}


def asked(name: str, extras: Any, bounds: str) -> tuple[str, str, str]:
    return re.sub(r"[-_.]+", "-", name).lower(), ",".join(sorted(extras)), str(SpecifierSet(bounds))


def test_it_is_of_this_pyproject() -> None:
    """`make lint` and `make test` stop at a lock that is not; `.venv/bin/uv lock` brings it up to date."""
    own = next(package for package in PACKAGES if package["name"] == "labelmill")
    metadata = own["metadata"]
    locked = {
        asked(one["name"], one.get("extras", ()), one.get("specifier", ""))
        for one in [*metadata["requires-dist"], *(one for group in metadata["requires-dev"].values() for one in group)]
    }
    assert locked == wanted()
    assert own["source"] == {"editable": "."} and own["version"] == PROJECT["project"]["version"]


def test_every_file_comes_from_pypi_and_has_a_hash() -> None:
    for package in PACKAGES:
        if package["name"] == "labelmill":
            continue
        assert package["source"] == {"registry": "https://pypi.org/simple"}, package["name"]
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
        assert files, package["name"]
        for file in files:
            assert file["url"].startswith("https://files.pythonhosted.org/packages/"), file
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]), file


def test_no_place_of_a_machine_is_in_it() -> None:
    assert set(re.findall(r"\w+://[^/\"]+", TEXT)) == {"https://pypi.org", "https://files.pythonhosted.org"}
    assert not re.search(r"file:|/home/|/root/|/opt/|/tmp/|/work/", TEXT)


@pytest.mark.parametrize("asks", PROJECT["project"]["dependencies"], ids=lambda text: re.split(r"[\[<>=]", text)[0])
def test_bounds_have_two_ends(asks: str) -> None:
    """A version that no test has seen is installed for nobody. Versions that are dates have no such ends."""
    requirement = Requirement(asks)
    operators = {one.operator for one in requirement.specifier}
    if requirement.name in ("fsspec", "s3fs", "gcsfs"):
        assert operators == {">="}
    else:
        assert operators == {">=", "<"}

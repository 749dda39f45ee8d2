"""labelmill turns a pile of images into a clean, labelled dataset. This is the one door: ``import labelmill``.

`open_run`, `run`, `operator` and `models` are explained, with examples that run, in `labelmill.pipelines.api`.

In a checkout the rooms `operators` and `pipelines` lie beside this folder, in an installed package they lie in it. In
both their names are ``labelmill.operators`` and ``labelmill.pipelines``, and nothing else of labelmill can be imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelmill.pipelines.api import ImageModel as ImageModel
    from labelmill.pipelines.api import models as models
    from labelmill.pipelines.api import open_run as open_run
    from labelmill.pipelines.api import operator as operator
    from labelmill.pipelines.api import run as run
    from labelmill.pipelines.run_folder.run import Run as Run

__all__ = ["CONF", "IMPORT_PATH", "ROOT", "ImageModel", "Run", "models", "open_run", "operator", "run"]

_PACKAGE = Path(__file__).resolve().parent

IMPORT_PATH = _PACKAGE.parent
"""The folder that Python finds labelmill in: the checkout, or site-packages."""

ROOT = _PACKAGE if (_PACKAGE / "operators").is_dir() else IMPORT_PATH
"""The folder that holds `operators`, `pipelines` and `conf`: the checkout, or that of the installed package."""

if ROOT != _PACKAGE:
    __path__.append(str(ROOT))

CONF = ROOT / "conf"
"""The pipelines, model cards and class lists that come with labelmill."""


def __getattr__(name: str) -> Any:
    """`labelmill.pipelines.api`, imported when it is first asked for: ``import labelmill`` alone takes no time."""
    if name in ("ImageModel", "Run", "models", "open_run", "operator", "run"):
        from labelmill.pipelines import api

        return getattr(api, name)
    raise AttributeError(f"module 'labelmill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

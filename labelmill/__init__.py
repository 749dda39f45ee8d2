"""labelmill turns a pile of images into a clean, labelled dataset. This is the one door: ``import labelmill``.

In a checkout the rooms `operators` and `pipelines` lie beside this folder, in an installed package they lie in it. In
both their names are ``labelmill.operators`` and ``labelmill.pipelines``, and nothing else of labelmill can be imported.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

IMPORT_PATH = _PACKAGE.parent
"""The folder that Python finds labelmill in: the checkout, or site-packages."""

ROOT = _PACKAGE if (_PACKAGE / "operators").is_dir() else IMPORT_PATH
"""The folder that holds `operators`, `pipelines` and `conf`: the checkout, or that of the installed package."""

if ROOT != _PACKAGE:
    __path__.append(str(ROOT))

CONF = ROOT / "conf"
"""The pipelines, model cards and class lists that come with labelmill."""

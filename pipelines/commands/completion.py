"""What a shell offers when TAB is pressed.

Names are read out of files: no operator is imported and nothing of the user's runs.

Every function takes what was typed so far and gives what begins with it, as words or as (word, what it means).
"""

from __future__ import annotations

import ast
import glob
import os
import re
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from labelmill import ROOT
from labelmill.operators.registry import BUILT_IN, names, step_name

DEPTH = 3
"""How many folders deep pipeline files are looked for below the one that was typed."""

ENTRIES = 3000
"""At most so many names of files are looked at: TAB must answer at once in a folder of a million images too."""

OWN_KEYS = ("name", "output", "shard_size")
"""Keys of a pipeline with one value each, which `--set` can change whether or not the file has them."""


def pipeline_files(typed: str) -> list[str]:
    """Pipeline files: YAML files with a ``source:``."""
    folder = typed.rpartition("/")[0] + "/" if "/" in typed else ""
    names = (os.path.join(folder, name) for name in _yaml_files(folder or "."))
    return sorted(name for name in names if name.startswith(typed) and _is_pipeline(name))


def run_folders(typed: str) -> list[str]:
    """Directories of runs: those below ``runs/``, and those whose path was begun."""
    patterns = ("runs/*/pipeline.yaml", f"{glob.escape(typed)}*/pipeline.yaml")
    found = {os.path.dirname(name) for pattern in patterns for name in glob.iglob(pattern)}
    return sorted(name for name in found if name.startswith(typed))


def operators(typed: str) -> list[str]:
    """Operators that a pipeline can name bare."""
    return [name for name in names() if name.startswith(typed)]


def model_cards(typed: str) -> list[tuple[str, str]]:
    """Model cards, with the first words of their first comment."""
    from labelmill.pipelines.config.cards import card_files

    return [(name, _about(path)) for name, path in sorted(card_files().items()) if name.startswith(typed)]


def keys_to_set(file: str | None, typed: str) -> list[tuple[str, str]]:
    """What can stand before the ``=`` of ``--set``: ``step.parameter=`` for every step of a file, and keys of the file.

    Args:
        file: The pipeline file named on the command line; without one, or if it cannot be read, nothing is offered.
        typed: The key so far.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(file or "").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    if not isinstance(values, dict):
        return []
    found = dict.fromkeys(OWN_KEYS, "")
    for key in ("source", "export"):
        found |= dict.fromkeys(_leaves(values.get(key), key), "")
    for step in values.get("steps") or []:
        name, operator, given = _step(step)
        if name and name.startswith(typed.partition(".")[0]):
            params = dict.fromkeys(given, "") | parameters(operator)
            found |= {f"{name}.{param}": about for param, about in params.items()}
    return [(f"{key}=", about) for key, about in sorted(found.items()) if key.startswith(typed)]


def parameters(operator: str) -> dict[str, str]:
    """Parameters of an operator and what they do, read from its source.

    Args:
        operator: As a pipeline names it: built in, or ``my_module:MyOperator`` where ``my_module.py`` lies below the
            working directory or the project.
    """
    module, _, cls = BUILT_IN.get(operator, operator).partition(":")
    return _params_of(module, cls)


def _yaml_files(root: str) -> Iterator[str]:
    """YAML files below a folder, the nearest first; paths below it."""
    waiting, left = deque([("", 0)]), ENTRIES
    while waiting:
        below, depth = waiting.popleft()
        try:
            with os.scandir(os.path.join(root, below)) as listing:
                for entry in listing:
                    left -= 1
                    if left < 0:
                        return
                    name = os.path.join(below, entry.name)
                    if entry.name.startswith(".") or name == "runs":
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if depth < DEPTH:
                            waiting.append((name, depth + 1))
                    elif entry.name.endswith((".yaml", ".yml")):
                        yield name
        except OSError:
            continue


def _is_pipeline(name: str) -> bool:
    try:
        with open(name, encoding="utf-8") as file:
            return re.search(r"^source\s*:", file.read(20_000), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _about(card: Path) -> str:
    first = card.read_text(encoding="utf-8").partition("\n")[0]
    if not first.startswith("#"):
        return ""
    return re.split(r"[:.(,](?:\s|$)|\s\(", first.strip("# "))[0].strip()


def _leaves(value: Any, path: str) -> list[str]:
    if isinstance(value, dict):
        return [leaf for key, below in value.items() for leaf in _leaves(below, f"{path}.{key}")]
    return [path]


def _step(step: Any) -> tuple[str, str, list[str]]:
    """A step's name, operator and the parameters that it is given; empty where it is none."""
    if isinstance(step, str):
        step = {step: None}
    keys = [key for key in step if key != "as"] if isinstance(step, dict) else []
    if len(keys) != 1:
        return "", "", []
    operator, value = str(keys[0]), step[keys[0]]
    return str(step.get("as", step_name(operator))), operator, list(value) if isinstance(value, dict) else []


@cache
def _tree(module: str) -> ast.Module | None:
    own = module.removeprefix("labelmill.")
    for root, name in ((ROOT, own),) if own != module else ((Path.cwd(), module), (ROOT, module)):
        try:
            return ast.parse((root / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
    return None


def _find(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """A class of a module, or of the module that this one imports it from."""
    for node in (_tree(module) or ast.Module([], [])).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
    return None


def _params_of(module: str, cls: str) -> dict[str, str]:
    """The fields of an operator's ``Params``, its own or its base's."""
    found = _find(module, cls)
    if found is None:
        return {}
    module, node = found
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name == "Params":
            return _fields(module, inner)
    for base in node.bases:
        if isinstance(base, ast.Name):
            params = _params_of(module, base.id)
            if params:
                return params
    return {}


def _fields(module: str, cls: ast.ClassDef) -> dict[str, str]:
    fields: dict[str, str] = {}
    for base in cls.bases:
        if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
            fields |= _params_of(module, base.value.id)
        elif isinstance(base, ast.Name):
            found = _find(module, base.id)
            fields |= _fields(*found) if found is not None else {}
    told = dict(re.findall(r"^\s*(\w+): (.*)$", ast.get_docstring(cls) or "", re.MULTILINE))
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if name.startswith("_") or "ClassVar" in ast.unparse(node.annotation):
            continue
        for keyword in node.value.keywords if isinstance(node.value, ast.Call) else []:
            if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant):
                fields[str(keyword.value.value)] = _sentence(told.get(name, ""))
                break
        else:
            fields[name] = _sentence(told.get(name, ""))
    return fields


def _sentence(text: str) -> str:
    """The first words, without what shells give a meaning."""
    return re.split(r"[.:;(`{]", text)[0].strip()[:60]

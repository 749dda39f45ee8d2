"""Finds an operator by the word used in a pipeline: built in, `my_module:MyOperator`, or an entry point."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelmill.operators.base import Operator

ENTRY_POINTS = "labelmill.operators"

BUILT_IN = {
    "inspect": "labelmill.operators.inspect:Inspect",
    "odd_size": "labelmill.operators.odd_size:OddSize",
    "keep": "labelmill.operators.keep:Keep",
    "embed": "labelmill.operators.embed:Embed",
    "classify": "labelmill.operators.classify:Classify",
    "deduplicate": "labelmill.operators.deduplicate:Deduplicate",
    "moderate": "labelmill.operators.moderate:Moderate",
    "detect": "labelmill.operators.detect:Detect",
    "select": "labelmill.operators.select:Select",
    "verify": "labelmill.operators.verify:Verify",
    "fuse": "labelmill.operators.fuse:Fuse",
    "segment": "labelmill.operators.segment:Segment",
    "read": "labelmill.operators.read:Read",
    "gaze": "labelmill.operators.gaze:Gaze",
    "ask": "labelmill.operators.ask:Ask",
    "pipeline": "labelmill.operators.pipeline:Pipeline",
    "review": "labelmill.operators.review:Review",
    "label_errors": "labelmill.operators.label_errors:LabelErrors",
    "label_conflicts": "labelmill.operators.label_conflicts:LabelConflicts",
    "cluster": "labelmill.operators.cluster:Cluster",
    "balance": "labelmill.operators.balance:Balance",
    "split": "labelmill.operators.split:Split",
}
"""Name → where it is. A new operator gets a file and a line here."""


class UnknownOperator(Exception):
    """No operator of that name, or what stands there is no operator."""


def names() -> list[str]:
    """Every operator that can be used by its bare name."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find(name: str) -> type[Operator]:
    """The operator class behind a name.

    Args:
        name: A built-in name, the name of an entry point in the group ``labelmill.operators``, or
            ``module:Class`` where the module can be imported from the working directory or the environment.

    Raises:
        UnknownOperator: With the nearest name, or with what went wrong on import.
    """
    if name in BUILT_IN:
        return _load(BUILT_IN[name], name)
    if ":" in name:
        return _load(_own(name), name)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return _load(point.value, name)
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownOperator(f"operator must be one of {', '.join(names())} or module:Class but is {name!r}{hint}")


def _own(target: str) -> str:
    """``operators.fuse:Fuse``, as pipelines before the one import name wrote it, where labelmill has that module."""
    module = target.partition(":")[0]
    ours = module.startswith("operators.") and importlib.util.find_spec(f"labelmill.{module}") is not None
    return f"labelmill.{target}" if ours else target


def is_built_in(cls: type[Operator]) -> bool:
    """Whether the class ships with labelmill."""
    return cls.__module__.startswith("labelmill.operators.")


def step_name(name: str) -> str:
    """The default name of a step of this operator: lower case letters, digits and underscores."""
    bare = name.rpartition(":")[2]
    return re.sub(r"\W", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", bare)).lower()


def _load(target: str, name: str) -> type[Operator]:
    # Not above: names alone, as the shell's completion wants them, must not take half a second.
    from labelmill.operators.base import DatasetOperator, ImageOperator, TableOperator

    module_name, _, class_name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise UnknownOperator(f"operator {name!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise UnknownOperator(f"operator {name!r}: module {module_name} has no {class_name!r}") from error
    kinds = (ImageOperator, TableOperator, DatasetOperator)
    if not (isinstance(cls, type) and issubclass(cls, kinds)):
        wanted = ", ".join(kind.__name__ for kind in kinds)
        if any(base.__module__.split(".") == ["operators", "base"] for base in getattr(cls, "__mro__", ())):
            raise UnknownOperator(
                f"operator {name!r} must be made of the classes of labelmill.operators.base but is made of another "
                "copy of them; write `from labelmill.operators.base import …`"
            )
        raise UnknownOperator(f"operator {name!r} must be a subclass of one of {wanted} but is {cls!r}")
    return cls

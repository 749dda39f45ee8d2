"""Libraries without the slow part of their imports that no engine uses.

Importing torchvision imports torch's whole compiler, for one question that `roi_align` asks when called on a GPU, and
to tell the compiler what to leave alone. open_clip imports transformers for towers that our cards may not name, and
timm, which imports the compiler too, for some that they rarely do. That is two seconds of processor time in every
process. It is put off here, not left out: whoever asks for any of it gets it. A version of a library that imports
something else is slow again, and works; a test notices.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def import_torchvision() -> None:
    """Import torchvision and its transforms; `torch._dynamo` only when its question is asked."""
    if "torchvision" in sys.modules or "torch._dynamo" in sys.modules:
        return
    import torch  # not in the block: it must not meet the stand-ins

    def is_compile_supported(device: Any) -> bool:
        answer: bool = importlib.import_module("torch._dynamo.utils").is_compile_supported(device)
        return answer

    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        """Marks what a compiled program must not compile; without the compiler there is nothing to mark."""
        return function if function is not None else lambda each: each

    package, utils = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    package.__path__ = []
    package.disable = disable  # type: ignore[attr-defined]
    utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    del torch
    try:
        with _in_place({"torch._dynamo": package, "torch._dynamo.utils": utils}):
            importlib.import_module("torchvision.transforms.v2")
    except (ImportError, AttributeError):  # it has come to ask more
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


def import_open_clip(timm: bool = False) -> None:
    """Import open_clip as where transformers and timm are not installed, which it allows for.

    Args:
        timm: Whether it needs timm: for models whose configuration has a ``timm_model_name``.
    """
    import_torchvision()
    if "open_clip" not in sys.modules:
        wanted = {"timm"} if timm else set()
        with _in_place({name: None for name in ("transformers", "timm") if name not in {*wanted, *sys.modules}}):
            importlib.import_module("open_clip")
    module = sys.modules["open_clip.timm_model"]
    if timm and module.timm is None:
        importlib.reload(module)  # into the same names, which open_clip's classes look up


@contextmanager
def _in_place(modules: dict[str, Any]) -> Iterator[None]:
    """Have modules stand in for others while the block imports. One thread must import at a time."""
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

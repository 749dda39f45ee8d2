"""Names of engines: those that come with labelmill, and those that are a user's own."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.metadata import entry_points
from pathlib import Path

BUILT_IN: dict[str, tuple[str, ...]] = {
    "detection": ("transformers", "groundingdino"),
    "embedding": ("open_clip", "transformers"),
    "gaze": ("l2cs",),
    "image-text-to-text": ("transformers", "openai"),
    "moderation": ("onnxruntime",),
    "ocr": ("rapidocr",),
    "segmentation": ("segment_anything", "transformers"),
    "text-detection": ("doctr",),
    "text-recognition": ("doctr",),
}
"""For each task of a card, what its `engine` may be. A new engine gets a file and a word here."""

ENTRY_POINTS = "labelmill.engines"

_KNOWN = {name for names in BUILT_IN.values() for name in names}


def own(engine: str) -> str | None:
    """Where a user's own engine is, as ``module:name``; None for a built-in one, and where there is none.

    Args:
        engine: ``module:name``, or the name of an entry point in the group ``labelmill.engines``.
    """
    if engine in _KNOWN:
        return None
    if ":" in engine:
        return engine
    return next((point.value for point in entry_points(group=ENTRY_POINTS) if point.name == engine), None)


def code(engine: str) -> str | None:
    """The digest of the file of a user's own engine, so that an edit of it is not taken for the same model.

    None for a built-in engine; empty where there is no such file.
    """
    target = own(engine)
    if target is None:
        return None
    try:
        spec = importlib.util.find_spec(target.partition(":")[0])
    except ImportError:
        return ""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()

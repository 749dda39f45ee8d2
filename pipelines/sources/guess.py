"""What kind of source a path most likely is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.sources.spec import Kind


def guess_kind(source: str) -> tuple[str, Kind]:
    """What a path most likely is, from its name and what lies in it; and the path as that kind of source wants it."""
    path = Path(source)
    suffix = path.suffix.lower()
    by_suffix: dict[str, Kind] = {
        ".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".parquet": "parquet", ".tar": "webdataset",
    }  # fmt: skip
    if suffix in by_suffix and not path.is_dir():
        return source, by_suffix[suffix]
    if (path / "data.yaml").is_file():
        return str(path / "data.yaml"), "yolo"
    if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir():
        return source, "voc"
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return source, "huggingface"
    inside: tuple[tuple[str, Kind], ...] = (("*.parquet", "parquet"), ("*.tar", "webdataset"))
    for pattern, kind in inside:
        if next(path.glob(pattern), None) is not None:
            return source, kind
    return source, "folder"

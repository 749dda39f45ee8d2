from __future__ import annotations

from pathlib import Path
from typing import Any

from labelmill.pipelines.sources import Entry, Fetcher, Source, SourceSpec, open_source
from tests.drawing import encode, noise

NASTY_NAMES = (
    "a#row=1.jpg",
    "with space.jpg",
    "ünï/日本 語.jpg",
    "question?mark.jpg",
    "100%.jpg",
    "%20.jpg",
    "plus+and&amp=.jpg",
    "new\nline.jpg",
    "brace{0..3}[1]*.jpg",
    'quote".jpg',
    "back\\slash.jpg",
    "s3:/x.jpg",
    "UPPER.JPG",
)


def picture(seed: int = 0, width: int = 48, height: int = 32, kind: str = "JPEG", **options: object) -> bytes:
    return encode(noise(seed, width, height), kind, **options)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def source_of(value: Any, **options: Any) -> Source:
    return open_source(SourceSpec.model_validate({**value, **options} if isinstance(value, dict) else value))


def scan(value: Any, **options: Any) -> dict[str, Entry]:
    """Entries by key."""
    entries = list(source_of(value, **options).scan())
    found = {entry.key: entry for entry in entries}
    assert len(found) == len(entries)
    return found


def fetch_all(entries: dict[str, Entry], options: dict[str, Any] | None = None) -> dict[str, bytes]:
    fetcher = Fetcher(options)
    return {key: fetcher(entry.uri) for key, entry in entries.items()}


def boxes(entry: Entry) -> list[tuple[str, float, float, float, float]]:
    assert entry.labels is not None
    return [(item["class"], item["x1"], item["y1"], item["x2"], item["y2"]) for item in entry.labels]

"""What can be told of a source before a pipeline is written for it: its kind, its size, a name."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from labelmill.operators.columns.schemas import LABEL_STATES
from labelmill.operators.wording import counted

if TYPE_CHECKING:
    from labelmill.pipelines.sources.spec import Kind

COUNTED = 100_000
"""Images are counted up to here; with more, only that is said."""


@dataclass(frozen=True)
class Found:
    """What is known of a source without opening an image.

    Attributes:
        images: How many, at most `COUNTED` + 1; None where nobody looked.
        splits: Whether the source says which split an image is in.
        missing: Whole classes of labels that are missing; see `Source.missing`.
        states: State of labels → how many of those images; see `operators.columns.schemas.LABEL_STATES`.
    """

    images: int | None = None
    splits: bool = False
    states: Mapping[str, int] = field(default_factory=dict, compare=False)
    missing: tuple[str, ...] = field(default=(), compare=False)

    def told(self) -> str | None:
        """The number in words."""
        if self.images is None:
            return None
        return f"more than {COUNTED:,} images" if self.images > COUNTED else counted(self.images, "image")


def recognised(kind: Kind, found: Found) -> str:
    """What a source was taken for, and what became of its labels, in a line."""
    told = f"found {kind}"
    if found.images is None:
        return told
    parts = [f"{found.states[state]:,} {state}" for state in LABEL_STATES if found.states.get(state)]
    labels = f", labels: {', '.join(parts)}" if set(found.states) - {"unread"} else ", without labels"
    return f"{told}: {found.told()}{labels}"


def look(source: str, kind: Kind) -> Found:
    """Count a local source's images and see whether it has splits. A remote one is not asked: that may take long.

    Raises:
        UserError: There is no such source, or no image in it.
    """
    from labelmill.pipelines.sources.spec import SourceSpec, open_source
    from labelmill.pipelines.sources.uri import is_remote

    if is_remote(source):
        return Found()
    opened = open_source(SourceSpec.model_validate({kind: source}))
    entries = opened.scan()
    images, splits = 0, False
    states: Counter[str] = Counter()
    for entry in itertools.islice(entries, COUNTED + 1):
        images += 1
        splits = splits or entry.split is not None
        states[entry.label_state] += 1
    return Found(images, splits, states, tuple(opened.missing))


def name_of(source: str) -> str:
    """A pipeline's name from where its images are: the nearest folder that is not called `images` or the like."""
    parts = [part for part in re.split(r"[/\\]+", source.partition("://")[2] or source) if part not in ("", ".", "..")]
    if parts and "." in parts[-1]:
        parts[-1] = parts[-1].rpartition(".")[0]
    plain = {"images", "image", "data", "train", "annotations", "dataset", "img", ""}
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") for part in reversed(parts)]
    return next((name for name in names if name.lower() not in plain), "dataset")

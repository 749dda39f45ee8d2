"""README.md of an exported dataset: what is in it, where it came from, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from labelmill.pipelines.exports.labels import Tally

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


def dataset_card(
    title: str,
    tally: Tally,
    made: Sequence[str],
    notes: Sequence[str],
    provenance: dict[str, Any],
    counted: str = "objects",
) -> bytes:
    """The card in Markdown, UTF-8.

    Args:
        title: First heading.
        tally: Counts of the whole dataset.
        made: Sentences on how labels and files were made.
        notes: Sentences about what a reader will stumble over.
        provenance: JSON values, shown as they are. Its ``licences`` and ``models`` have a chapter of their own.
        counted: What an annotation of the tally is, in the plural.
    """
    lines = [f"# {escaped(title)}", "", "## What is in it", ""]
    lines += _table(
        ["", *tally.splits],
        [
            ["images", *(tally.images[split] for split in tally.splits)],
            [counted, *(sum(tally.annotations[split]) for split in tally.splits)],
        ],
    )
    if tally.classes:
        rows = [
            [name, *(tally.annotations[split][index] for split in tally.splits)]
            for index, name in enumerate(tally.classes)
        ]
        lines += ["", f"{counted.capitalize()} of each class, in the order of the class ids:", ""]
        lines += _table(["class", *tally.splits], rows)
    if tally.skipped:
        lines += ["", "Left out:", ""]
        lines += _table(["reason", "how many"], [[reason, count] for reason, count in sorted(tally.skipped.items())])
    if notes:
        lines += ["", "## What to know", "", *(f"- {escaped(note)}" for note in notes)]
    lines += ["", "## How it was made", "", *(f"- {sentence}" for sentence in made)]
    lines += _licences(provenance)
    if provenance:
        text = json.dumps(provenance, indent=2, sort_keys=True, ensure_ascii=False)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        lines += ["", "## Where it came from", "", f"{fence}json", text, fence]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def how_placed(images: Literal["link", "copy", "none"], none: str = "") -> str:
    """What a card says of image files that `pipelines.exports.files.Output.place` put there.

    Args:
        images: The export's parameter.
        none: The sentence for an export without image files.
    """
    files = {
        "link": "Image files are hard links to the originals where these are on the same disk, and else copies.",
        "copy": "Image files are copies of the originals.",
        "none": none,
    }
    return files[images] + " Their bytes are as they were."


def _licences(provenance: dict[str, Any]) -> list[str]:
    """The chapter on licences; nothing where neither those of images nor models are known."""
    images, models = provenance.get("licences") or [], provenance.get("models") or []
    if not images and not models:
        return []
    lines = ["", "## Licences", ""]
    lines.append("Images: " + (", ".join(escaped(str(name)) for name in images) if images else "not known") + ".")
    if models:
        lines += ["", "Models that took part; their licences can bind the use of what they made:", ""]
        rows = [[model["step"], model["reference"], model["licence"]] for model in models]
        lines += _table(["step", "model", "licence"], rows)
    return lines


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no HTML, no control characters."""
    printable = "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)
    printable = _SPECIAL.sub(r"\\\1", printable)
    return printable.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(escaped(str(cell)) for cell in cells) + " |"

    return [line(header), "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|", *(line(row) for row in rows)]

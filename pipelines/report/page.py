"""The page: what was gathered, put into templates. Every name is escaped; only scripts that came with labelmill run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from labelmill.operators.wording import counted
from labelmill.pipelines.evaluation.print import PARTS as EVALUATION_PARTS
from labelmill.pipelines.report.limits import GALLERY_IMAGES
from labelmill.pipelines.report.run_reader import Figures

HERE = Path(__file__).parent

SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "assets/charts.js", "assets/report.js")

CHARTED = ("labels", "scores", "maps", "speed", "quality")
"""What the charts read. The rest stands in the page already."""


def render(found: Figures, state: str) -> str:
    """The page.

    Args:
        found: What `pipelines.report.gather.gather` gave.
        state: Identifies what the page was made from.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["duration"] = duration
    environment.filters["counted"] = counted
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    scripts = [_asset(name) for name in SCRIPTS]
    pictures = found["pictures"]
    quality = found["quality"]
    data = {name: found[name] for name in CHARTED}
    data["funnel"] = {name: found["funnel"][name] for name in ("images", "steps")}
    data["cluster_names"] = {one["cluster"]: one["name"] for step in found["clusters"] for one in step["shown"]}
    data["keys"] = {point["image"]: found["keys"][point["image"]] for each in found["maps"] for point in each["points"]}
    told: dict[str, Any] = {
        **{name: value for name, value in found.items() if name not in ("pictures", "overlays")},
        "overlays": [found["overlays"][image_id] for image_id in _in_order(found["picked"])],
        "overlay_classes": sorted({name for each in found["overlays"].values() for name in each["classes"]}),
        "rank": {name: {image_id: rank for rank, image_id in enumerate(ids)} for name, ids in found["picked"].items()},
        "sizes": pictures,
        "pictures": {image_id: picture.url for image_id, picture in pictures.items() if picture.url},
        "pictures_shown": sum(bool(picture.url) for picture in pictures.values()),
        "quality_rows": [] if quality is None else _evaluation_rows(quality),
        "limits": {"gallery": GALLERY_IMAGES},
        "data": data,
        "parts": _parts(found),
        "policy": _policy(scripts),
        "scripts": [Markup(script) for script in scripts],
        "styles": Markup(_asset("assets/report.css")),
        "state": state,
    }
    return environment.get_template("report.html").render(told)


def duration(seconds: float) -> str:
    """A time span for a person: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _parts(found: Figures) -> list[tuple[str, str, str]]:
    """The parts for which there is something to show: their template, a short and a long title."""
    parts = [
        ("funnel", "Images", "What became of the images", True),
        ("quality", "Quality", "Quality against truth", found["quality"] is not None),
        ("overlays", "Labels", "Labels on images", bool(found["overlays"])),
        ("labels", "Classes", "Classes and sizes", bool(found["labels"]["images"])),
        ("scores", "Scores", "Scores and thresholds", bool(found["scores"])),
        ("duplicates", "Duplicates", "Duplicates", any(step["groups"] for step in found["duplicates"])),
        ("clusters", "Clusters", "Clusters and map", bool(found["clusters"] or found["maps"])),
        ("issues", "Issues", "Issues", bool(found["issues"])),
        (
            "failures",
            "Failures",
            "What failed, and why",
            bool(found["funnel"]["failures"] or found["problems"]["count"]),
        ),
        ("speed", "Time", "Where the time went", found["speed"] is not None),
        ("made_with", "Made with", "Made with", True),
    ]
    return [(name, short, title) for name, short, title, shown in parts if shown]


def _evaluation_rows(quality: Figures) -> list[tuple[str, str]]:
    """What `labelmill evaluate` prints; a continued row has an empty name."""
    return [row for name, describe in EVALUATION_PARTS.items() if name in quality for row in describe(quality[name])]


def _in_order(picked: dict[str, list[int]]) -> list[int]:
    return list(dict.fromkeys(image_id for ids in picked.values() for image_id in ids))


def _policy(scripts: list[str]) -> str:
    """A Content Security Policy under which these scripts run and nothing else, and nothing is loaded."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


@cache
def _asset(name: str) -> str:
    return (HERE / name).read_text("utf-8")

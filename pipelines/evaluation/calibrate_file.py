"""Calibrated scores as a piece of YAML that a select step takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from labelmill.operators.wording import counted
from labelmill.pipelines.errors import UserError

Figures = dict[str, Any]


def fragment(found: Figures, run: str, truth: str, fusion: Figures | None = None) -> str:
    """The YAML for `pipelines.evaluation.calibrate.calibrate`: the key ``score`` of `select`, with its figures as
    comments.

    What `pipelines.evaluation.calibrate_fuse.fusion_figures` found is a comment too: with it, other scores are best.
    """
    aim = "maximises F1" if found["precision"] is None else f"is the lowest with a precision of {found['precision']:g}"
    lines = [
        f"# For each class the score that {aim}, on the {counted(found['images'], 'image')} of {_line(run)} that",
        f"# {_line(truth)} knows, at an IoU of 0.5. Goes below `select:`, for step {found['step']}.",
        f"# Together: {_told(found['after'])};",
        f"# before:   {_told(found['before'])}.",
        "score:",
        f"  default: {_score(found['default'])}",
    ]
    for name, each in found["classes"].items():
        key = _key(name)
        if each["reason"]:
            # A class with a score of its own keeps it, else it has none.
            entry = f"  {key}: {_score(each['score'])}  #" if each["score"] is not None else f"  # {key}:"
            lines.append(f"{entry} keeps {each['was']:g}: {each['reason']}; {_told(each['before'])}")
        else:
            lines.append(
                f"  {key}: {_score(each['score'])}  # {_told(each['after'])}; at {each['was']:g}: {_brief(each)}"
            )
    if fusion is not None:
        lines += _fusion(fusion)
    return "\n".join(lines) + "\n"


def _fusion(found: Figures) -> list[str]:
    entries = [
        f"#     - {{slope: {each['slope']:g}, intercept: {each['intercept']:g}}}" if each["slope"] is not None
        else "#     - null" for each in found["scores"].values()
    ]  # fmt: skip
    told = [f"  # {_line(name)}: {each['right']} of {each['labels']} right" for name, each in found["scores"].items()]
    return [
        f"# Before that, the detectors of step {found['step']} can be made to mean the same by their scores. Put this",
        "# below `fuse:`, run, and calibrate again:",
        "#   scores:",
        *(entry + more for entry, more in zip(entries, told, strict=True)),
    ]


def write_fragment(path: Path, text: str) -> None:
    """Write it.

    Raises:
        UserError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--calibrate must be a file that can be written, but {path}: {error.strerror}") from error


def _key(name: str) -> str:
    """A class as a YAML key, on one line."""
    return yaml.safe_dump({name: 0}, allow_unicode=True, width=10_000).removesuffix(": 0\n")


def _score(value: float) -> str:
    """Without an exponent, which YAML would take for a text."""
    return f"{value:.8f}".rstrip("0").rstrip(".")


def _line(text: str) -> str:
    return " ".join(text.split())


def _told(each: Figures) -> str:
    figures = ", ".join(f"{name} {_number(each[key])}" for name, key in
                        (("F1", "f1"), ("precision", "precision"), ("recall", "recall")))  # fmt: skip
    return f"{figures}; {counted(each['objects'], 'object')}, {counted(each['labels'], 'label')}"


def _brief(each: Figures) -> str:
    return f"F1 {_number(each['before']['f1'])}, precision {_number(each['before']['precision'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

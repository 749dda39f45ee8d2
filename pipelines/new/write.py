"""A first pipeline file: what someone has and wants, written down with comments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelmill.pipelines.errors import ConfigError, UserError, nearest
from labelmill.pipelines.new.source import Found

if TYPE_CHECKING:
    from labelmill.pipelines.sources.spec import Kind

WANTS = {
    "clean": "drop images that are too small, dark, light, blurred or empty",
    "deduplicate": "of several copies of an image, keep one",
    "classify": "one class for each image, of those that you name",
    "boxes": "boxes of the classes that you name",
    "masks": "a mask for each box",
    "text": "the words in the images, and where they are",
    "captions": "a sentence about each image",
}
"""What can be wanted, in the order of the steps."""

NEEDS_CLASSES = ("classify", "boxes")

LABELLED = ("coco", "yolo", "voc", "cvat", "label_studio")
"""Kinds of source that have labels of their own."""

EXPORT_NEEDS = {"words": "text", "caption": "captions", "class": "classify"}
"""What an export cannot do without (see `Exporter.needs`) → what must be wanted for it."""

ON_GPU = {
    "embed": "clip-vit-b-32",
    "detect": "grounding-dino-base",
    "segment": "sam-vit-h",
    "read": "pp-ocrv6-small",
    "ask": "qwen3-vl-2b",
}
ON_CPU = {
    "embed": "clip-vit-b-32",
    "detect": "grounding-dino-tiny",
    "segment": "sam2.1-hiera-small",
    "read": "pp-ocrv6-small",
    "ask": "smolvlm-256m",
}
"""Step → card: the best that fit on a GPU of 24 GB, and the smallest of use. `labelmill models pull` has them all."""

STEP_MODELS = {
    "classify": "embed",
    "boxes": "detect",
    "masks": "segment",
    "text": "read",
    "captions": "ask",
}

FEW = 2048
"""Fewer images than this make fewer shards of 256 than a machine may have workers."""


@dataclass(frozen=True)
class Answers:
    """What someone has and wants.

    Attributes:
        name: Of the pipeline.
        source: Path or URL.
        kind: Of the source.
        wants: Keys of `WANTS`.
        ontology: Classes and their prompts, or the path of an ontology file; None where no class is needed.
        exports: Names of exports.
        gpu: Whether it will run on a GPU.
        found: What is known of the source.
    """

    name: str
    source: str
    kind: Kind
    wants: tuple[str, ...]
    ontology: Mapping[str, Sequence[str]] | str | None = None
    exports: tuple[str, ...] = ()
    gpu: bool = False
    found: Found = field(default_factory=Found)

    @property
    def models(self) -> dict[str, str]:
        """The model cards that the pipeline names, by the step that has them."""
        chosen = ON_GPU if self.gpu else ON_CPU
        return {STEP_MODELS[want]: chosen[STEP_MODELS[want]] for want in self.wants if want in STEP_MODELS}


def pipeline_text(answers: Answers) -> str:
    """The commented YAML.

    Raises:
        ConfigError: What was answered makes no valid pipeline, such as classes that share a prompt.
    """
    import jinja2

    # It writes YAML, where every value goes through the filter `yaml`; HTML's escaping would spoil it.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labelmill.pipelines", "templates"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"yaml": _yaml, "entry": lambda text: text.removeprefix("{").removesuffix("}")}
    few = answers.found.images is not None and answers.found.images < FEW
    text = environment.get_template("pipeline.yaml.jinja").render(
        purpose=_purpose(answers),
        name=answers.name,
        kind=answers.kind,
        source=answers.source,
        output=f"runs/{answers.name}",
        images=answers.found.told(),
        shard_size=min(128, max(16, 2 ** ((answers.found.images or 0) // 16).bit_length())) if few else None,
        ontology=_ontology(answers),
        wants=answers.wants,
        models=answers.models,
        exports={name: _export_params(name, answers) for name in answers.exports},
        own_splits=answers.found.splits,
    )
    _check(text, answers)
    return text


def _check(text: str, answers: Answers) -> None:
    """Refuse to write what `labelmill check` would refuse."""
    import tempfile

    from labelmill.pipelines.config.pipeline import load_pipeline

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{answers.name}.yaml")
        file.write_text(text, encoding="utf-8")
        try:
            load_pipeline(file)
        except ConfigError as error:
            told = [re.sub(r"^:\d+: ", "", problem.removeprefix(str(file))) for problem in error.problems]
            raise ConfigError(told) from error


def _yaml(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _purpose(answers: Answers) -> str:
    parts = [
        ("clean" in answers.wants, "clean"),
        ("deduplicate" in answers.wants, "deduplicate"),
        (bool(set(answers.wants) - {"clean", "deduplicate"}), "label"),
        (bool(answers.exports), "export"),
    ]
    words = [word for wanted, word in parts if wanted] or ["inspect"]
    told = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{told[0].upper()}{told[1:]} the images of {answers.name}."


def _ontology(answers: Answers) -> Mapping[str, Any] | str | None:
    if not set(answers.wants) & set(NEEDS_CLASSES) or answers.ontology is None:
        return None
    if isinstance(answers.ontology, str):
        return answers.ontology
    return {name: prompts[0] if len(prompts) == 1 else list(prompts) for name, prompts in answers.ontology.items()}


def _export_params(name: str, answers: Answers) -> dict[str, Any]:
    return {"task": "segment"} if name == "yolo" and "masks" in answers.wants else {}


def parse_list(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Words between commas, each one known, in the order in which they are known.

    Raises:
        UserError: One of them is not.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if [word for word in words if word != "none"] == []:
        return ()
    for word in words:
        if word not in known:
            raise UserError(f"{what} must be of {', '.join(known)} but is {word!r}{nearest(word, known)}")
    return tuple(name for name in known if name in words)


def parse_classes(text: str) -> Mapping[str, Sequence[str]] | str:
    """``car=car|taxi, stop sign`` → classes with their prompts; the path of an ontology file stays one.

    Raises:
        UserError: A class has no name or no prompt, or stands there twice.
    """
    text = text.strip()
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise UserError(f"there is no ontology file {text!r}; or name classes, such as: car=car|taxi,stop sign")
        return text
    classes: dict[str, list[str]] = {}
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        name, equals, rest = (piece.strip() for piece in part.partition("="))
        prompts = [prompt.strip() for prompt in rest.split("|") if prompt.strip()] if equals else [name]
        if not name or not prompts:
            raise UserError(f"classes must be NAME or NAME=PROMPT|PROMPT, between commas, but one is {part!r}")
        if name in classes:
            raise UserError(f"a class must be named once but {name!r} is named twice; give its prompts as {name}=a|b")
        classes[name] = prompts
    if not classes:
        raise UserError("classes must name at least one, such as: car=car|taxi,stop sign")
    return classes


def complete(wants: Sequence[str], kind: str) -> tuple[str, ...]:
    """Masks are made of boxes: without labels in the source, boxes are wanted with them."""
    wanted = {*wants, "boxes"} if "masks" in wants and kind not in LABELLED else set(wants)
    return tuple(name for name in WANTS if name in wanted)


def fitting_exports(wants: Sequence[str]) -> dict[str, str | None]:
    """Every export, and what must be wanted for it and is not; None where it can be written."""
    from labelmill.pipelines.exports import EXPORT_NAMES, exporter

    found: dict[str, str | None] = {}
    for name in EXPORT_NAMES:
        cls = exporter(name)
        needed = [EXPORT_NEEDS[key] for key in cls(cls.Params()).needs() if key in EXPORT_NEEDS]
        found[name] = next((want for want in needed if want not in wants), None)
    return found


def default_exports(wants: Sequence[str], kind: Kind) -> tuple[str, ...]:
    """COCO, which holds everything; and YOLO where there are boxes."""
    return ("coco", "yolo") if "boxes" in wants or "masks" in wants or kind in LABELLED else ("coco",)

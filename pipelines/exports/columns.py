"""Which columns of a run its exports are made of: labels, words, captions, classes; and which models made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.models.card import ModelCard
from labelmill.pipelines.steps import ColumnError, Input, Step, resolve

COLUMNS = ("labels", "words", "caption", "class")
"""The keys under ``export:`` that name a column."""


@dataclass(frozen=True)
class ExportColumns:
    """Columns that a pipeline names for its exports, as written; None: the last step that writes such a one.

    Attributes:
        labels: Detections.
        words: Words of `read`.
        caption: A text for each image.
        image_class: The class of each image as a whole; ``class`` in the pipeline.
    """

    labels: str | None = None
    words: str | None = None
    caption: str | None = None
    image_class: str | None = None

    def named(self) -> dict[str, str]:
        """Key under ``export:`` → column, of those that are given."""
        given = zip(COLUMNS, (self.labels, self.words, self.caption, self.image_class), strict=True)
        return {key: column for key, column in given if column is not None}


def labels_column(steps: Sequence[Step], wanted: str | None) -> Input:
    """Where labels come from: the column asked for, else the last one that holds detections, else the source's."""
    if wanted is not None:
        return resolve(wanted, steps)
    for step in reversed(steps):
        for field in step.operator.writes():
            if field.type.equals(DETECTIONS):
                return Input(step.position, field.name, field.type)
    return Input(None, "labels", DETECTIONS)


def export_labels(steps: Sequence[Step], wanted: str | None) -> Input:
    """The labels that exports write: as `labels_column`, but raw detections only if they are asked for by name.

    What a detector writes from a low score up is for other steps to decide about, and no dataset.
    """
    if wanted is not None:
        return resolve(wanted, steps)
    for step in reversed(steps):
        for field in step.operator.writes():
            if field.type.equals(DETECTIONS) and not is_raw(step, steps):
                return Input(step.position, field.name, field.type)
    return Input(None, "labels", DETECTIONS)


def is_raw(step: Step, steps: Sequence[Step]) -> bool:
    """Whether a step's detections are raw: its own, or all those that it reads and passes on."""
    if step.operator.labels != "as read":
        return step.operator.labels == "raw"
    read = [column for column in step.inputs.values() if column.type.equals(DETECTIONS)]
    return bool(read) and all(column.step is not None and is_raw(steps[column.step], steps) for column in read)


def raw_step(steps: Sequence[Step]) -> Step | None:
    """The last step whose detections `export_labels` passes over, if it passes over any."""
    for step in reversed(steps):
        if any(field.type.equals(DETECTIONS) for field in step.operator.writes()):
            return step if is_raw(step, steps) else None
    return None


def raw_problem(step: Step) -> str:
    """What to say when an export has nothing but a step's raw detections."""
    return (
        f"must have labels but {step.name!r} writes raw detections only, everything that its model holds possible: add "
        f"`- select: {{score: 0.3}}` below it, or say `labels: {step.name}.detections` under `export:` to have them all"
    )


def made_of_source(column: Input, steps: Sequence[Step]) -> bool:
    """Whether labels are the source's, as they came or as steps passed them on."""
    if column.step is None:
        return column.column == "labels"
    read = [each for each in steps[column.step].inputs.values() if each.type.equals(DETECTIONS)]
    return any(made_of_source(each, steps) for each in read)


def words_column(steps: Sequence[Step], wanted: str | None) -> Input | None:
    """Where words come from: the column asked for, else the last one that holds words of `read`, if any."""
    if wanted is not None:
        return resolve(wanted, steps)
    for step in reversed(steps):
        for field in step.operator.writes():
            if _holds_words(field.type):
                return Input(step.position, field.name, field.type)
    return None


def caption_column(steps: Sequence[Step], wanted: str | None) -> Input | None:
    """Where captions come from: the column asked for, else the last `ask` that answers freely, if any.

    An answer that was chosen from a few, or is JSON, is no caption.
    """
    from labelmill.operators.ask import Ask

    if wanted is not None:
        return resolve(wanted, steps)
    for step in reversed(steps):
        operator = step.operator
        if isinstance(operator, Ask) and operator.params.answers is None and operator.params.json_schema is None:
            return Input(step.position, "answer", pa.string())
    return None


def class_column(steps: Sequence[Step], wanted: str | None) -> Input | None:
    """Where the classes of whole images come from: the column asked for, else the last `classify`, if any."""
    from labelmill.operators.classify import Classify

    if wanted is not None:
        return resolve(wanted, steps)
    for step in reversed(steps):
        if isinstance(step.operator, Classify):
            return Input(step.position, "class", pa.string())
    return None


def column_problem(key: str, column: str, steps: Sequence[Step]) -> str | None:
    """What is wrong with a column that a pipeline names under ``export:``; None if nothing is.

    Args:
        key: One of `COLUMNS`.
        column: A column reference; see `pipelines.steps.resolve`.
        steps: All steps of the pipeline.
    """
    try:
        found = resolve(column, steps)
    except ColumnError as error:
        return str(error)
    if key == "labels" and not found.type.equals(DETECTIONS):
        return f"column {column!r} must hold detections but is {found.type}"
    if key == "words" and not _holds_words(found.type):
        return f"column {column!r} must hold words, such as read.words, but is {found.type}"
    if key in ("caption", "class") and not _holds_text(found.type):
        return f"column {column!r} must hold text but is {found.type}"
    return None


def find_column(key: str, columns: ExportColumns, steps: Sequence[Step]) -> Input | None:
    """The column of one of `COLUMNS`; None if no step writes such a one."""
    wanted = columns.named().get(key)
    finders = {"labels": labels_column, "words": words_column, "caption": caption_column, "class": class_column}
    return finders[key](steps, wanted)


def missing_column(key: str, columns: ExportColumns, steps: Sequence[Step]) -> str | None:
    """What to say when an export cannot do without a column that no step writes; None if one does."""
    if find_column(key, columns, steps) is not None:
        return None
    what = {"words": "words", "caption": "captions", "class": "classes of images"}
    who = {"words": "a `read` step", "caption": "an `ask` step that answers freely", "class": "a `classify` step"}
    return (
        f"must have {what[key]} but no step writes any: add {who[key]}, or name a column with `{key}:` under `export:`"
    )


def models_used(steps: Sequence[Step]) -> list[dict[str, str]]:
    """The models that a run was made with, in the order of its steps.

    Returns:
        Dicts with ``step`` (its name), ``parameter`` (which of its parameters), ``reference`` (as labels name the
        card) and ``licence`` (an SPDX identifier).
    """
    return [
        {"step": step.name, "parameter": name, "reference": card.reference(), "licence": card.licence}
        for step in steps
        for name, card in _cards(step.operator.params)
    ]


def _cards(params: BaseModel, prefix: str = "") -> list[tuple[str, ModelCard]]:
    """Every model card among parameters, also in lists, mappings and sections of them."""
    found: list[tuple[str, ModelCard]] = []
    for name in type(params).model_fields:
        found += _cards_in(getattr(params, name), f"{prefix}{name}")
    return found


def _cards_in(value: Any, name: str) -> list[tuple[str, ModelCard]]:
    if isinstance(value, ModelCard):
        return [(name, value)]
    if isinstance(value, BaseModel):
        return _cards(value, f"{name}.")
    if isinstance(value, dict):
        return [card for key, each in value.items() for card in _cards_in(each, f"{name}.{key}")]
    if isinstance(value, (list, tuple)):
        return [card for index, each in enumerate(value) for card in _cards_in(each, f"{name}.{index}")]
    return []


def _holds_words(kind: pa.DataType) -> bool:
    """Whether it is the type of words of `read`, whose schema may have grown fields that exports do not read."""
    from labelmill.operators.read import WORD

    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return all(fields.get(field.name) == field.type for field in WORD)


def _holds_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain))

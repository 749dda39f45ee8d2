"""What would keep an export from being written, told before the work that it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.ontology import Ontology
from labelmill.operators.wording import counted, plural_of
from labelmill.pipelines.exports.class_folders import class_folders
from labelmill.pipelines.exports.columns import export_labels, raw_problem, raw_step
from labelmill.pipelines.exports.dataset import ExportError
from labelmill.pipelines.run_folder.arrived import Arrived
from labelmill.pipelines.steps import ColumnError, resolve

if TYPE_CHECKING:
    from labelmill.pipelines.config.pipeline import Export, Pipeline


def export_problems(pipeline: Pipeline, arrived: Arrived, source_classes: Sequence[str] | None) -> list[str]:
    """Why exports of a pipeline cannot be written, one sentence each.

    Args:
        pipeline: Valid as `labelmill check` sees it.
        arrived: What came in.
        source_classes: Classes of the source's own labels, where it knows them.
    """
    found = []
    for export in pipeline.exports:
        for problem in (
            _no_labels(pipeline, export, arrived),
            _no_split(pipeline, arrived),
            _no_masks(pipeline, export),
            _class_folders(pipeline, export, source_classes),
        ):
            if problem is not None and f"export {export.name}: {problem}" not in found:
                found.append(f"export {export.name}: {problem}")
    return found


def _no_labels(pipeline: Pipeline, export: Export, arrived: Arrived) -> str | None:
    from labelmill.pipelines.exports import exporter

    writer = exporter(export.name)(export.params)
    if "class" in writer.needs() or export_labels(pipeline.steps, pipeline.labels).step is not None:
        return None
    if arrived.images["read"] + arrived.images["refused"] or not sum(arrived.images.values()):
        return None
    if (step := raw_step(pipeline.steps)) is not None:
        return f"the dataset {raw_problem(step)}; the source has no labels either"
    return None


def _no_split(pipeline: Pipeline, arrived: Arrived) -> str | None:
    """Images that the source puts into no split, while it does others: neither is in a step's hands."""
    if not arrived.splits[None] or len(arrived.splits) == 1:
        return None
    try:
        if resolve("split", pipeline.steps).step is not None:
            return None
    except ColumnError:
        pass
    if any(each.step is None and each.column == "split" for step in pipeline.steps for each in step.inputs.values()):
        return None  # a condition of the user's own
    known = ", ".join(sorted(name for name in arrived.splits if name is not None))
    lost = arrived.splits[None]
    return (
        f"every image must be in one of the source's splits {known} but {counted(lost, 'image')}, such as "
        f"{arrived.unsplit!r}, {plural_of(lost, 'is', 'are')} in none: leave out what is in none with a step "
        '`- keep: "source.split is not null"`, or divide all anew with `split:` under `export:`'
    )


def _no_masks(pipeline: Pipeline, export: Export) -> str | None:
    """An export of outlines whose labels are boxes, whatever the images show."""
    if getattr(export.params, "task", None) != "segment":
        return None
    waiting, boxes_of = [export_labels(pipeline.steps, pipeline.labels)], ""
    while waiting:
        column = waiting.pop()
        step = None if column.step is None else pipeline.steps[column.step]
        if step is not None and step.operator_name in ("select", "fuse", "review"):
            waiting += [each for each in step.inputs.values() if each.type.equals(DETECTIONS)]
        elif step is not None and step.operator_name == "detect":
            boxes_of = step.name
        else:
            return None  # it has masks, or nobody knows yet
    return (
        f"the dataset must have masks for `task: segment` but {boxes_of!r} writes boxes alone: add a step `segment` "
        "below it, or export `task: detect`"
    )


def _class_folders(pipeline: Pipeline, export: Export, source_classes: Sequence[str] | None) -> str | None:
    """Classes that cannot be folders side by side, where the export makes such."""
    task = getattr(export.params, "task", None)
    if export.name != "crops" and task != "classify":
        return None
    classes: Sequence[str] | None = source_classes
    labels = export_labels(pipeline.steps, pipeline.labels)
    if labels.step is not None:
        own = getattr(pipeline.steps[labels.step].operator.params, "ontology", None)
        ontology = own if isinstance(own, Ontology) else pipeline.settings.ontology
        classes = None if ontology is None else list(ontology.classes)
    try:
        class_folders(list(classes or ()))
    except ExportError as error:
        return str(error)
    return None

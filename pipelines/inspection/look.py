"""What `labelmill check` sees besides the pipeline file: the source with its labels, and the models' weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from labelmill.operators.errors import OperatorError
from labelmill.operators.wording import counted
from labelmill.pipelines.config.pipeline import Pipeline
from labelmill.pipelines.engine.foreseen import export_problems
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.arrived import Arrived, arrived_line
from labelmill.pipelines.sources import open_source
from labelmill.pipelines.sources.uri import is_remote


@dataclass
class Looked:
    """What was seen.

    Attributes:
        told: The source in a line.
        problems: What is wrong with the pipeline for this source.
        first: What must be brought here before a run: weights, the source.
        missing: Whole classes of labels that are missing; see `Source.missing`.
        refused: How many labels are refused, with the first of them; empty for none.
        warnings: What a run would say and go on.
    """

    told: str = ""
    problems: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def missing_models(pipeline: Pipeline) -> list[str]:
    """What a run would stop at for want of it: weights, files of decisions."""
    found = []
    for step in pipeline.steps:
        try:
            step.operator.ready()
        except OperatorError as error:
            found.append(f"step {step.name!r}: {error}")
    return found


def look_at(pipeline: Pipeline) -> Looked:
    """Scan a local source as a run would, and see whether every model's weights are here. Nothing is written."""
    looked = Looked()
    looked.first += missing_models(pipeline)
    spec = pipeline.settings.source
    where = getattr(spec, spec.kind)
    places = where if isinstance(where, (list, str)) else getattr(where, "annotations", where)
    if any(is_remote(place) for place in ([places] if isinstance(places, str) else places)):
        looked.told = "not looked at: it is remote"
        return looked
    source, arrived = open_source(spec), Arrived()
    notes = 0
    try:
        for entry in source.scan():
            arrived.add_entry(entry)
            notes += entry.problem is not None
        classes = source.classes
    except UserError as error:
        looked.first.append(f"source: {error}")
        looked.told = "cannot be read"
        return looked
    arrived.add_refused(map(str, source.refused))
    labels = arrived_line({"images": arrived.images, "refused": arrived.refused}, None)
    looked.told = counted(sum(arrived.images.values()), "image") if labels is None else f"labels {labels}"
    looked.missing = list(source.missing)
    looked.warnings = [*source.missing, *source.problems[:5]]
    if notes:
        looked.warnings.append(f"{counted(notes, 'entry of the source has', 'entries of the source have')} a problem")
    if arrived.refused:
        looked.refused = [f"{counted(arrived.refused, 'label')} refused, such as {'; '.join(arrived.examples[:3])}"]
        looked.warnings += looked.refused
    looked.problems += export_problems(pipeline, arrived, classes)
    return looked

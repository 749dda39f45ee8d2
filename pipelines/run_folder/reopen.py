"""A run's directory: made for a pipeline, and opened again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from labelmill.operators.ontology import Ontology
from labelmill.pipelines.config.pipeline import Pipeline, build_pipeline
from labelmill.pipelines.config.yaml_file import parse_yaml
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.exports.columns import export_labels
from labelmill.pipelines.run_folder.layout import Layout, column_of
from labelmill.pipelines.run_folder.shards import known_shards
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Source

PIPELINE_FILE = "pipeline.yaml"
SUMMARY_FILE = "summary.json"


def open_output(pipeline: Pipeline) -> Store:
    """The run's directory.

    Raises:
        UserError: Something else is there already; nothing is touched.
    """
    store = Store(pipeline.settings.output)
    names = store.names()
    if not names:
        return store
    if PIPELINE_FILE not in names:
        if set(names) <= {"shards"}:
            return store
        raise UserError(
            f"output {store.address()} is not empty and no run of labelmill (it has no {PIPELINE_FILE}); "
            "choose another output"
        )
    earlier = yaml.safe_load(store.read(PIPELINE_FILE))
    mine = identity(pipeline.document)
    theirs = identity(earlier)
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise UserError(
                f"output {store.address()} belongs to another pipeline: its {key} is {theirs.get(key)!r}, "
                f"this one's is {value!r}; choose another output, or remove that run"
            )
    return store


def identity(document: dict[str, Any]) -> dict[str, Any]:
    """What makes a pipeline the same one after its steps, or the keys to its source, were changed."""
    source = document.get("source")
    if isinstance(source, dict):
        source = {key: value for key, value in source.items() if key != "storage_options"}
    found: dict[str, Any] = json.loads(json.dumps({"name": document.get("name"), "source": source}))
    return found


def write_pipeline(pipeline: Pipeline, store: Store) -> None:
    """Keep the resolved pipeline beside its results."""
    text = yaml.safe_dump(pipeline.document, sort_keys=False, allow_unicode=True)
    store.write(PIPELINE_FILE, text.encode())


def export_classes(pipeline: Pipeline, layout: Layout, shards: dict[int, int], source: Source) -> list[str]:
    """Class names of the exported labels, in the order of their ids: the ontology's, the source's, or by name."""
    labels = export_labels(layout.steps, pipeline.labels)
    ontology = pipeline.settings.ontology
    if labels.step is not None:
        own = getattr(layout.steps[labels.step].operator.params, "ontology", None)
        ontology = own if isinstance(own, Ontology) else ontology
        if ontology is not None:
            return list(ontology.classes)
    elif source.classes is not None:
        return list(source.classes)
    found: set[str] = set()
    for shard in sorted(shards):
        for detections in column_of(layout, labels, shard).to_pylist():
            found.update(detection["class"] for detection in detections or [])
    return sorted(found)


def state_of(layout: Layout, shards: dict[int, int]) -> str:
    """Identifies what a run's results are, to see whether anything changed."""
    content: list[Any] = [
        [step.fingerprint for step in layout.steps],
        [step.name for step in layout.steps],
        sorted(shards.items()),
    ]
    # What a run has not met must not change the state of those made before it could.
    content += [more for more in (layout.provisional_state(), layout.departed.revision) if more]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def reopen(folder: str) -> tuple[Pipeline, Layout, dict[int, int]]:
    """The pipeline of a run, as it was run last."""
    store = Store(folder)
    text = store.read(PIPELINE_FILE).decode()
    pipeline = build_pipeline(parse_yaml(store.address(PIPELINE_FILE), text, keys_may_lack=True))
    return pipeline, Layout.of(store, pipeline.steps), known_shards(store)

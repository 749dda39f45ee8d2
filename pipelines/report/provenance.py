"""What a run was made with: its pipeline, its models, and the versions of what it is built on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from labelmill.operators.models.card import ModelCard
from labelmill.operators.ontology import Ontology
from labelmill.operators.secrets import hide
from labelmill.pipelines.report.run_reader import Figures, RunReader
from labelmill.pipelines.run_folder.reopen import PIPELINE_FILE
from labelmill.pipelines.steps import Step

PACKAGES = (
    *("labelmill", "ray", "torch", "transformers", "open_clip_torch", "segment-anything", "python-doctr", "rapidocr"),
    *("onnxruntime", "faiss-gpu", "faiss-cpu", "scikit-learn", "hdbscan", "duckdb", "pyarrow", "numpy", "pillow"),
    *("pillow-heif", "opencv-python-headless"),
)
"""Packages whose version may change a result."""

MINIATURE, RANDOM = "-miniature", "-random"


def provenance(run: RunReader) -> Figures:
    """``pipeline``: the resolved YAML; ``steps``, ``models``, ``versions``; ``miniatures`` and ``random``: names of
    such cards; ``exports``: what was written."""
    models = _models(run)
    return {
        "pipeline": run.layout.store.read(PIPELINE_FILE).decode("utf-8", "replace"),
        "steps": [
            {"step": step.name, "operator": step.operator_name, "version": step.operator.version,
             "fingerprint": step.fingerprint}
            for step in run.steps
        ],
        "parameters": hide(
            yaml.safe_dump({step.name: _parameters(step) for step in run.steps}, sort_keys=False, allow_unicode=True)
        ),
        "models": models,
        "miniatures": [model["name"] for model in models if model["name"].endswith(MINIATURE)],
        "random": [model["name"] for model in models if model["name"].endswith(RANDOM)],
        "versions": [("Python", platform.python_version()), *_versions()],
        "exports": run.summary.get("exports", []),
    }  # fmt: skip


def _parameters(step: Step) -> dict[str, Any]:
    """All parameters of a step; for a model card its name and digest, for an ontology its classes."""
    found = step.operator.params.model_dump(mode="json", by_alias=True)
    for name, field in type(step.operator.params).model_fields.items():
        value = getattr(step.operator.params, name)
        if isinstance(value, ModelCard):
            found[field.alias or name] = value.reference()
        elif isinstance(value, Ontology):
            found[field.alias or name] = list(value.classes)
    return found


def _models(run: RunReader) -> list[Figures]:
    """Every model card that a step names, with the steps that do."""
    found: dict[str, Figures] = {}
    for step in run.steps:
        for name in type(step.operator.params).model_fields:
            card = getattr(step.operator.params, name)
            if isinstance(card, ModelCard):
                digest = card.digest()
                told = found.setdefault(
                    digest,
                    {"name": card.name, "task": card.task, "engine": card.engine, "architecture": card.architecture,
                     "digest": digest, "licence": card.licence, "weights": _origin(card), "steps": []},
                )  # fmt: skip
                if step.name not in told["steps"]:
                    told["steps"].append(step.name)
    return list(found.values())


def _origin(card: ModelCard) -> str:
    """Where the weights come from, in a few words."""
    weights: Any = card.weights
    if weights.hub:
        return f"{weights.hub} @ {weights.revision}"
    if weights.random is not None:
        return f"random, seed {weights.random}"
    if weights.package:
        return f"{weights.package}: {weights.file}"
    return str(weights.url or weights.endpoint or weights.path)


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found

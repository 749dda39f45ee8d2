"""What a verify step is worth: precision gained and recall lost by the labels that it lets go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labelmill.operators.measures.detections import compare
from labelmill.operators.select import AGREEMENT, Select
from labelmill.operators.verify import Verify
from labelmill.pipelines.evaluation.calibrate import selected
from labelmill.pipelines.evaluation.labels import as_label, judged_classes, judged_objects, shares
from labelmill.pipelines.evaluation.truth import Truth
from labelmill.pipelines.run_folder.finished_run import FinishedRun
from labelmill.pipelines.steps import Input, Step

Figures = dict[str, Any]

USUAL = 0.5
"""The agreement at which a verify step is judged if no select step reads it."""

SHOWN = tuple(round(0.1 * step, 1) for step in range(1, 10))


def verification_figures(truth: Truth, run: FinishedRun) -> Figures | None:
    """The last verify step of a run: labels with and without those that it agrees with too little.

    Returns:
        ``step``; the ``agreement`` that the select step after it asks for, else `USUAL`; ``before``, what that step
        would give if it did not ask, and ``after``, what it gives; ``precision_gained`` and ``recall_lost`` between the
        two; and under ``points`` what other agreements would give. Without such a select step, of the detections that
        were verified. None for a run without a verify step.
    """
    step = next((each for each in reversed(run.layout.steps) if isinstance(each.operator, Verify)), None)
    if step is None:
        return None
    inputs, params = _decision(run, step)
    numbers = judged_classes(truth, run)

    def at(agreement: float | None) -> Figures:
        there, found = [], []
        wanted = inputs if agreement is not None else {params.detections: inputs[params.detections]}
        for key, detections in selected(truth, run, wanted, params.model_copy(update={"agreement": agreement})):
            there.append(key)
            found += [
                as_label(each, truth.images[key], numbers[each["class"]])
                for each in detections
                if each["class"] in numbers
            ]
        compared = compare(judged_objects(truth, run, there), found)
        return shares(compared.objects, compared.labels, len(compared.pairs))

    before, after = at(None), at(params.agreement)
    return {
        "step": step.name,
        "agreement": params.agreement,
        "before": before,
        "after": after,
        "precision_gained": _difference(after["precision"], before["precision"]),
        "recall_lost": _difference(before["recall"], after["recall"]),
        "points": [{"agreement": each, **at(each)} for each in SHOWN],
    }


def _decision(run: FinishedRun, verify: Step) -> tuple[Mapping[str, Input], Select.Params]:
    """What decides by the agreement of a verify step: the last select step that reads it, else its threshold alone."""
    for step in reversed(run.layout.steps):
        read = step.inputs.get(AGREEMENT)
        if isinstance(step.operator, Select) and read is not None and read.step == verify.position:
            return step.inputs, step.operator.params
    name = verify.operator.params.detections
    kind = verify.operator.writes().field(AGREEMENT).type
    inputs = {name: verify.inputs[name], AGREEMENT: Input(verify.position, AGREEMENT, kind)}
    return inputs, Select.Params(detections=name, score=0, agreement=USUAL, nms=None, containment=None)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other

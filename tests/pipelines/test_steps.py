from __future__ import annotations

from typing import Any

import pytest

from labelmill.operators.base import Operator
from labelmill.operators.errors import OperatorError
from labelmill.pipelines.steps import ColumnError, Input, Step, chain, resolve
from tests.toys import Brightness, Rank, Threshold


def pipeline(*parts: tuple[str, type[Operator], dict[str, Any]]) -> list[Step]:
    steps: list[Step] = []
    for name, cls, params in parts:
        steps.append(chain(steps, name, f"tests.toys:{cls.__name__}", cls(cls.Params(**params))))
    return steps


def usual(**changes: dict[str, Any]) -> list[Step]:
    return pipeline(
        ("bright", Brightness, changes.get("bright", {})),
        ("keep", Threshold, changes.get("keep", {})),
        ("rank", Rank, changes.get("rank", {})),
        ("again", Brightness, changes.get("again", {"scale": 2.0})),
    )


def changed(before: list[Step], after: list[Step]) -> list[str]:
    return [b.name for b, a in zip(before, after, strict=True) if a.fingerprint != b.fingerprint]


def test_a_parameter_changes_its_step_and_those_that_depend_on_it() -> None:
    assert changed(usual(), usual(bright={"scale": 3.0})) == ["bright", "keep", "rank", "again"]
    assert changed(usual(), usual(keep={"at_least": 5.0})) == ["keep", "rank", "again"]
    assert changed(usual(), usual(again={"scale": 9.0})) == ["again"]


def test_a_parameter_that_only_changes_speed_changes_nothing() -> None:
    assert changed(usual(), usual(bright={"batch": 99, "log": "/x"})) == []


def test_a_step_depends_on_what_it_reads_and_on_deciders_above_and_on_nothing_else() -> None:
    steps = usual()
    assert [step.depends for step in steps] == [(), (0,), (0, 1), (1,)]


def test_a_failing_step_above_that_is_not_read_does_not_matter() -> None:
    first = pipeline(("a", Brightness, {}), ("b", Brightness, {"scale": 2.0}))
    second = pipeline(("a", Brightness, {"scale": 5.0}), ("b", Brightness, {"scale": 2.0}))
    assert changed(first, second) == ["a"]


def test_names_and_places_are_not_part_of_the_fingerprint() -> None:
    alone = pipeline(("x", Brightness, {"scale": 2.0}))
    behind = pipeline(("a", Brightness, {}), ("y", Brightness, {"scale": 2.0}))
    assert alone[0].fingerprint == behind[1].fingerprint


def test_a_bare_name_is_the_nearest_step_above_that_writes_it() -> None:
    steps = pipeline(("a", Brightness, {}), ("b", Brightness, {"scale": 2.0}))
    assert resolve("brightness", steps).step == 1
    assert resolve("a.brightness", steps).step == 0
    assert isinstance(resolve("source.labels", steps), Input)
    assert resolve("source.labels", steps).step is None


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("brightnes", "written by no step above; did you mean 'brightness'"),
        ("a.brightnes", "written by no step above; did you mean 'a.brightness'"),
        ("aa.brightness", "must come from a step above, the steps above are a; did you mean 'a'"),
        (
            "source.label",
            "the source has no column 'label', it has labels, split, metadata, label_state; did you mean 'labels'",
        ),
    ],
)
def test_a_column_that_nobody_writes_is_named_with_its_nearest(reference: str, message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        resolve(reference, pipeline(("a", Brightness, {})))


def test_a_column_of_another_type_is_refused() -> None:
    class Insists(Threshold):
        def expects(self):  # type: ignore[no-untyped-def]
            import pyarrow as pa

            return {"brightness": pa.string()}

    steps = pipeline(("a", Brightness, {}))
    with pytest.raises(OperatorError, match="'brightness' must be string but is float"):
        chain(steps, "b", "x", Insists(Insists.Params()))

"""What the Ray runner decides by itself; what it does is in test_run.py and test_kill.py."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from labelmill.operators.base import Needs, TableOperator
from labelmill.pipelines.engine import on_ray
from labelmill.pipelines.engine.placement import Pool
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.steps import chain


class Toy(TableOperator):
    name = "toy"

    def __init__(self, needs: Needs) -> None:
        super().__init__(self.Params())
        self._needs = needs

    def writes(self) -> pa.Schema:
        return pa.schema([])

    def needs(self) -> Needs:
        return self._needs

    def compute(self, table: pa.Table) -> Any: ...


@pytest.mark.parametrize(
    ("needs", "nothing"),
    [
        ([Needs(), Needs()], True),
        ([Needs(), Needs(memory_gb=0.1)], False),
        ([Needs(gpu=True), Needs()], False),
    ],
)
def test_a_pool_with_a_model_has_actors(tmp_path: Any, needs: list[Needs], nothing: bool) -> None:
    steps: list[Any] = []
    for number, each in enumerate(needs):
        steps.append(chain(steps, f"toy{number}", "toy", Toy(each)))
    layout = Layout.of(Store(str(tmp_path)), steps)
    assert on_ray._holds_nothing(layout, Pool((0, 1), 2, 1.0)) is nothing


def test_a_process_loads_once_what_the_tasks_of_a_pool_need(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Worker:
        def __init__(self, *arguments: Any) -> None:
            loaded.append(arguments)

        def __call__(self, block: int) -> tuple[int, int]:
            return len(loaded), block

    monkeypatch.setattr(on_ray, "_PoolWorker", Worker)
    monkeypatch.setattr(on_ray, "_tasks", {})
    done = [on_ray._do(block, pool, "layout", pool) for block, pool in ((1, "a"), (2, "a"), (3, "b"), (4, "b"))]
    assert done == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert loaded == [("layout", "a"), ("layout", "b")]
    assert list(on_ray._tasks) == ["b"], "what another pool needed is let go"

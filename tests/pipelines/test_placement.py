from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from operators.base import DatasetOperator, ImageOperator, Needs, OperatorParams, TableOperator, TableResult
from pipelines.errors import UserError
from pipelines.placement import Resources, place, segments
from pipelines.steps import Step, chain


class Params(OperatorParams):
    gpu: bool = False
    memory_gb: float = 0.0


class Look(ImageOperator):
    Params = Params

    def writes(self) -> pa.Schema:
        return pa.schema([])

    def needs(self) -> Needs:
        return Needs(self.params.gpu, self.params.memory_gb)

    def infer(self, items: list[Any]) -> list[Any]:
        raise AssertionError


class Decide(TableOperator):
    def writes(self) -> pa.Schema:
        return pa.schema([])

    def compute(self, table: pa.Table) -> TableResult:
        raise AssertionError


class Whole(DatasetOperator):
    def writes(self) -> pa.Schema:
        return pa.schema([])

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        raise AssertionError


def pipeline(*operators: Any) -> list[Step]:
    steps: list[Step] = []
    for index, operator in enumerate(operators):
        steps.append(chain(steps, f"s{index}", type(operator).__name__, operator))
    return steps


def cpu(memory_gb: float = 0.0) -> Look:
    return Look(Params(memory_gb=memory_gb))


def gpu(memory_gb: float) -> Look:
    return Look(Params(gpu=True, memory_gb=memory_gb))


def table() -> Decide:
    return Decide(Decide.Params())


def shape(phases: Any) -> list[list[tuple[tuple[int, ...], int, float]]]:
    return [[(pool.positions, pool.workers, pool.gpus) for pool in phase.pools] for phase in phases]


def test_dataset_steps_are_barriers() -> None:
    steps = pipeline(cpu(), table(), Whole(Whole.Params()), Whole(Whole.Params()), cpu())
    assert [[step.position for step in segment] for segment in segments(steps)] == [[0, 1], [2], [3], [4]]


def test_without_gpus_everything_shares_one_pool_that_fills_the_cpus() -> None:
    steps = pipeline(cpu(), table(), gpu(2.0), table())
    assert shape(place(steps, Resources(cpus=4, memory_gb=64))) == [[((0, 1, 2, 3), 4, 0.0)]]
    assert shape(place(steps, Resources(cpus=4, memory_gb=64), workers=2)) == [[((0, 1, 2, 3), 2, 0.0)]]


def test_memory_bounds_the_workers() -> None:
    assert shape(place(pipeline(gpu(7.0)), Resources(cpus=16, memory_gb=40))) == [[((0,), 4, 0.0)]]


def test_models_that_do_not_fit_into_memory_together_run_in_phases() -> None:
    phases = place(pipeline(gpu(7.0), gpu(7.0)), Resources(cpus=8, memory_gb=16))
    assert shape(phases) == [[((0,), 1, 0.0)], [((1,), 1, 0.0)]]


def test_gpu_models_take_fractions_side_by_side_and_cpu_steps_get_the_rest() -> None:
    steps = pipeline(cpu(), table(), gpu(4.0), table(), gpu(8.0), cpu())
    (phase,) = place(steps, Resources(cpus=16, gpus=1, gpu_memory_gb=40, memory_gb=128))
    pools = {pool.positions: pool for pool in phase.pools}
    assert set(pools) == {(0, 1), (2, 3), (4,), (5,)}
    assert pools[(2, 3)].gpus == pytest.approx(0.1)
    assert pools[(4,)].gpus == pytest.approx(0.2)
    assert sum(pool.workers * pool.gpus for pool in phase.pools) <= 1 + 1e-9
    assert sum(pool.workers * pool.cpus for pool in phase.pools) <= 16
    assert all(pool.workers >= 1 for pool in phase.pools)


def test_models_that_fill_a_gpu_run_in_phases() -> None:
    steps = pipeline(cpu(), gpu(14.0), gpu(12.0), gpu(3.0))
    phases = place(steps, Resources(cpus=8, gpus=1, gpu_memory_gb=16, memory_gb=64))
    assert [[positions for positions, _, _ in pools] for pools in shape(phases)] == [[(0,), (1,)], [(2,), (3,)]]


def test_fractions_are_packed_into_whole_gpus() -> None:
    """Two models of 0.6 need two GPUs; the sum alone would say 1.2 of 2 and a third of 0.6 would seem to fit."""
    steps = pipeline(gpu(9.6), gpu(9.6), gpu(9.6))
    phases = place(steps, Resources(cpus=32, gpus=2, gpu_memory_gb=16, memory_gb=64))
    assert [len(pools) for pools in shape(phases)] == [2, 1]


@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_a_plan_never_asks_for_more_cpus_than_there_are(cpus: int) -> None:
    steps = pipeline(cpu(), gpu(4.0), cpu(), gpu(4.0), cpu())
    for phase in place(steps, Resources(cpus=cpus, gpus=1, gpu_memory_gb=16, memory_gb=64)):
        assert sum(pool.workers * pool.cpus for pool in phase.pools) <= cpus


def test_what_no_machine_has_is_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match="needs a GPU with 20 GB but the largest here has 16 GB"):
        place(pipeline(gpu(20)), Resources(cpus=8, gpus=1, gpu_memory_gb=16))
    with pytest.raises(UserError, match="needs 21 GB of memory"):
        place(pipeline(gpu(20)), Resources(cpus=8, memory_gb=16))
    with pytest.raises(UserError, match="at least one CPU"):
        place(pipeline(cpu()), Resources(cpus=0))

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.applying.apply import Job, apply, apply_together
from labelmill.operators.applying.bisect import bisect
from labelmill.operators.applying.patience import Limits, Patience
from labelmill.operators.applying.results import ContractError, step_schema, to_array
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import DatasetOperator
from labelmill.operators.errors import RowError
from tests.drawing import encode, noise
from tests.toys import Brightness, Threshold, Wrong

COUNT = 13
FILES = {f"mem/{index}": encode(noise(index, 16, 8), "PNG") for index in range(COUNT)}


def fetch(uri: str) -> bytes:
    return FILES[uri]


def images(budget: int = 10**9) -> ShardImages:
    return ShardImages(list(FILES), fetch, budget)


def rows(**columns: list[object]) -> pa.Table:
    return pa.table({"image_id": pa.array(range(1, COUNT + 1), pa.int64()), "key": list(FILES), **columns})


def run(operator: Brightness, active: np.ndarray | None = None) -> pa.Table:
    shown = np.ones(COUNT, dtype=bool) if active is None else active
    return apply(Job(Worker(operator), rows(), shown), images())[0]


def brightness(**params: object) -> Brightness:
    return Brightness(Brightness.Params(**params))


def test_gives_one_row_per_image_in_order_whatever_the_buckets_and_batches() -> None:
    expected = [noise(index, 16, 8) for index in range(COUNT)]
    for batch in (1, 3, 50):
        table = run(brightness(batch=batch))
        assert table.schema.equals(step_schema(brightness()))
        assert table.column("image_id").to_pylist() == list(range(1, COUNT + 1))
        means = [np.asarray(image).astype(np.float32).mean() for image in expected]
        np.testing.assert_allclose(table.column("brightness").to_pylist(), means, rtol=1e-5)


def test_a_bad_row_fails_alone_with_its_exception() -> None:
    table = run(brightness(fail_in_infer=(3, 8), fail_in_prepare=(5,), refuse=(6,)))
    told = dict(zip(table.column("image_id").to_pylist(), table.column("decision.reason").to_pylist(), strict=True))
    assert {key: value for key, value in told.items() if value} == {
        3: "ValueError: infer was told to fail",
        5: "prepare was told to fail",
        6: "infer refused this one",
        8: "ValueError: infer was told to fail",
    }
    failed = table.filter(pa.compute.equal(table.column("decision"), "failed"))
    for name in ("brightness", "vector", "tags"):
        assert failed.column(name).null_count == 4
        assert table.column(name).null_count == 4


def test_an_unreadable_image_fails_alone() -> None:
    def broken(uri: str) -> bytes:
        if uri == "mem/2":
            raise RowError("the file is gone")
        return b"" if uri == "mem/4" else FILES[uri]

    table, _ = apply(Job(Worker(brightness()), rows(), np.ones(COUNT, dtype=bool)), ShardImages(list(FILES), broken))
    decisions = table.column("decision").to_pylist()
    assert [index for index, decision in enumerate(decisions) if decision == "failed"] == [2, 4]
    assert table.column("decision.reason")[2].as_py() == "the file is gone"


def test_halves_the_batch_for_good_when_memory_runs_out() -> None:
    worker = Worker(brightness(batch=8, memory=2))
    table, _ = apply(Job(worker, rows(), np.ones(COUNT, dtype=bool)), images())
    assert table.column("decision").to_pylist() == ["kept"] * COUNT
    assert worker.batch == 2
    assert table.equals(run(brightness(batch=1)))


def test_one_image_that_does_not_fit_into_memory_is_undone() -> None:
    worker = Worker(brightness(memory=0), Patience(Limits(seconds=0)))
    table, _ = apply(Job(worker, rows(), np.ones(COUNT, dtype=bool)), images())
    assert set(table.column("decision").to_pylist()) == {"undone"}
    assert "out of memory" in table.column("decision.reason")[0].as_py()


@pytest.mark.parametrize(
    ("how", "message"),
    [("missing", "must give the columns"), ("extra", "must give the columns"), ("short", "one dict per item")],
)
def test_a_broken_contract_stops_the_run(how: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        apply(Job(Worker(Wrong(Wrong.Params(how=how))), rows(), np.ones(COUNT, dtype=bool)), images())


def test_a_value_of_another_type_fails_its_row() -> None:
    table, _ = apply(Job(Worker(Wrong(Wrong.Params(how="type"))), rows(), np.ones(COUNT, dtype=bool)), images())
    assert table.column("decision").to_pylist() == ["failed"] + ["kept"] * (COUNT - 1)
    assert "'number' must be int32" in table.column("decision.reason")[0].as_py()


def test_a_lost_accelerator_is_not_a_bad_row() -> None:
    def lost(_: list[int]) -> list[int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory"):
        bisect(lost, [1, 2, 3], fail=lambda error: [0])


@settings(max_examples=60, deadline=None)
@given(
    active=st.lists(st.booleans(), min_size=COUNT, max_size=COUNT),
    bad=st.sets(st.integers(1, COUNT)),
    worse=st.sets(st.integers(1, COUNT)),
)
def test_schema_and_rows_hold_for_any_failures(active: list[bool], bad: set[int], worse: set[int]) -> None:
    operator = brightness(fail_in_infer=tuple(bad), fail_in_prepare=tuple(worse), batch=5)
    table = run(operator, np.array(active))
    assert table.schema.equals(step_schema(operator))
    assert table.num_rows == COUNT
    for index, decision in enumerate(table.column("decision").to_pylist()):
        if not active[index]:
            assert decision is None
        else:
            assert decision == ("failed" if index + 1 in bad | worse else "kept")
        assert (table.column("brightness")[index].as_py() is None) == (decision != "kept")


def test_table_operator_scatters_its_rows_and_isolates_a_bad_one() -> None:
    values = [float(10 * index) for index in range(COUNT)]
    active = np.array([index != 4 for index in range(COUNT)])
    operator = Threshold(Threshold.Params(at_least=50, fail=(3,)))
    table, _ = apply(Job(Worker(operator), rows(brightness=values), active))
    assert table.schema.equals(step_schema(operator))
    decisions = table.column("decision").to_pylist()
    assert decisions == ["dropped", "dropped", "failed", "dropped", None, *["kept"] * (COUNT - 5)]
    assert table.column("margin").to_pylist()[:6] == [-50, -40, None, -20, None, 0]
    assert table.column("decision.score")[0].as_py() == 0
    assert table.column("decision.threshold")[0].as_py() == 50


@pytest.mark.parametrize("operator", [brightness(), Threshold(Threshold.Params())])
def test_no_active_row_gives_a_table_of_nulls(operator: Brightness | Threshold) -> None:
    table, _ = apply(Job(Worker(operator), rows(brightness=[0.0] * COUNT), np.zeros(COUNT, dtype=bool)), images())
    assert table.schema.equals(step_schema(operator))
    assert all(table.column(name).null_count == COUNT for name in table.column_names[1:])


def test_preparing_runs_in_threads_ahead_of_the_model() -> None:
    seen: set[str] = set()
    meeting, release = threading.Barrier(2, timeout=20), threading.Event()

    class Slow(Brightness):
        def prepare(self, image, row):  # type: ignore[no-untyped-def]
            seen.add(threading.current_thread().name)
            if row["image_id"] in (1, 2):
                meeting.wait()  # each by a thread of its own
            if row["image_id"] > 4:
                release.set()
            return super().prepare(image, row)

        def infer(self, items):  # type: ignore[no-untyped-def]
            assert release.wait(10), "nothing was prepared while the model ran"
            return super().infer(items)

    table, _ = apply(Job(Worker(Slow(Slow.Params(batch=2))), rows(), np.ones(COUNT, dtype=bool)), images())
    assert table.column("decision").to_pylist() == ["kept"] * COUNT
    assert "MainThread" not in seen
    assert len(seen) > 1


def test_images_are_decoded_once_within_the_budget_and_again_beyond_it() -> None:
    calls: list[str] = []

    def counting(uri: str) -> bytes:
        calls.append(uri)
        return FILES[uri]

    for budget, expected in ((10**9, COUNT), (0, 2 * COUNT)):
        calls.clear()
        shard = ShardImages(list(FILES), counting, budget)
        first, _ = apply(Job(Worker(brightness()), rows(), np.ones(COUNT, dtype=bool)), shard)
        again, _ = apply(Job(Worker(brightness()), rows(), np.ones(COUNT, dtype=bool)), shard)
        assert len(calls) == expected
        assert first.equals(again)


def test_vectors_become_fixed_size_lists_and_wrong_lengths_are_refused() -> None:
    kind = pa.list_(pa.float16(), 2)
    array = to_array([np.array([1, 2], np.float16), None, [0.5, 0.25]], kind)
    assert array.type.equals(kind)
    assert array.to_pylist() == [[1, 2], None, [0.5, 0.25]]
    with pytest.raises(ValueError, match="shape"):
        to_array([np.zeros(3)], kind)


def test_dataset_operators_are_not_applied_to_a_shard() -> None:
    class Whole(DatasetOperator):
        def writes(self) -> pa.Schema:
            return pa.schema([])

        def compute(self, new, old):  # type: ignore[no-untyped-def]
            raise AssertionError

    with pytest.raises(ContractError, match="ImageOperator or a TableOperator"):
        apply(Job(Worker(Whole(Whole.Params())), rows(), np.ones(COUNT, dtype=bool)))


def test_operators_applied_together_give_what_each_gives_alone_and_decode_once() -> None:
    calls: list[str] = []

    def counting(uri: str) -> bytes:
        calls.append(uri)
        if uri == "mem/5":
            raise RowError("the file is gone")
        return FILES[uri]

    operators = [
        brightness(batch=2, fail_in_prepare=(3,)),
        brightness(batch=5, scale=2.0, fail_in_infer=(9,), memory=3),
    ]
    actives = [np.arange(COUNT) % 4 != 1, np.arange(COUNT) % 3 != 2]
    alone = [
        apply(Job(Worker(operator), rows(), active), ShardImages(list(FILES), counting))[0]
        for operator, active in zip(operators, actives, strict=True)
    ]
    calls.clear()
    jobs = [Job(Worker(operator), rows(), active) for operator, active in zip(operators, actives, strict=True)]
    shard = ShardImages(list(FILES), counting)
    shard.remember = False
    together = apply_together(jobs, shard)
    assert [table for table, _ in together] == alone
    assert sorted(calls) == sorted(np.array(list(FILES))[actives[0] | actives[1]])

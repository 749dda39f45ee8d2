from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labelmill.pipelines.engine import work
from labelmill.pipelines.engine.work import ShardWorker, waves
from labelmill.pipelines.run_folder.intake import take_in
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Fetcher, SourceSpec, open_source
from labelmill.pipelines.steps import Step, chain
from tests.drawing import folder_of_images
from tests.toys import Brightness, Rank, Threshold, logged


class Killed(BaseException):
    pass


class Dies(Brightness):
    """Computes brightness until it has seen so many images."""

    left = 10**9

    def infer(self, items: list[Any]) -> list[Any]:
        if len(items) > Dies.left:
            raise Killed
        Dies.left -= len(items)
        return super().infer(items)


def one_shard(output: str, log: str) -> ShardWorker:
    step = chain([], "slow", "x", Dies(Dies.Params(batch=4, log=str(Path(log).absolute()))))
    store = Store(output)
    take_in(open_source(SourceSpec.model_validate("data")), store, 1000)
    return ShardWorker(Layout.of(store, [step]), (0,), Fetcher())


@pytest.mark.parametrize("died_after", [33, 70, 99])
def test_a_shard_that_was_killed_goes_on_after_its_last_part_with_the_same_bytes(
    died_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of_images(Path("data"), 110)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)
    monkeypatch.setattr(Dies, "left", 10**9)
    one_shard("whole", "whole.log").run(0)
    monkeypatch.setattr(Dies, "left", died_after)
    with pytest.raises(Killed):
        one_shard("run", "run.log").run(0)
    (part,) = Path("run").glob("steps/*/undone/00000.parquet")
    assert not list(Path("run").glob("steps/*/00000.parquet"))
    kept = died_after // 32 * 32
    before = logged("run.log")
    monkeypatch.setattr(Dies, "left", 10**9)
    one_shard("run", "run.log").run(0)
    again = logged("run.log")[len(before) :]
    assert sorted(again) == list(range(kept + 1, 111))
    assert not part.exists()
    (whole,), (run) = Path("whole").glob("steps/*/00000.parquet"), list(Path("run").glob("steps/*/00000.parquet"))
    assert [whole.read_bytes()] == [each.read_bytes() for each in run]


def test_parts_are_written_once_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of_images(Path("data"), 70)
    monkeypatch.setattr(Dies, "left", 66)
    with pytest.raises(Killed):
        one_shard("run", "run.log").run(0)
    assert not list(Path("run").glob("steps/*/*/*.parquet"))


def test_image_steps_that_do_not_depend_on_each_other_are_one_wave() -> None:
    steps: list[Step] = []
    for name, operator in (
        ("a", Brightness(Brightness.Params())),
        ("keep", Threshold(Threshold.Params())),
        ("b", Brightness(Brightness.Params(scale=2.0))),
        ("margin", Threshold(Threshold.Params(at_least=1.0))),
        ("c", Brightness(Brightness.Params(scale=3.0))),
        ("d", Brightness(Brightness.Params(scale=4.0))),
    ):
        steps.append(chain(steps, name, "x", operator))
    assert [[step.name for step in wave] for wave in waves(steps)] == [["a"], ["keep"], ["b"], ["margin"], ["c", "d"]]
    assert [[step.name for step in wave] for wave in waves(steps[2:3] + steps[4:])] == [["b", "c", "d"]]


def test_every_step_comes_once_and_after_those_it_depends_on() -> None:
    steps: list[Step] = []
    for index in range(12):
        operator = [Brightness(Brightness.Params(scale=index)), Threshold(Threshold.Params(at_least=index))][
            index % 3 == 2
        ]
        steps.append(chain(steps, f"s{index}", "x", operator))
    steps.append(chain(steps, "rank", "x", Rank(Rank.Params())))
    seen: list[int] = []
    for wave in waves(steps):
        for step in wave:
            assert set(step.depends) <= set(seen)
        seen += [step.position for step in wave]
    assert sorted(seen) == list(range(13))

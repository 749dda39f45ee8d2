from __future__ import annotations

from labelmill.pipelines.engine.work import waves
from labelmill.pipelines.steps import Step, chain
from tests.toys import Brightness, Rank, Threshold


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

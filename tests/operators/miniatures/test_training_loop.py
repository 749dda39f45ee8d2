"""The loop of all trainings: the same weights however often it was stopped, and nothing kept that is not a number."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from labelmill.operators.miniatures.training.loop import Loss, Plan, save_half, train

PLAN = Plan(steps=12, rate=0.02, warm_up=3, decay=0.1, average=0.9, clip=0.5)
State = dict[str, torch.Tensor]


def network(seed: int) -> nn.Module:
    """With a norm, whose buffers are floats and an integer that move too."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def fit(model: nn.Module, before: Callable[[int], None] = lambda step: None) -> Loss:
    """Learn a fixed product; `before` is told the number of each call."""
    calls = 0

    def loss(rng: np.random.Generator, far: float) -> State:
        nonlocal calls
        before(calls)
        calls += 1
        given = torch.from_numpy(rng.normal(size=(16, 4)).astype(np.float32))
        wrong = model(given)[:, 0] - given @ torch.tensor([1.0, -2, 0.5, 3])
        return {"square": wrong.square().mean(), "far": 0.1 * (1 + far) * wrong.abs().mean()}

    return loss


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def points(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "small.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def whole(tmp_path: Path) -> State:
    """The weights of a training that nobody stopped."""
    model = network(0)
    return train("small", model, fit(model), PLAN, tmp_path / "whole", report=4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_gone_on_gives_the_same_weights(number: signal.Signals, whole: State, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"

    def stop(call: int) -> None:
        if call == 3:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for seed, upto in ((0, 4), (1, 8), (2, 12)):  # of the step in which it is told, each time
        model = network(seed)
        with pytest.raises(KeyboardInterrupt):
            train("small", model, fit(model, stop), PLAN, folder, report=4)
        assert torch.load(folder / "small.pt", weights_only=True)["step"] == upto
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    model = network(3)
    assert same(train("small", model, fit(model), PLAN, folder, report=4), whole)
    assert same(model.state_dict(), whole)
    assert points(folder) == points(tmp_path / "whole")
    assert sorted(path.name for path in folder.iterdir()) == ["small.jsonl", "small.pt"]


def test_killed_and_gone_on_gives_the_same_weights_and_curve(whole: State, tmp_path: Path) -> None:
    def die(call: int) -> None:
        if call == 7:
            raise MemoryError

    folder = tmp_path / "killed"
    model = network(0)
    with pytest.raises(KeyboardInterrupt):
        train("small", model, fit(model, lambda call: os.kill(os.getpid(), signal.SIGINT)), PLAN, folder, report=1)
    model = network(1)
    with pytest.raises(MemoryError):
        train("small", model, fit(model, die), PLAN, folder, report=1)
    assert [point["step"] for point in points(folder)] == list(range(1, 9))
    assert torch.load(folder / "small.pt", weights_only=True)["step"] == 1  # the other seven are lost
    model = network(2)
    assert same(train("small", model, fit(model), PLAN, folder, report=1), whole)
    assert [point["step"] for point in points(folder)] == list(range(1, 13))


def test_it_is_saved_every_so_often(tmp_path: Path) -> None:
    steps = []

    def look(call: int) -> None:
        if call:
            steps.append(torch.load(tmp_path / "small.pt", weights_only=True)["step"])

    model = network(0)
    train("small", model, fit(model, look), PLAN, tmp_path, keep=0)
    assert steps == list(range(1, 12))


def test_what_is_finished_is_not_trained_again(whole: State, tmp_path: Path) -> None:
    def never(call: int) -> None:
        raise AssertionError("no batch must be drawn")

    model = network(5)
    assert same(train("small", model, fit(model, never), PLAN, tmp_path / "whole"), whole)
    assert same(model.state_dict(), whole)
    assert not model.training


def test_the_seed_decides_the_batches(tmp_path: Path) -> None:
    drawn: list[list[float]] = []
    for seed in (0, 0, 1):
        numbers: list[float] = []
        model = network(0)
        inner = fit(model)

        def loss(rng: np.random.Generator, far: float, inner: Loss = inner, numbers: list[float] = numbers) -> State:
            numbers.append(float(np.random.Generator(type(rng.bit_generator)(rng.bit_generator.seed_seq)).random()))
            return inner(rng, far)

        train("small", model, loss, Plan(steps=4, rate=0.01, seed=seed), tmp_path / str(len(drawn)))
        drawn.append(numbers)
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
    assert len(set(drawn[0])) == 4


def test_how_far_it_has_come(tmp_path: Path) -> None:
    told: list[float] = []
    model = network(0)
    inner = fit(model)

    def loss(rng: np.random.Generator, far: float) -> State:
        told.append(far)
        return inner(rng, far)

    train("small", model, loss, Plan(steps=4, rate=0.01), tmp_path)
    assert told == [0, 0.25, 0.5, 0.75]


def test_the_curve_is_the_mean_of_the_parts(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    calls = iter(range(100))

    def loss(rng: np.random.Generator, far: float) -> State:
        return {"even": torch.tensor(float(next(calls))) + 0 * model.weight.sum(), "one": torch.ones(())}

    train("small", model, loss, Plan(steps=5, rate=0.01), tmp_path, report=2)
    expected = [
        {"step": 2, "even": 0.5, "one": 1},
        {"step": 4, "even": 2.5, "one": 1},
        {"step": 5, "even": 4, "one": 1},
    ]
    assert points(tmp_path) == expected


def test_the_loss_falls(tmp_path: Path) -> None:
    model = network(0)
    train("small", model, fit(model), Plan(steps=60, rate=0.05, warm_up=3), tmp_path, report=20)
    losses = [point["square"] for point in points(tmp_path)]
    assert losses[2] < losses[1] < losses[0]


def test_weights_are_averaged(tmp_path: Path) -> None:
    model = network(0)
    states: list[State] = []

    def remember(call: int) -> None:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    average = train("small", model, fit(model, remember), PLAN, tmp_path)
    states.append(torch.load(tmp_path / "small.pt", weights_only=True)["model"])
    for name, found in average.items():
        expected = states[0][name].double()
        for step, state in enumerate(states[1:]):
            share = min(0.9, (1 + step) / (10 + step))
            expected = share * expected + (1 - share) * state[name].double()
        if found.is_floating_point():
            torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
            assert not torch.allclose(found, states[-1][name], atol=1e-4)
    assert average["1.num_batches_tracked"] == 12


def test_rates_and_decay(tmp_path: Path) -> None:
    """Without a gradient, only decay moves weights, and only matrices: each step by its rate times the decay."""
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    plan = Plan(steps=9, rate=0.1, warm_up=4, decay=0.5, average=0.0)
    weights: list[float] = []

    def loss(rng: np.random.Generator, far: float) -> State:
        weights.append(model.weight[0, 0].item())
        return {"nothing": 0 * (model.weight.sum() + model.bias.sum())}

    final = train("small", model, loss, plan, tmp_path)
    weights.append(final["weight"][0, 0].item())
    rates = [(1 - after / before) / 0.5 for before, after in pairwise(weights)]
    cosine = [0.001 + 0.099 * (1 + np.cos(np.pi * step / 5)) / 2 for step in range(5)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, *cosine], rel=1e-4)
    assert torch.equal(final["bias"], torch.ones(2))


def test_large_gradients_are_cut(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    norms: list[float] = []

    def loss(rng: np.random.Generator, far: float) -> State:
        if model.weight.grad is not None:
            norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()))
        return {"steep": 1000 * (1 - 0.9999 * (far > 0.5)) * model(torch.ones(1, 3)).sum()}

    train("small", model, loss, Plan(steps=4, rate=0.01, clip=0.5), tmp_path)
    assert norms == pytest.approx([0.5, 0.5, 0.5], rel=1e-4)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    model = network(0)
    frozen = model.get_submodule("0").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    average = train("small", model, fit(model), PLAN, tmp_path)
    assert all(torch.equal(average[f"0.{name}"], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused(value: float, whole: State, tmp_path: Path) -> None:
    model = network(0)
    inner = fit(model)
    calls = iter(range(100))

    def loss(rng: np.random.Generator, far: float) -> State:
        parts = inner(rng, far)
        return {**parts, "wrong": parts["far"] * value} if next(calls) == 5 else parts

    folder = tmp_path / "broken"
    with pytest.raises(FloatingPointError, match=r"small: the loss at step 5 must be finite but is (nan|inf)"):
        train("small", model, loss, PLAN, folder, keep=0)
    model = network(1)  # from what was saved before, a loss that is repaired goes on
    assert same(train("small", model, fit(model), PLAN, folder), whole)


def test_a_gradient_that_is_no_number_is_refused(whole: State, tmp_path: Path) -> None:
    model = network(0)
    inner = fit(model)
    calls = iter(range(100))

    def loss(rng: np.random.Generator, far: float) -> State:
        parts = inner(rng, far)
        return {**parts, "root": (0 * parts["far"]).sqrt()} if next(calls) == 5 else parts

    folder = tmp_path / "broken"
    with pytest.raises(FloatingPointError, match="small: the gradient at step 5 must be finite but is nan"):
        train("small", model, loss, PLAN, folder, keep=0)
    model = network(1)
    assert same(train("small", model, fit(model), PLAN, folder), whole)


def test_half_precision_file(tmp_path: Path) -> None:
    state = {
        "single": torch.tensor([0.1, -65504.0, 1e-9]),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "brain": torch.tensor([1.5], dtype=torch.bfloat16),
        "count": torch.tensor(70_000),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    state["shared"] = state["single"]
    state["learned"] = torch.nn.Parameter(torch.ones(2))
    path = tmp_path / "new" / "small.safetensors"
    save_half(state, path)
    found = load_file(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.detach().half() if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name
    assert state["single"].dtype == torch.float32
    assert [each.name for each in path.parent.iterdir()] == ["small.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("value", [65520.0, -1e30, float("inf"), float("nan")])
def test_numbers_too_large_for_half_precision_are_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_half({"weight": torch.ones(2)}, path)
    with pytest.raises(FloatingPointError, match="tensor weight must fit float16"):
        save_half({"count": torch.tensor(1), "weight": torch.tensor([1.0, value])}, path)
    assert torch.equal(load_file(path)["weight"], torch.ones(2).half())  # what was there is still there

"""The loop that all trainings share: AdamW, warm-up and cosine, averaged weights, a curve, stopping and going on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Loss = Callable[[np.random.Generator, float], "dict[str, torch.Tensor]"]
"""Draws a batch and gives the parts of its loss, which are added up. Is given a generator of random numbers that is the
same for the same step, and how far training has come, 0…1."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast.

    Attributes:
        steps: Updates of the weights.
        rate: AdamW's largest learning rate; reached after `warm_up` steps, then falling as a cosine to a hundredth.
        warm_up: Steps.
        decay: AdamW's weight decay, on matrices only.
        average: Share that the average of the weights keeps at each step; the average is what is saved. It starts
            faster, so that it soon forgets where the weights began.
        clip: Largest norm of the gradient.
        seed: Of the weights' beginning and of every batch.
    """

    steps: int
    rate: float
    warm_up: int = 200
    decay: float = 0.05
    average: float = 0.999
    clip: float = 1.0
    seed: int = 0


def train(
    name: str,
    model: torch.nn.Module,
    loss: Loss,
    plan: Plan,
    folder: Path,
    *,
    report: int = 50,
    keep: float = 120.0,
) -> dict[str, torch.Tensor]:
    """Train a model, or go on where an earlier call with the same plan stopped.

    Args:
        name: Of the training: its files are ``NAME.pt`` (where it stands) and ``NAME.jsonl`` (its curve).
        model: Trained in place. Afterwards it holds the averaged weights.
        loss: The loss of one batch.
        plan: How long and how fast.
        folder: Where its files are.
        report: Steps between two points of the curve.
        keep: Seconds between two savings. Ctrl-C and SIGTERM save too.

    Returns:
        The averaged weights.

    Raises:
        KeyboardInterrupt: It was stopped; calling again goes on.
        FloatingPointError: The loss or its gradient is not a number; what was saved before is still there.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=plan.rate, fused=True)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    start = 0
    if path.is_file():
        kept = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        average, start = kept["average"], kept["step"]
        print(f"{name}: goes on at step {start} of {plan.steps}", flush=True)

    _cut_curve(folder / f"{name}.jsonl", start)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average, "step": step}
        temporary = path.with_suffix(f".{os.getpid()}")
        torch.save(state, temporary)
        os.replace(temporary, path)

    sums: dict[str, float] = {}
    counted = 0
    saved = began = time.monotonic()
    model.train()
    with _stoppable() as stopped:
        for step in range(start, plan.steps):
            for group in optimiser.param_groups:
                group["lr"] = plan.rate * _share(step, plan)
            parts = loss(np.random.default_rng([plan.seed, step]), step / plan.steps)
            total = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(total):
                raise FloatingPointError(f"{name}: the loss at step {step} must be finite but is {total.item()}")
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"{name}: the gradient at step {step} must be finite but is {float(norm)}")
            optimiser.step()
            _follow(average, model.state_dict(), min(plan.average, (1 + step) / (10 + step)))
            for key, part in parts.items():
                sums[key] = sums.get(key, 0.0) + float(part.detach())
            counted += 1
            if (step + 1) % report == 0 or step + 1 == plan.steps:
                seconds = (time.monotonic() - began) / (step + 1 - start)
                point = {"step": step + 1, **{key: round(value / counted, 4) for key, value in sums.items()}}
                _tell(name, point, plan, seconds, folder)
                sums, counted = {}, 0
            stop = stopped()
            if time.monotonic() - saved > keep or stop or step + 1 == plan.steps:
                save(step + 1)
                saved = time.monotonic()
            if stop:
                print(f"{name}: stopped at step {step + 1} of {plan.steps}; run it again to go on", flush=True)
                raise KeyboardInterrupt
    model.load_state_dict(average)
    model.eval()
    return average


def save_half(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write weights as safetensors, floating-point numbers as float16."""
    import torch
    from safetensors.torch import save_file

    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in state.items()
    }
    for name, tensor in half.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"tensor {name} must fit float16 but has values beyond 65504")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    save_file(half, temporary)
    temporary.chmod(0o644)
    os.replace(temporary, path)


def _share(step: int, plan: Plan) -> float:
    """Of the largest learning rate."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    far = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * far)))


def _follow(average: dict[str, torch.Tensor], state: Mapping[str, torch.Tensor], keep: float) -> None:
    import torch

    floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_([average[name] for name in floats], [state[name] for name in floats], 1 - keep)
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                average[name].copy_(tensor)


def _tell(name: str, point: dict[str, Any], plan: Plan, seconds: float, folder: Path) -> None:
    left = (plan.steps - point["step"]) * seconds / 60
    parts = "  ".join(f"{key} {value:.4g}" for key, value in point.items() if key != "step")
    print(f"{name} {point['step']:>6}/{plan.steps}  {parts}  {seconds:.2f} s/step  {left:.0f} min left", flush=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as curve:
        curve.write(json.dumps(point) + "\n")


def _cut_curve(path: Path, start: int) -> None:
    """Drop points of steps that were lost and are made again."""
    if path.is_file():
        points = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(p for p in points if json.loads(p)["step"] <= start), encoding="utf-8")


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM asked to stop: looked at between two steps."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

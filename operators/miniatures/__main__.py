"""Trains the miniatures and measures them: ``python -m operators.miniatures --help``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from operators.miniatures.catalogue import GOALS, SCORES, TRAININGS, evaluate


def main() -> None:
    """Train what is asked for, save its weights, measure it, and write the table of scores."""
    names = [training.name for training in TRAININGS]
    parser = argparse.ArgumentParser(
        prog="python -m operators.miniatures",
        description="Train the miniatures on the drawn world and measure them. Ctrl-C stops; the same command goes on.",
        epilog="Delete the folder to start again. Weights go to operators/miniatures/weights, scores beside them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(names)}; all if none is named")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/miniatures"), help="where trainings keep their state"
    )
    parser.add_argument("--scenes", type=Path, default=Path("build/scenes"), help="where drawn scenes are kept")
    parser.add_argument("--evaluate", action="store_true", help="measure the weights that are there; train nothing")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU: more hardly help, models are small")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in names]:
        parser.error(f"NAME must be one of {', '.join(names)} but is {unknown[0]}")
    wanted = given.names or names
    try:
        if not given.evaluate:
            _train(wanted, given.folder, given.scenes, given.threads)
        _measure([name for name in GOALS if any(each.startswith(name) for each in wanted)])
    except KeyboardInterrupt:
        sys.exit(130)


def _train(names: list[str], folder: Path, scenes: Path, threads: int) -> None:
    import torch

    from operators.miniatures.training.loop import save_half
    from operators.miniatures.training.scenes import draw_scenes

    torch.set_num_threads(threads)
    for training in (each for each in TRAININGS if each.name in names):
        module = training.module
        drawn = draw_scenes(scenes, module.SCENES, progress=_progress)
        save_half(module.run(training.model_card(), drawn, folder), training.weights)
        print(f"{training.name}: weights in {training.weights}", flush=True)


def _progress(done: int, total: int) -> None:
    print(f"\rdrawing scenes: {done} of {total}", end="\n" if done == total else "", flush=True)


def _measure(names: list[str]) -> None:
    known = json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.is_file() else {}
    for name in names:
        began = time.monotonic()
        known[name] = evaluate(name)
        print(f"{name}: measured in {time.monotonic() - began:.0f} s")
        for goal in GOALS[name]:
            value = known[name][goal.key]
            print(f"  {goal.what:<52} {value:8.4f}  goal {goal} {'' if goal.reached(value) else ' MISSED'}")
        SCORES.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Trains the miniatures and measures them: ``python -m labelmill.operators.miniatures --help``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labelmill.operators.miniatures.catalogue import FEW, GOALS, README, SCENES, SCORES, TRAININGS, evaluate, table
from labelmill.operators.miniatures.training.scenes import Scenes, draw_scenes


def main() -> None:
    """Train what is asked for, save its weights, measure it, and write the table of scores."""
    names = [training.name for training in TRAININGS]
    parser = argparse.ArgumentParser(
        prog="python -m labelmill.operators.miniatures",
        description="Train the miniatures on the drawn world and measure them. Ctrl-C stops; the same command goes on.",
        epilog="Delete the folder to start again. Weights go to operators/miniatures/weights, scores beside them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(names)}; all if none is named")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/miniatures"), help="where trainings keep their state"
    )
    parser.add_argument("--scenes", type=Path, default=Path("build/scenes"), help="where drawn scenes are kept")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--evaluate", action="store_true", help="measure the weights that are there; train nothing")
    only.add_argument("--train", action="store_true", help="train; measure nothing")
    parser.add_argument("--jobs", type=int, default=0, help="trainings side by side; one per core or GPU if not given")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in names]:
        parser.error(f"NAME must be one of {', '.join(names)} but is {unknown[0]}")
    wanted = given.names or names
    try:
        if not given.evaluate:
            draw_scenes(
                given.scenes, max(each.module.SCENES for each in TRAININGS if each.name in wanted), None, _drawn
            )
            if len(wanted) == 1:
                _train(wanted[0], given.folder, given.scenes)
            elif not _side_by_side(wanted, given.folder, given.scenes, given.jobs or _processors()):
                sys.exit("a training did not end; the same command goes on")
        if not given.train:
            _measure([name for name in GOALS if any(each.startswith(name) for each in wanted)])
    except KeyboardInterrupt:
        sys.exit(130)


def _train(name: str, folder: Path, scenes: Path) -> None:
    import torch

    from labelmill.operators.miniatures.training.loop import save_half

    torch.set_num_threads(1)  # Small models: more threads gain next to nothing, another training does.
    training = next(each for each in TRAININGS if each.name == name)
    module = training.module
    save_half(module.run(training.model_card(), Scenes(scenes, module.SCENES), folder), training.weights)
    print(f"{name}: weights in {training.weights}", flush=True)


def _side_by_side(names: list[str], folder: Path, scenes: Path, jobs: int) -> bool:
    """Train each in a process of its own, the longest first. Whether all came to their end."""

    def run(name: str) -> int:
        command = [
            sys.executable,
            "-m",
            "labelmill.operators.miniatures",
            name,
            "--folder",
            str(folder),
            "--scenes",
            str(scenes),
        ]
        return subprocess.run([*command, "--train"]).returncode

    with ThreadPoolExecutor(jobs) as pool:
        codes = [pool.submit(run, name) for name in names]
        try:
            return not any(code.result() for code in codes)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C reaches the trainings themselves, and they save.
            raise


def _processors() -> int:
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def _drawn(done: int, total: int) -> None:
    print(f"\rdrawing scenes: {done} of {total}", end="\n" if done == total else "", flush=True)


def _measure(names: list[str]) -> None:
    known = json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.is_file() else {}
    for name in names:
        for scenes in (FEW, SCENES):
            began = time.monotonic()
            known.setdefault(str(scenes), {})[name] = evaluate(name, scenes)
            print(f"{name}: measured on {scenes} scenes in {time.monotonic() - began:.0f} s", flush=True)
        for goal in GOALS[name]:
            value = known[str(SCENES)][name][goal.key]
            print(f"  {goal.what:<60} {value:8.4f}  goal {goal}{'' if goal.reached(value) else '  MISSED'}", flush=True)
        SCORES.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    head, tail = text.split("<!-- scores -->")[0], text.split("<!-- end -->")[1]
    README.write_text(f"{head}<!-- scores -->\n{table(known.get(str(SCENES), {}))}<!-- end -->{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

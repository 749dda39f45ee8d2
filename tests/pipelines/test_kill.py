"""A driver that is killed at any moment costs no more than the shards that were under way."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from labelmill.pipelines.engine.deaths import RETRIES
from tests.drawing import folder_of_images
from tests.pipelines.test_run import document, tree
from tests.toys import logged

IMAGES, SHARD = 60, 3
KILLS, LOCAL, ON_RAY = 8, 12, 4
CHECKOUT = Path(__file__).resolve().parents[2]


def start(pipeline: Path, *flags: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own, as a user would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "labelmill", "run", str(pipeline), *flags],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell that starts the tests in the background lets them, and so this process, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def write(name: str, output: str) -> Path:
    slow = {"log": str(Path(f"{output}.log").absolute()), "sleep": 0.02}
    settings = document(output=output, shard_size=SHARD, bright=slow)
    path = Path(name)
    path.write_text(yaml.safe_dump(settings))
    return path


def committed(output: str) -> int:
    """Files of steps that are there."""
    return sum(1 for _ in Path(output).glob("steps/*/[0-9]*.parquet"))


def finished_images(output: str) -> set[int]:
    """Images whose result of the first step is there."""
    shards = [int(path.stem) for path in Path(output).glob("steps/01-*/[0-9]*.parquet")]
    return {shard * SHARD + row + 1 for shard in shards for row in range(SHARD)}


def kill_at(process: subprocess.Popen[bytes], output: str, files: int, wait: float) -> bool:
    """SIGKILL the driver alone, a moment after so many more files are there; False if it had ended before."""
    target = committed(output) + files
    deadline = time.monotonic() + 120
    while committed(output) < target and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(wait)
    if process.poll() is not None:
        return False
    kill(process)
    return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the driver; what it has started must end by itself."""
    family = children(process)
    process.kill()
    process.wait()
    wait_for_orphans(family)


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Everything that a process has started and that could compute or write.

    Not Ray's agents: those that are killed while they start may stay a while, and touch nothing of a run.
    """
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        return [child for child in family if "agent" not in " ".join([child.name(), *child.cmdline()]).lower()]
    except psutil.NoSuchProcess:
        return []


def wait_for_orphans(family: list[psutil.Process]) -> None:
    """Ray's processes end by themselves when their driver is gone."""
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, f"still there a minute after the driver was gone: {alive}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "kills"),
    [(("--inline",), KILLS), (("--workers", "2"), LOCAL), (("--ray", "--workers", "2"), ON_RAY)],
    ids=["inline", "local", "ray"],
)
def test_killed_and_started_again_gives_the_same_bytes_and_computes_nothing_twice(
    flags: tuple[str, ...], kills: int
) -> None:
    folder_of_images(Path("data"), IMAGES)
    undisturbed = start(write("whole.yaml", "whole"), "--inline")
    _, errors = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, errors.decode()

    generator = np.random.default_rng(7)
    pipeline, log = write("p.yaml", "run"), Path("run.log")
    total = committed("whole")
    done_before: set[int] = set()
    killed = 0
    for attempt in range(kills):
        calls = len(logged(log))
        process = start(pipeline, *flags)
        # All within the first half: what is under way is done before a kill on a busy machine comes through.
        files = int(generator.integers(0, max(2, total // (2 * kills))))
        killed += kill_at(process, "run", files, wait=float(generator.uniform(0, 0.05)))
        assert not done_before & set(logged(log)[calls:]), f"attempt {attempt} computed a finished shard again"
        done_before = finished_images("run")
    assert killed == kills, "some runs ended before they were killed"

    calls = len(logged(log))
    process = start(pipeline, *flags)
    while not list(Path("run").glob("exports/.tmp-*")) and process.poll() is None:
        time.sleep(0.001)
    kill(process)
    assert not done_before & set(logged(log)[calls:])
    done_before = finished_images("run")

    calls = len(logged(log))
    last = start(pipeline, *flags)
    _, errors = last.communicate(timeout=180)
    assert last.returncode == 0, errors.decode()
    assert not done_before & set(logged(log)[calls:])
    found = {path.replace("run/", "whole/", 1): digest for path, digest in tree("run/exports", "run/steps").items()}
    assert found == tree("whole/exports", "whole/steps")
    leftovers = list(Path("run").rglob(".tmp-*"))
    assert leftovers == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "stop"),
    [
        (("--inline",), signal.SIGINT),
        (("--inline",), signal.SIGTERM),
        (("--workers", "2"), signal.SIGINT),
        (("--workers", "2"), signal.SIGTERM),
        (("--ray", "--workers", "2"), signal.SIGINT),
    ],
    ids=["inline", "inline-term", "local", "local-term", "ray"],
)
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(flags: tuple[str, ...], stop: signal.Signals) -> None:
    folder_of_images(Path("data"), IMAGES)
    process = start(write("p.yaml", "run"), *flags)
    deadline = time.monotonic() + 120
    while committed("run") < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    family = children(process)
    os.killpg(process.pid, stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    told, hint = errors.decode(), shlex.join(["labelmill", "run", "p.yaml", *_long(flags)])
    assert told.strip() == f"stopped; what was finished is kept. Go on with: {hint}", "and nothing of Ray's or Python's"
    wait_for_orphans(family)
    again = start(Path("p.yaml"), *flags)
    assert again.wait(timeout=180) == 0


def _long(flags: tuple[str, ...]) -> list[str]:
    """Flags as the hint has them, in the order of the command's options: ``--ray --workers=2``."""
    return ["--workers=2" if flag == "--workers" else flag for flag in flags if flag != "2"]


@pytest.mark.slow
def test_workers_that_are_killed_at_random_moments_are_replaced() -> None:
    """Workers, each after some shard was finished, and once the process that they are forked from."""
    folder_of_images(Path("data"), IMAGES)
    undisturbed = start(write("whole.yaml", "whole"), "--inline")
    process = start(write("p.yaml", "run"), "--workers", "2")
    generator = np.random.default_rng(3)
    killed: set[int] = set()
    before = 0
    while process.poll() is None and len(killed) <= RETRIES - 1:  # more on one shard would end the run, rightly
        time.sleep(float(generator.uniform(0, 0.05)))
        first, *forked = [each for each in children(process) if each.pid not in killed] or [None]
        if committed("run") > before and first is not None and forked:
            before = committed("run")
            victim = first if len(killed) == 2 else forked[int(generator.integers(len(forked)))]
            victim.kill()
            killed.add(victim.pid)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors.decode()
    assert len(killed) >= 3, "the run was over before enough were killed"
    assert undisturbed.wait(timeout=120) == 0
    found = {path.replace("run/", "whole/", 1): digest for path, digest in tree("run/exports", "run/steps").items()}
    assert found == tree("whole/exports", "whole/steps")

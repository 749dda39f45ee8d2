"""What a terminal shows of steps that are under way."""

from __future__ import annotations

import io
import time

import pyarrow as pa
from rich.console import Console

from labelmill.pipelines.engine.receipts import Loading, Partial, Working, receipt_of
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.steps import Step, chain
from tests.toys import Parted


def reporter(width: int = 80, live: bool = False) -> tuple[TerminalReporter, io.StringIO, Step]:
    out = io.StringIO()
    shown = TerminalReporter(Console(file=out, width=width, force_terminal=live))
    steps: list[Step] = []
    steps.append(chain(steps, "copies", "c", Parted(Parted.Params())))
    shown.planned(Layout.of(Store("run"), steps), {0: set()}, {0: 1000, 1: 500})
    return shown, out, steps[0]


def test_a_long_dataset_step_says_how_long_and_how_many_parts() -> None:
    shown, out, step = reporter()
    shown.news(Working("copies", 0, time.time()))
    assert not out.getvalue(), "most dataset steps take no time"
    shown.news(Working("copies", 1200, time.time() - 95))
    assert out.getvalue() == "copies          0/1,500  at work for 1:35, 1,200 parts done\n"
    shown.news(Working("copies", 1201, time.time() - 96))
    assert out.getvalue().count("\n") == 1, "a line every ten seconds"
    for shard, rows in ((0, 1000), (1, 500)):
        table = pa.table({"decision": ["kept"] * rows})
        shown.news(receipt_of(step, shard, table, began=time.time() - 100, seconds=1.0))
    assert out.getvalue().splitlines()[-1].startswith("copies          1,500/1,500  15/s")
    assert out.getvalue().endswith("done\n")


def test_the_live_table_counts_the_seconds() -> None:
    shown, out, _ = reporter(live=True)
    shown.news(Working("copies", 0, time.time() - 61))
    shown.close()
    assert "at work for 1:01" in out.getvalue()


def test_a_model_that_is_loaded_is_said_once() -> None:
    shown, out, _ = reporter()
    for _ in range(3):  # every worker tells of it
        shown.news(Loading("copies", time.time()))
    assert out.getvalue() == "copies          loading its model\n"
    live, out, _ = reporter(live=True)
    live.news(Loading("copies", time.time()))
    live.news(Partial("copies", 0, 10, 1.0, time.time()))
    live.close()
    last = out.getvalue().rpartition("copies")[2]
    assert "left" in last and "loading" not in last, "no more when there is a rate"


def test_what_is_told_of_a_run_agrees_with_its_numbers_and_tells_of_all_reasons() -> None:
    shown, out, _ = reporter(width=200)
    outcome = {"kept": 0, "dropped": 1, "duplicate": 0, "failed": 0}
    reasons = [{"step": "keep", "decision": "dropped", "reason": f"x > {n} is false", "images": 1} for n in range(7)]
    shown.finished({"images": 1, "outcome": outcome, "reasons": reasons, "exports": []}, "runs/one")
    told = out.getvalue()
    assert told.startswith("1 image = 0 kept + 1 dropped")
    assert told.count("is false") == 5 and "… and 2 more reasons, all in runs/one/summary.json" in told

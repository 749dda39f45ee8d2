"""How a run looks in a terminal: one live line per step, or plain lines where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from labelmill.operators.wording import counted
from labelmill.pipelines.engine.placement import Phase
from labelmill.pipelines.engine.receipts import Loading, News, Partial, Receipt, Working
from labelmill.pipelines.run_folder.arrived import arrived_line
from labelmill.pipelines.run_folder.intake import Intake
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.steps import Step

PLAIN_SECONDS = 10.0
"""How often a plain line is printed for a step that is under way."""

REASONS = 5
"""Reasons that are printed at the end; `summary.json` has all."""


@dataclass
class _Line:
    name: str
    total: int
    done: int = 0
    failed: int = 0
    undone: int = 0
    computed: int = 0
    shards: set[int] = field(default_factory=set)
    under_way: dict[int, int] = field(default_factory=dict)
    started: float | None = None
    last: float = 0.0
    printed: float = 0.0
    working: Working | None = None
    loading: float | None = None

    @property
    def so_far(self) -> int:
        """Images done, those of unfinished shards included."""
        return self.done + sum(self.under_way.values())

    @property
    def rate(self) -> float:
        """Images per second since the step began; 0 where nothing was computed."""
        if self.started is None or self.last <= self.started:
            return 0.0
        return (self.computed + sum(self.under_way.values())) / (self.last - self.started)

    def cells(self) -> list[str]:
        width = 12
        done = self.so_far
        part = done / self.total if self.total else 1.0
        bar = "━" * round(width * part) + "╌" * (width - round(width * part))
        left = (self.total - done) / self.rate if self.rate else 0.0
        eta = "done" if self.done >= self.total else f"{_duration(left)} left" if self.rate else self._at_work()
        parts = [f"[red]{self.failed:,} failed[/]"] if self.failed else []
        parts += [f"[yellow]{self.undone:,} undone[/]"] if self.undone else []
        failed = " ".join(parts)
        rate = f"{self.rate:,.0f}/s" if self.rate >= 10 else f"{self.rate:.1f}/s" if self.rate else ""
        return [escape(self.name), bar, f"{done:,}/{self.total:,}", rate, failed, eta]

    def _at_work(self) -> str:
        """What is done before there is a rate: a model is loaded, or for how long a dataset step has been at work."""
        if self.loading is not None:
            return "loading its model"
        if self.working is None:
            return ""
        parts = f", {counted(self.working.parts, 'part')} done" if self.working.parts else ""
        return f"at work for {_duration(time.time() - self.working.began)}{parts}"

    def take(self, receipt: Receipt) -> None:
        """Count a finished shard."""
        self.shards.add(receipt.shard)
        self.under_way.pop(receipt.shard, None)
        self.done += receipt.images
        self.failed += receipt.failed
        self.undone += receipt.undone
        if receipt.computed:
            self.computed += receipt.images
            self.started = receipt.began if self.started is None else min(self.started, receipt.began)
            self.last = max(self.last, receipt.at)


class TerminalReporter:
    """Prints how a run goes."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._lines: dict[str, _Line] = {}
        self._live: Live | None = None
        self._lock = threading.Lock()

    def source_read(self, intake: Intake) -> None:
        parts = [f"{counted(intake.images, 'image')} in {counted(len(intake.shards), 'shard')}"]
        if intake.added and intake.added != intake.images:
            parts.append(f"{intake.added:,} new")
        self.console.print(f"source  {', '.join(parts)}")
        if intake.ignored:
            counts = sorted(intake.ignored.items(), key=lambda item: (-item[1], item[0]))
            kinds = ", ".join(f"{number:,} {suffix or 'without a suffix'}" for suffix, number in counts[:5])
            self.console.print(f"        passed over files that are no images: {escape(kinds)}", soft_wrap=True)
        for sentence in intake.missing:
            self.console.print(f"[yellow]warning[/] {escape(sentence)}", soft_wrap=True)
        if intake.problems:
            self._warn(
                f"{counted(len(intake.problems), 'entry of the source has', 'entries of the source have')} a problem",
                intake.problems,
            )
        if intake.changed:
            changed = counted(len(intake.changed), "image has", "images have")
            self._warn(f"{changed} changed: done again", intake.changed)
        if intake.relabelled:
            self._warn(
                f"of {counted(len(intake.relabelled), 'image')} the source says something else (labels, split, "
                "metadata): taken over",
                intake.relabelled,
            )
        if intake.gone:
            new = f", {intake.left:,} of them since the last run" if 0 < intake.left < len(intake.gone) else ""
            gone = counted(len(intake.gone), "image is", "images are")
            self._warn(f"{gone} gone from the source{new}: left out; no image_id is given again", intake.gone)
        if intake.returned:
            self.console.print(f"        {counted(intake.returned, 'image is', 'images are')} back")

    def _warn(self, text: str, examples: list[str]) -> None:
        self.console.print(f"[yellow]warning[/] {escape(text)}")
        for example in examples[:3]:
            self.console.print(f"  {escape(example)}", overflow="fold")
        if len(examples) > 3:
            self.console.print(f"  … and {len(examples) - 3:,} more")

    def planned(self, layout: Layout, done: dict[int, set[int]], shards: dict[int, int]) -> None:
        total = sum(shards.values())
        for step in layout.steps:
            finished = done[step.position]
            line = _Line(step.name, total, sum(shards[shard] for shard in finished), shards=set(finished))
            self._lines[step.name] = line
        if all(line.done >= line.total for line in self._lines.values()):
            if self._lines:
                self.console.print("every step is done for every shard; nothing to compute")
            return
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=4)
            self._live.start()

    def placed(self, steps: Sequence[Step], phases: Sequence[Phase]) -> None:
        if len(phases) > 1:
            self.note(f"the models do not fit side by side: {len(phases)} phases, one after the other")

    def note(self, text: str) -> None:
        self.console.print(escape(text))

    def news(self, news: News) -> None:
        with self._lock:
            line = self._lines[news.step]
            if isinstance(news, Loading):
                if self._live is None and line.loading is None:
                    self.console.print(f"{news.step:<14}  loading its model")
                line.loading = news.began
                return
            if isinstance(news, Working):
                line.working = news
                if not news.parts:  # most dataset steps are done before a plain line about them would help
                    return
            elif news.shard in line.shards:
                return
            elif isinstance(news, Partial):
                line.under_way[news.shard] = news.images
                line.last = max(line.last, news.at)
                began = news.at - news.seconds
                line.started = began if line.started is None else min(line.started, began)
            else:
                line.take(news)
            finished = line.done >= line.total
            if self._live is None and (finished or time.time() - line.printed > PLAIN_SECONDS):
                line.printed = time.time()
                name, _, count, rate, failed, eta = line.cells()
                self.console.print("  ".join(part for part in (f"{name:<14}", count, rate, failed, eta) if part))

    def _table(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        for justify in ("left", "left", "right", "right", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
        with self._lock:
            for line in self._lines.values():
                table.add_row(*line.cells())
        return table

    def close(self) -> None:
        """Leave the last state of the lines on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def finished(self, summary: dict[str, Any], address: str) -> None:
        """Say what came out and where it is."""
        self.console.print(outcome_line(summary["images"], summary["outcome"]))
        for reason in summary["reasons"][:REASONS]:
            text = f"  {reason['images']:,} {reason['decision']} by {reason['step']}: {reason['reason']}"
            self.console.print(escape(text), overflow="ellipsis", no_wrap=True)
        if len(summary["reasons"]) > REASONS:
            more = counted(len(summary["reasons"]) - REASONS, "more reason")
            self.console.print(f"  … and {more}, all in {escape(address)}/summary.json", soft_wrap=True)
        rows = [("run", address)]
        if "report" in summary:
            rows.append(("report", f"{address}/report.html"))
        if summary["outcome"]["failed"]:
            rows += [("failed", f"{address}/quarantine.parquet"), ("why", "labelmill explain KEY")]
        if (told := arrived_line(summary.get("labels", {}), address)) is not None:
            rows.append(("labels", told))
        for export in summary["exports"]:
            rows.append((export["export"], export["path"]))
        for name, path in rows:
            self.console.print(f"{name:<8}{escape(path)}", soft_wrap=True)
        for export in summary["exports"]:
            images = sum(export.get("images", {}).values())
            labels = sum(export.get("annotations", {}).values())
            skipped = sum(export.get("skipped", {}).values())
            left_out = f", {skipped:,} left out as unwritable" if skipped else ""
            for state, count in export.get("left_out", {}).items():
                left_out += f"; {counted(count, 'image')} left out: {LEFT_OUT[state]}"
            self.console.print(f"{export['export']}: {counted(images, 'image')}, {counted(labels, 'label')}{left_out}")


LEFT_OUT = {"unread": "nobody looked at them (unread: background)", "refused": "refused labels (refused: rest)"}
"""Why an export left images out, and the parameter that takes them."""


def outcome_line(images: int, outcome: dict[str, int]) -> str:
    """``5,000 images = 4,210 kept + 700 dropped + 88 duplicate + 2 failed``."""
    kinds = ["kept", "dropped", "duplicate", "failed"] + [kind for kind in ("undone", "gone") if outcome.get(kind)]
    parts = " + ".join(f"{outcome[kind]:,} {kind}" for kind in kinds)
    return f"{counted(images, 'image')} = {parts}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

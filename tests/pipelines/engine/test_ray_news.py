"""What workers tell, how often, and when a run counts as one that stands still."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine import ray_news
from labelmill.pipelines.engine.ray_news import Line, Teller, Watch
from labelmill.pipelines.engine.receipts import Partial, Receipt
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run import Options, run
from tests.drawing import folder_of_images
from tests.toys import logged


class Mailbox(Line):
    """What was sent, message by message."""

    def __init__(self) -> None:
        self.messages: list[tuple[list[Any], bool]] = []
        self._kept = ray_news._Collector()

    def begin(self, work: Any) -> int:
        return self._kept.begin(work)

    def add(self, news: list[Any], busy: bool, ended: Any) -> None:
        self._kept.add(news, busy, ended)
        self.messages.append((news, busy))


def partial(shard: int, images: int, step: str = "detect") -> Partial:
    return Partial(step, shard, images, 1.0, 0.0)


def receipt(shard: int) -> Receipt:
    return Receipt("detect", shard, 4, 4, 4, 0, 0, 0)


def test_a_shard_is_one_message_and_of_how_far_it_was_the_last_word_counts() -> None:
    sent = Mailbox()
    teller = Teller(sent, seconds=60)
    with teller.at_work():
        for images in range(1, 100):
            teller.tell(partial(7, images))
            teller.tell(partial(7, images, "embed"))
        teller.tell(receipt(7))
    assert [news for news, _ in sent.messages] == [[partial(7, 99), partial(7, 99, "embed"), receipt(7)]]
    with teller.at_work():
        pass
    assert sent.messages[1][0] == [], "nothing is told twice"


def test_a_worker_that_computes_differs_from_one_that_waits() -> None:
    sent = Mailbox()
    teller = Teller(sent, seconds=0.2)
    with teller.at_work():
        time.sleep(1)
    waiting, sent.messages = sent.messages, []
    with teller.at_work():
        began = time.process_time()
        while time.process_time() - began < 1:
            pass
    assert len(waiting) > 2 and not any(busy for _, busy in waiting)
    assert sum(busy for _, busy in sent.messages) > 2
    sent.messages = []
    with teller.at_work(waits=True):
        time.sleep(0.5)
    assert any(busy for _, busy in sent.messages)


def test_work_that_was_begun_and_not_ended_is_counted() -> None:
    line = Mailbox()
    assert [line.begin(((0, 1), 7)) for _ in range(2)] == [1, 2], "two workers died on it"
    with Teller(line, 60).at_work(((0, 1), 7)) as times:
        assert times == 3
    with Teller(line, 60).at_work(((0, 1), 7)) as times:
        assert times == 1, "one has ended it"
    with Teller(line, 60).at_work(((0, 1), 8)) as times:
        assert times == 1


@pytest.mark.parametrize(
    ("workers", "seconds"), [(1, 1.0), (100, 1.0), (1_000, 10.0), (12_800, 120.0), (100_000, 120.0)]
)
def test_messages_do_not_grow_with_the_workers(workers: int, seconds: float) -> None:
    watch = Watch(None, workers)
    assert watch.seconds == seconds
    assert workers / watch.seconds <= 100 or seconds == ray_news.LONGEST_SECONDS
    assert seconds < ray_news.SILENT_SECONDS


def test_when_a_run_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(ray_news.time, "monotonic", lambda: now)
    watch = Watch(None, 1)
    now = 599.0
    watch.check()
    now = 601.0
    with pytest.raises(UserError, match=r"no worker has started for 10 min.*`ray status`.*fewer --workers.*is kept"):
        watch.check()
    watch.take(heard=True, moved=False)
    watch.check()
    now = 1300.0
    with pytest.raises(UserError, match=r"no worker has reported anything for 10 min: all have died.*`ray status`"):
        watch.check()
    while now < 601.0 + 3600:
        watch.take(heard=True, moved=False)
        watch.check()
        now += 100
    watch.take(heard=True, moved=False)
    with pytest.raises(UserError, match=r"no worker has done an image or computed anything for 60 min, though they"):
        watch.check()
    watch.take(heard=True, moved=True)
    watch.check()
    now = 1e6
    watch.blind = True
    watch.check()


def go(*steps: dict[str, Any]) -> list[int]:
    """Run `Slow` steps on one worker over a shard of six images; what they logged."""
    folder_of_images(Path("data"), 6)
    log = Path("seen.log").absolute()
    told = [
        {"tests.toys:Slow": {"log": str(log), "memory_gb": 0.1, **step}, "as": f"slow{number}"}
        for number, step in enumerate(steps)
    ]
    document = {"name": "slow", "source": {"folder": "data"}, "output": "run", "shard_size": 6, "steps": told}
    Path("p.yaml").write_text(yaml.safe_dump(document))
    summary = run(load_pipeline("p.yaml"), Options(workers=1, ray=True), TerminalReporter())
    assert summary["outcome"]["kept"] == 6
    return logged(log)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds within which a worker starts even on a busy machine, and tells what it does."""
    monkeypatch.setattr(ray_news, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(ray_news, "STILL_SECONDS", 10.0)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_slow_operator_goes_on_for_longer_than_any_bound() -> None:
    """Its only shard takes 18 s, and the run may stand still for ten."""
    assert go({"sleep": 3.0}) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_an_operator_that_waits_for_nothing_is_stopped_with_a_sentence() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="no worker has done an image or computed anything for 10 s, though they live"):
        go({"sleep": 1e5})
    assert time.monotonic() - began < 60
    assert not list(Path("run").glob("steps/*/*.parquet"))


@pytest.mark.slow
def test_workers_that_a_cluster_never_starts_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others took the cluster's only CPU when the plan was made: Ray waits for it without an end and without a word."""
    import ray

    from labelmill.pipelines.engine import ray_session

    monkeypatch.setattr(ray_news, "SILENT_SECONDS", 5.0)
    session = ray_session.ray_session

    def taken(*arguments: Any) -> Any:
        with session(*arguments):
            blocker = ray.remote(num_cpus=1)(Mailbox).remote()
            ray.get(blocker.__ray_ready__.remote())
            monkeypatch.setattr("ray._private.state.available_resources_per_node", dict)
            yield
            del blocker

    from contextlib import contextmanager

    monkeypatch.setattr(ray_session, "ray_session", contextmanager(taken))
    with pytest.raises(UserError, match="no worker has started for 5 s: the cluster does not give them the CPUs"):
        go({})

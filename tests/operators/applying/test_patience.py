from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labelmill.operators.applying import patience
from labelmill.operators.applying.apply import Job, apply, apply_together
from labelmill.operators.applying.patience import FIRST_IMAGES, LAST_IMAGES, Limits, Patience, StopError, Watch
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import ImageOperator, OperatorParams
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage, decode
from labelmill.operators.moment import MomentError, kind_of
from labelmill.pipelines.sources import Fetcher
from tests.drawing import encode, noise
from tests.toys import Brightness

COUNT = 40
FILES = {f"mem/{index}": encode(noise(index, 16, 8), "PNG") for index in range(COUNT)}
ROWS = pa.table({"image_id": pa.array(range(1, COUNT + 1), pa.int64()), "key": list(FILES)})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were made; none of them takes any time, but the clock goes on by them."""
    pauses: list[float] = []
    lock = threading.Lock()
    real = time.monotonic

    def sleep(seconds: float) -> None:
        with lock:
            if seconds:
                pauses.append(seconds)

    monkeypatch.setattr(patience.time, "sleep", sleep)
    monkeypatch.setattr(patience.time, "monotonic", lambda: real() + sum(pauses))
    return pauses


class Flaky(Brightness):
    """Brightness that raises, for a batch, what a function says."""

    problem: Callable[[list[int]], Exception | None]

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        error = self.problem([image_id for image_id, _ in items])
        if error is not None:
            raise error
        return super().infer(items)


def flaky(problem: Callable[[list[int]], Exception | None], batch: int = 4) -> Flaky:
    operator = Flaky(Flaky.Params(batch=batch))
    operator.problem = problem  # type: ignore[method-assign]
    return operator


def images(fetch: Callable[[str], bytes] = FILES.__getitem__) -> ShardImages:
    return ShardImages(list(FILES), fetch)


def run(worker: Worker, given: ShardImages | None = None) -> pa.Table:
    return apply(Job(worker, ROWS, np.ones(COUNT, dtype=bool)), given or images())[0]


def decisions(table: pa.Table) -> Counter[str]:
    return Counter(table.column("decision").to_pylist())


UNDISTURBED = run(Worker(Brightness(Brightness.Params())))


# ---------------------------------------------------------------- images that cannot be had


def test_a_source_that_is_away_for_a_while_is_waited_for(clock: list[float]) -> None:
    left = Counter(dict.fromkeys(list(FILES)[5:9], 3))

    def fetch(uri: str) -> bytes:
        left[uri] -= 1
        if left[uri] >= 0:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return FILES[uri]

    table = run(Worker(Brightness(Brightness.Params())), images(fetch))
    assert table.equals(UNDISTURBED)
    assert len(clock) == 12


def test_one_that_stays_away_is_undone_within_bounds_and_the_others_are_done(clock: list[float]) -> None:
    def fetch(uri: str) -> bytes:
        if uri == "mem/7":
            raise RowError("no") from TimeoutError("too slow")
        if uri == "mem/9":
            raise RowError("the file is gone") from FileNotFoundError(uri)
        return FILES[uri]

    table = run(Worker(Brightness(Brightness.Params())), images(fetch))
    assert [row["image_id"] for row in table.to_pylist() if row["decision"] == "undone"] == [8]
    assert [row["image_id"] for row in table.to_pylist() if row["decision"] == "failed"] == [10]
    assert table.column("brightness")[7].as_py() is None
    assert 30 < sum(clock) <= 90
    assert all(later > earlier for earlier, later in zip(clock[:5:2], clock[1:6:2], strict=False))


def test_many_that_stay_away_are_not_each_waited_for(clock: list[float]) -> None:
    """A budget for all of them: what is spent is about twice what one may cost."""
    worker = Worker(Brightness(Brightness.Params()), Patience(Limits(seconds=20, keep_going=True)))

    def fetch(uri: str) -> bytes:
        if int(uri.removeprefix("mem/")) % 2:
            raise TimeoutError
        return FILES[uri]

    table = apply(Job(worker, ROWS, np.ones(COUNT, dtype=bool)), images(fetch), threads=1)[0]
    assert decisions(table) == {"undone": 20, "kept": 20}
    assert sum(clock) <= 60
    np.testing.assert_array_equal(table.column("brightness")[0].as_py(), UNDISTURBED.column("brightness")[0].as_py())


def test_a_server_says_when_to_come_back(clock: list[float]) -> None:
    answers = iter([MomentError("busy", retry_after=7.0)])

    def fetch(uri: str) -> bytes:
        if uri == "mem/3":
            for error in answers:
                raise error
        return FILES[uri]

    assert run(Worker(Brightness(Brightness.Params())), images(fetch)).equals(UNDISTURBED)
    (pause,) = clock
    assert 7 <= pause < 8


def test_a_server_that_wants_an_hour_is_not_waited_for(clock: list[float]) -> None:
    def fetch(uri: str) -> bytes:
        if uri == "mem/3":
            raise MomentError("busy", retry_after=3600.0)
        return FILES[uri]

    assert decisions(run(Worker(Brightness(Brightness.Params())), images(fetch))) == {"kept": COUNT - 1, "undone": 1}
    assert clock == []


def test_without_patience_nothing_is_waited_for(clock: list[float]) -> None:
    def fetch(uri: str) -> bytes:
        raise TimeoutError

    worker = Worker(Brightness(Brightness.Params()), Patience(Limits(seconds=0, keep_going=True)))
    assert decisions(run(worker, images(fetch))) == {"undone": COUNT}
    assert clock == []


def test_pauses_differ_by_chance(clock: list[float]) -> None:
    for _ in range(20):
        with pytest.raises(TimeoutError):
            Patience(Limits(seconds=1)).again(_times_out, TimeoutError())
    assert len({round(pause, 6) for pause in clock}) > 15


def _times_out() -> None:
    raise TimeoutError


# ---------------------------------------------------------------- memory


def test_a_picture_that_lacks_memory_is_tried_alone_and_with_what_could_be_given_back(clock: list[float]) -> None:
    at_work, most, tries = 0, [], Counter[str]()
    lock = threading.Lock()
    shard: ShardImages

    def fetch(uri: str) -> bytes:
        nonlocal at_work
        with lock:
            at_work += 1
            tries[uri] += 1
            retried = uri == "mem/20" and tries[uri] > 1
        try:
            threading.Event().wait(0.003)
            if retried:
                most.append(at_work)
                assert not shard._kept
            if uri == "mem/20" and tries[uri] < 3:
                raise MemoryError
            return FILES[uri]
        finally:
            with lock:
                at_work -= 1

    shard = images(fetch)
    job = Job(Worker(Brightness(Brightness.Params())), ROWS, np.ones(COUNT, dtype=bool))
    table = apply(job, shard, threads=4)[0]
    assert table.equals(UNDISTURBED)
    assert most == [1, 1]


def test_a_picture_that_never_fits_is_undone_and_its_neighbours_are_not(clock: list[float]) -> None:
    def problem(ids: list[int]) -> Exception | None:
        return MemoryError() if 5 in ids else None

    worker = Worker(flaky(problem, batch=8))
    table = run(worker)
    assert [row["image_id"] for row in table.to_pylist() if row["decision"] == "undone"] == [5]
    assert sum(clock) < 1
    assert worker.watch.reason is None


def test_too_few_descriptors_are_waited_for(tmp_path: Path) -> None:
    """For real: every descriptor that this process may have is taken, and given back after a while."""
    import resource

    for uri, data in FILES.items():
        (tmp_path / uri.rpartition("/")[2]).write_bytes(data)
    uris = [str(tmp_path / uri.rpartition("/")[2]) for uri in FILES]
    shard = ShardImages(uris, Fetcher())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    worker = Worker(Brightness(Brightness.Params()), Patience(Limits(seconds=30)))
    job = Job(worker, ROWS, np.ones(COUNT, dtype=bool))

    def give_back() -> None:
        while taken:
            os.close(taken.pop())

    later = threading.Timer(0.8, give_back)
    decode(FILES["mem/0"])  # what decoding imports is imported
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(RowError) as error:
            shard.get(0)
        assert kind_of(error.value) == "machine"
        later.start()
        table, _ = apply(job, shard)
    finally:
        later.join()
        give_back()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert table.column("brightness").equals(UNDISTURBED.column("brightness"))
    assert decisions(table) == {"kept": COUNT}


# ---------------------------------------------------------------- a model that cannot be had


def test_a_model_that_is_away_for_a_while_is_waited_for(clock: list[float]) -> None:
    calls: list[list[int]] = []

    def problem(ids: list[int]) -> Exception | None:
        calls.append(ids)
        return ConnectionRefusedError() if 3 <= len(calls) <= 6 else None

    table = run(Worker(flaky(problem)))
    assert table.equals(UNDISTURBED)
    assert calls[2] == calls[3] == calls[4] == calls[5] == calls[6], "a batch is not split for what passes"


def test_the_image_that_makes_a_call_fail_for_the_moment_is_found(clock: list[float]) -> None:
    def problem(ids: list[int]) -> Exception | None:
        return TimeoutError("too slow") if 11 in ids else None

    table = run(Worker(flaky(problem, batch=8), Patience(Limits(seconds=3))))
    assert [row["image_id"] for row in table.to_pylist() if row["decision"] == "undone"] == [11]


def test_a_dead_model_is_not_asked_about_every_image(clock: list[float]) -> None:
    calls: list[list[int]] = []

    def problem(ids: list[int]) -> Exception | None:
        calls.append(ids)
        return ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    worker = Worker(flaky(problem, batch=16), Patience(Limits(seconds=10)))
    table = run(worker)
    assert decisions(table) == {"undone": COUNT}
    assert worker.watch.reason is not None and "refused" in worker.watch.reason
    assert sum(clock) <= 20 + 1
    assert "not tried" in table.column("decision.reason")[COUNT - 1].as_py()
    before = len(calls)
    assert decisions(run(worker)) == {"undone": COUNT}
    assert len(calls) == before, "it stays stopped"


def test_what_stops_a_step_is_no_row(clock: list[float]) -> None:
    with pytest.raises(StopError, match="the key is refused"):
        run(Worker(flaky(lambda ids: StopError("the key is refused"))))


def test_a_lost_gpu_is_no_row_in_threads_either() -> None:
    class Lost(Brightness):
        def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> tuple[int, np.ndarray]:
            raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        run(Worker(Lost(Brightness.Params())))


def test_a_stopped_step_does_not_stop_the_one_beside_it(clock: list[float]) -> None:
    dead = Worker(flaky(lambda ids: ConnectionRefusedError()), Patience(Limits(seconds=1)))
    well = Worker(Brightness(Brightness.Params()))
    active = np.ones(COUNT, dtype=bool)
    (first, _), (second, _) = apply_together([Job(dead, ROWS, active), Job(well, ROWS, active)], images())
    assert decisions(first) == {"undone": COUNT}
    assert second.equals(UNDISTURBED)


class Letters(ImageOperator):
    """Gives one error for each of two images of a batch, as an endpoint does."""

    def __init__(self, fails: Iterator[bool]) -> None:
        super().__init__(OperatorParams())
        self.fails, self.asked = fails, Counter[int]()

    def writes(self) -> pa.Schema:
        return pa.schema([("number", pa.int64())])

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> int:
        return int(row["image_id"])

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        self.asked.update(items)
        away = next(self.fails)
        return [MomentError("busy") if away and item in (4, 7) else {"number": item} for item in items]


def test_only_those_that_failed_are_asked_again(clock: list[float]) -> None:
    operator = Letters(iter([True, True, True, False, *[False] * COUNT]))
    table = run(Worker(operator))
    assert table.column("number").to_pylist() == list(range(1, COUNT + 1))
    assert operator.asked == {number: 4 if number in (4, 7) else 1 for number in range(1, COUNT + 1)}


# ---------------------------------------------------------------- when to stop


def test_a_step_whose_first_images_fail_is_stopped() -> None:
    watch = Watch()
    for number in range(FIRST_IMAGES):
        assert watch.reason is None
        watch.note(number % 4 != 0, "no route to host")
    assert watch.reason is not None and "24 of its latest 32 images" in watch.reason
    assert "no route to host" in watch.reason


@pytest.mark.parametrize("share", [0.02, 0.2, 0.35])
def test_a_few_that_fail_do_not_stop_a_large_run(share: float) -> None:
    watch = Watch()
    for undone in np.random.default_rng(1).random(100_000) < share:
        watch.note(bool(undone))
    assert watch.reason is None


def test_forty_in_a_row_do_not_stop_a_large_run_either() -> None:
    watch = Watch()
    for number in range(10_000):
        watch.note(number % 1000 >= 960)
    assert watch.reason is None


def test_what_dies_in_the_middle_of_a_run_is_seen() -> None:
    watch = Watch()
    for _ in range(10_000):
        watch.note(False)
    for number in range(LAST_IMAGES):
        watch.note(True, "dead")
        if watch.reason is not None:
            assert number == LAST_IMAGES // 2
            return
    raise AssertionError("a dead endpoint was not seen")


def test_a_server_that_hangs_is_seen_before_it_has_hung_for_every_image(clock: list[float]) -> None:
    watch = Watch()
    for number in range(8):
        assert watch.reason is None
        clock.append(60.0)
        watch.note(True, "timed out")
        assert number < 8
    assert watch.reason is not None


def test_a_worker_that_had_nothing_to_do_for_long_is_not_in_an_outage(clock: list[float]) -> None:
    watch = Watch()
    for _ in range(20):
        watch.note(False)
    clock.append(3600.0)
    for _ in range(10):
        watch.note(True)
    assert watch.reason is None


def test_whoever_wants_to_goes_on() -> None:
    watch = Watch(Limits(keep_going=True))
    for _ in range(1000):
        watch.note(True)
    assert watch.reason is None

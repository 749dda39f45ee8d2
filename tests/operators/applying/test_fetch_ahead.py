from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from labelmill.operators.applying.fetch_ahead import FetchAhead


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


class Far:
    """Answers when it is let, and counts."""

    def __init__(self, size: int = 10) -> None:
        self.asked: Counter[str] = Counter()
        self.open = threading.Event()
        self.size = size

    def __call__(self, uri: str) -> bytes:
        self.asked[uri] += 1
        assert self.open.wait(10)
        if uri == "gone":
            raise OSError("it is gone")
        return uri.encode().ljust(self.size)


def until(condition: object) -> None:
    for _ in range(500):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    pytest.fail("it did not come about")


def test_asks_for_the_next_rows_before_anyone_takes_them(pool: ThreadPoolExecutor) -> None:
    far = Far()
    ahead = FetchAhead(far, pool, under_way=5)
    ahead.expect((row, f"{row}") for row in range(20))
    until(lambda: far.asked.total() == 5)
    far.open.set()
    assert [ahead.take(row, f"{row}").strip() for row in range(20)] == [f"{row}".encode() for row in range(20)]
    assert set(far.asked.values()) == {1}
    assert len(far.asked) == 20


def test_never_holds_more_than_a_budget_of_answers(pool: ThreadPoolExecutor) -> None:
    far = Far(size=100)
    far.open.set()
    ahead = FetchAhead(far, pool, under_way=8, ahead_bytes=250)
    ahead.expect((row, f"{row}") for row in range(50))
    until(lambda: ahead._bytes == 8 * 100)  # all have come: one under way is not counted yet
    assert far.asked.total() == 8
    assert ahead.take(0, "0")
    time.sleep(0.05)
    assert far.asked.total() == 8  # seven answers of 100 bytes wait; the next is asked for when three are left
    for row in range(1, 6):
        ahead.take(row, f"{row}")
    until(lambda: far.asked.total() > 8)


def test_an_error_is_raised_to_whoever_takes_the_row_and_the_others_come(pool: ThreadPoolExecutor) -> None:
    far = Far()
    far.open.set()
    ahead = FetchAhead(far, pool, under_way=3)
    ahead.expect([(0, "a"), (1, "gone"), (2, "b"), (3, "c")])
    assert ahead.take(0, "a").strip() == b"a"
    with pytest.raises(OSError, match="it is gone"):
        ahead.take(1, "gone")
    with pytest.raises(OSError, match="it is gone"):
        ahead.take(1, "gone")  # asked again
    assert ahead.take(3, "c").strip() == b"c"
    assert ahead.take(2, "b").strip() == b"b"
    assert far.asked == {"a": 1, "gone": 2, "b": 1, "c": 1}


def test_rows_that_nobody_expected_are_fetched_on_the_spot(pool: ThreadPoolExecutor) -> None:
    far = Far()
    far.open.set()
    ahead = FetchAhead(far, pool, under_way=1)
    ahead.expect([(0, "a"), (1, "b")])
    assert ahead.take(1, "b").strip() == b"b"
    assert ahead.take(7, "h").strip() == b"h"
    assert ahead.take(0, "a").strip() == b"a"
    assert far.asked == {"a": 1, "b": 1, "h": 1}


def test_what_is_no_longer_expected_is_forgotten(pool: ThreadPoolExecutor) -> None:
    far = Far()
    ahead = FetchAhead(far, pool, under_way=2, ahead_bytes=15)
    ahead.expect([(0, "a"), (1, "b")])
    until(lambda: far.asked.total() == 2)
    ahead.expect([(0, "x"), (1, "y")])
    far.open.set()
    assert ahead.take(0, "x").strip() == b"x"
    assert ahead.take(1, "y").strip() == b"y"

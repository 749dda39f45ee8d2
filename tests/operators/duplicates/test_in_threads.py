"""`in_threads`: order, errors, and how many threads torch has in it and afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from labelmill.operators.duplicates.in_threads import in_threads


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_arguments() -> None:
    def late(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        return number * number

    assert list(in_threads(late, range(20), 4)) == [number * number for number in range(20)]
    assert not list(in_threads(late, [], 4))


@pytest.mark.parametrize(("most", "together"), [(4, 4), (2, 2), (100, 4)])
def test_as_many_at_once_as_torch_may_use(most: int, together: int) -> None:
    meeting = threading.Barrier(together, timeout=20)

    def meet(_: int) -> int:
        meeting.wait()
        return torch.get_num_threads()

    assert list(in_threads(meet, range(2 * together), most)) == [1] * 2 * together
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("most", [-1, 0, 1])
def test_one_at_a_time_has_all_threads_of_torch(most: int) -> None:
    assert (
        list(in_threads(lambda _: (threading.current_thread(), torch.get_num_threads()), range(2), most))
        == [(threading.current_thread(), 4)] * 2
    )


@pytest.mark.parametrize("most", [1, 4])
def test_an_error_is_raised_and_what_has_not_begun_is_not_begun(most: int) -> None:
    begun = []

    def fail(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)
        if number == 2:
            raise RuntimeError("three")

    with pytest.raises(RuntimeError, match="three"):
        list(in_threads(fail, range(1000), most))
    assert len(begun) < 100
    assert torch.get_num_threads() == 4

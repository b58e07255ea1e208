"""Workers take pieces from one queue, each with one of torch's threads: what comes out does not tell how many there were."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import pytest
import torch
from torch.overrides import TorchFunctionMode

from circuit_tracer.workers import Stopped, go_on, helped, in_order, others_are_idle, share, workers_on

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_a_new_thread(ask: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]


def workers_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("worker ")]


@pytest.mark.parametrize("n_workers", [1, 2, 3, 8])
def test_results_come_in_order(n_workers: int) -> None:
    def work(piece: int) -> int:
        time.sleep(0.001 * (7 - piece))  # the first take longest
        return piece * piece

    assert list(in_order(work, range(7), n_workers)) == [piece * piece for piece in range(7)]
    assert list(in_order(work, [], n_workers)) == []


def test_pieces_are_done_side_by_side() -> None:
    together = threading.Barrier(3, timeout=10)
    assert len(list(in_order(lambda _: together.wait(), range(3), 3))) == 3


def test_workers_have_one_thread_of_torch_and_others_keep_theirs() -> None:
    torch.set_num_threads(3)
    assert workers_on(CPU) == 3
    assert workers_on(torch.device("meta")) == 1

    def ask(_: int) -> tuple[int, int]:
        time.sleep(0.01)  # until all have begun, and the number is set again
        return torch.get_num_threads(), threading.get_ident()

    seen = list(in_order(ask, range(6), 3))
    assert {count for count, _ in seen} == {1}
    assert threading.get_ident() not in {thread for _, thread in seen}
    assert torch.get_num_threads() == 3
    assert in_a_new_thread(torch.get_num_threads) == 3
    assert list(in_order(lambda _: threading.get_ident(), range(2), 1)) == 2 * [threading.get_ident()]


def test_threads_that_work_side_by_side_keep_numbers_of_their_own() -> None:
    def user(count: int) -> list[int]:
        torch.set_num_threads(count)
        found = [torch.get_num_threads()]
        for _ in range(20):
            list(in_order(lambda piece: piece, range(2), 2))
            found.append(torch.get_num_threads())
        return found

    seen: dict[int, list[int]] = {}
    users = [threading.Thread(target=lambda count=count: seen.update({count: user(count)})) for count in (1, 2, 3)]
    for each in users:
        each.start()
    for each in users:
        each.join()
    assert seen == {count: [count] * 21 for count in (1, 2, 3)}


def test_what_holds_for_the_caller_holds_for_workers() -> None:
    asked: ContextVar[str] = ContextVar("asked", default="")
    asked.set("by the caller")

    def work(_: int) -> tuple[object, ...]:
        return torch.is_grad_enabled(), torch.get_default_device().type, torch.is_autocast_enabled("cpu"), asked.get()

    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert set(in_order(work, range(2), 2)) == {(gradients, "cpu", False, "by the caller")}


def test_what_watches_operations_sees_them() -> None:
    class Counting(TorchFunctionMode):
        count = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.count += func is torch.zeros
            return func(*args, **(kwargs or {}))

    with Counting() as counting:
        list(in_order(torch.zeros, range(3), 2))
    assert counting.count == 3


@pytest.mark.parametrize("n_workers", [1, 3])
def test_an_error_comes_in_its_turn_and_ends_the_work(n_workers: int) -> None:
    begun = []

    def work(piece: int) -> int:
        begun.append(piece)
        if piece == 2:
            raise MemoryError("piece 2")
        time.sleep(0.01 if piece < 2 else 0)
        return piece

    results = in_order(work, range(50), n_workers)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(MemoryError, match="piece 2"):
        next(results)
    assert len(begun) < 50
    assert not workers_left()


def test_who_ends_early_waits_for_pieces_and_they_are_told() -> None:
    begun, ended = [], []

    def work(piece: int) -> int:
        begun.append(piece)
        while piece:
            try:
                go_on()
            except Stopped:
                ended.append(piece)
                raise
            time.sleep(0.001)
        return piece

    results = in_order(work, range(9), 3)
    assert next(results) == 0
    results.close()
    assert {0, *ended} == set(begun)
    assert len(begun) < 9
    assert not workers_left()
    go_on()  # nothing where nobody waits


@pytest.mark.parametrize("share_out", [lambda work, parts: share(work, parts)(), helped], ids=["share", "helped"])
def test_idle_workers_help(share_out: Callable[[Callable[[int], None], range], None]) -> None:
    helpers: set[str] = set()

    def part(_: int) -> None:
        helpers.add(threading.current_thread().name)
        together.wait()

    def work(_: int) -> int:
        while not others_are_idle():
            time.sleep(0.001)
        share_out(part, range(3))
        return len(helpers)

    together = threading.Barrier(3, timeout=10)
    assert list(in_order(work, [0], 3)) == [3]
    assert not others_are_idle()


def test_outside_a_piece_nobody_helps() -> None:
    done: list[tuple[int, str]] = []
    helped(lambda part: done.append((part, threading.current_thread().name)), range(3))
    assert done == [(part, threading.current_thread().name) for part in range(3)]


def test_an_error_of_a_helper_is_that_of_the_piece() -> None:
    def part(number: int) -> None:
        if number == 1:
            raise MemoryError("a part")

    with pytest.raises(MemoryError, match="a part"):
        list(in_order(lambda _: share(part, range(3))(), [0], 2))

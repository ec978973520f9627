"""Threads share a budget of bytes: never above it, except one alone; nobody is passed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xai_cli.engine.memory import Budget

PATIENCE = 5


class Holder(threading.Thread):
    """A thread that holds an amount from the moment it gets it until it is told to let go."""

    def __init__(self, budget: Budget, amount: int) -> None:
        super().__init__(daemon=True)
        self.budget, self.amount = budget, amount
        self.got, self.let_go = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.budget.hold(self.amount):
            self.got.set()
            self.let_go.wait(PATIENCE)

    def waits(self) -> bool:
        return not self.got.wait(0.02)

    def holds(self) -> bool:
        return self.got.wait(PATIENCE)

    def end(self) -> None:
        self.let_go.set()
        self.join(PATIENCE)


@contextmanager
def holding(budget: Budget, amount: int) -> Iterator[Holder]:
    holder = Holder(budget, amount)
    try:
        yield holder
    finally:
        holder.end()


def test_the_budget_is_used_up_and_never_passed() -> None:
    budget, lock, held, most = Budget(100), threading.Lock(), [0], [0]
    amounts = random.Random(0)

    def work(own: list[int]) -> None:
        for amount in own:
            with budget.hold(amount):
                with lock:
                    held[0] += amount
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= amount

    threads = [threading.Thread(target=work, args=(amounts.choices(range(101), k=60),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert held == [0]
    assert most[0] <= 100
    with budget.hold(50), budget.hold(50):
        third = Holder(budget, 1)
        assert third.waits()
    assert third.holds()
    third.end()


def test_one_that_is_larger_than_all_holds_alone() -> None:
    budget = Budget(100)
    with holding(budget, 1) as small:
        assert small.holds()
        with holding(budget, 1000) as large:
            assert large.waits()
            small.end()
            assert large.holds()
            with holding(budget, 1) as next_one:
                assert next_one.waits()
                large.end()
                assert next_one.holds()


def test_a_small_one_does_not_pass_a_large_one_that_came_first() -> None:
    budget = Budget(100)
    with holding(budget, 60) as first, holding(budget, 80) as large:
        assert large.waits()
        with holding(budget, 30) as small:
            assert small.waits()
            first.end()
            assert large.holds()
            assert small.waits()
            large.end()
            assert small.holds()


def test_what_a_failure_held_is_free_again() -> None:
    budget = Budget(100)
    with pytest.raises(ZeroDivisionError), budget.hold(100):
        raise ZeroDivisionError
    with budget.hold(100):
        pass

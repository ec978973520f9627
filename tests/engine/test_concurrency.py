from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from xai_cli.engine.concurrency import in_order


def test_keeps_the_order_of_the_items_whoever_is_done_first():
    def work(number):
        time.sleep(0.01 if number % 2 == 0 else 0)
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(in_order(pool, work, range(20), ahead=6)) == list(range(20))


def test_draws_no_more_than_it_may_from_an_endless_source():
    drawn = itertools.count()
    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, abs, drawn, ahead=5)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        results.close()
    assert next(drawn) == 7


def test_works_in_other_threads():
    with ThreadPoolExecutor(1) as pool:
        assert next(in_order(pool, lambda _: threading.get_ident(), [0], ahead=1)) != threading.get_ident()


def test_hands_on_what_the_work_raises():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(in_order(pool, lambda x: 1 / x, [0], ahead=1))


def test_gives_what_was_begun_before_the_source_failed():
    def source():
        yield from (1, 2, 3)
        raise OSError("the list ends here")

    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, abs, source(), ahead=9)
        assert [next(results) for _ in range(3)] == [1, 2, 3]
        with pytest.raises(OSError, match="the list ends here"):
            next(results)

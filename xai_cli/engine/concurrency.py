"""Work in threads, results in order, and never more of either than the memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    prompt: bool = False,
) -> Generator[Result, None, None]:
    """`work(item)` for each item, in the order of the items, at most `ahead` of them begun and not yet taken.

    Items are drawn only as results are taken, so an endless source costs no memory. When the source itself fails, what
    was begun before is still given, then the failure is raised. With `prompt` a result is given as soon as it is there,
    else only when as many are begun as may be: that keeps the threads busy while results are worked on.
    """
    pending: deque[Future[Result]] = deque()
    source = iter(items)
    failure: BaseException | None = None
    try:
        while failure is None:
            try:
                pending.append(pool.submit(work, next(source)))
            except StopIteration:
                break
            except BaseException as error:  # noqa: BLE001  # raised again below
                failure = error
            while pending and (len(pending) >= ahead or (prompt and pending[0].done())):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
    if failure is not None:
        raise failure

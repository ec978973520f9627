"""A budget of bytes that threads share, so that memory depends neither on the pictures' sizes nor on their number."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_M_ARENA_MAX = -8  # of glibc's malloc.h


class Budget:
    """At most `total` bytes are held at a time, except that one holder alone may have as many as it needs."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Waits until `amount` bytes are free, and holds them inside the block."""
        # First come, first served: small pictures would otherwise pass a large one for ever.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= self._total)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


def share_one_heap() -> None:
    """Keeps glibc from giving each thread a heap of its own, in which 50 MB stay that large pictures have left free.

    To be called before threads are started. Other C libraries have one heap anyway.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)

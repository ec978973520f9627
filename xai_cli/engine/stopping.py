"""How a run ends before its time: what is begun is finished and noted, nothing more is begun."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")

_PATIENCE = 2.0  # seconds


class Interrupted(BaseException):
    """A signal asked for the end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """Listens for SIGINT, SIGTERM and SIGHUP while it is open, unless they were ignored from the start (nohup).

    The first signal raises Interrupted at once, but inside `gently` only where `until` or `waiting` look; a second one
    ends the process on the spot, which leaves whole files and whole rows as any death does.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._gentle = self._showing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._received)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._overdue)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # Python itself, while it imports a module, makes a RuntimeError of whatever is raised.
        cause = error
        while cause is not None and not isinstance(cause, Interrupted):
            cause = cause.__cause__
        if cause is not None and cause is not error:
            raise cause

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Inside, a signal only asks for the end."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False

    def made_gently(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, made and shown `gently`; a show that does not end, as nobody reads, is broken off."""
        with self.gently():
            for item in items:
                self._showing = True
                try:
                    yield item
                finally:
                    self._showing = False

    def until(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, one by one, until the end is asked for: then Interrupted."""
        for item in items:
            if self._number is not None:
                raise Interrupted(self._number)
            yield item

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; while the next one is waited for, which may be long on a pipe, a signal raises at once."""
        source = iter(items)
        while True:
            gentle, self._gentle = self._gentle, False
            try:
                if self._number is not None:
                    raise Interrupted(self._number)
                item = next(source)
            except StopIteration:
                return
            finally:
                self._gentle = gentle
            yield item

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            os._exit(128 + number)
        self._number = number
        if not self._gentle:
            raise Interrupted(number)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE, _PATIENCE)

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        if self._showing and self._number is not None:
            raise Interrupted(self._number)

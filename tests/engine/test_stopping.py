"""Signals, sent to this very process: what is begun is finished, nothing more is begun."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xai_cli.engine.concurrency import in_order
from xai_cli.engine.explain import explain
from xai_cli.engine.options import RunOptions
from xai_cli.engine.outcomes import Failed
from xai_cli.engine.request import Request
from xai_cli.engine.run_folder import RunFolder
from xai_cli.engine.stopping import Interrupted, Stop
from xai_cli.engine.writing import Written
from xai_cli.images.sources import ImageRef

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[object]]:
    """The handlers that stood before, which stand again after every test."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def consumed(items: Iterable[int], *, signal_at: int | None = None, number: int = signal.SIGTERM) -> list[int]:
    """The items that could be finished, with a signal in the midst of one, and last the number of an Interrupted."""
    finished = []
    try:
        for item in items:
            if item == signal_at:
                send(number)
            finished.append(item)
    except Interrupted as end:
        finished.append(end.number)
    return finished


def sends_before(item: int, items: range = range(5)) -> Iterator[int]:
    """The items, and a signal just before one of them."""
    for each in items:
        if each == item:
            send()
        yield each


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_the_work_a_signal_ends_at_once(number: int) -> None:
    with Stop():
        assert consumed(range(5), signal_at=2, number=number) == [0, 1, number]


@pytest.mark.parametrize("number", SIGNALS)
def test_in_the_work_a_signal_lets_what_is_begun_be_finished(number: int) -> None:
    with Stop() as stop, stop.gently():
        assert consumed(stop.until(range(5)), signal_at=2, number=number) == [0, 1, 2, number]


def test_an_item_that_comes_after_the_signal_is_not_begun() -> None:
    with Stop() as stop, stop.gently():
        assert consumed(stop.until(sends_before(2))) == [0, 1, signal.SIGTERM]


def test_what_was_made_gently_is_shown_gently() -> None:
    with Stop() as stop:
        assert consumed(stop.made_gently(stop.until(range(5))), signal_at=2) == [0, 1, 2, signal.SIGTERM]
    with Stop() as stop:
        assert consumed(stop.made_gently(stop.until(sends_before(2)))) == [0, 1, signal.SIGTERM]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_show_that_does_not_end_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a write into a pipe that nobody reads: Python goes on with it after the signal."""
    monkeypatch.setattr("xai_cli.engine.stopping._PATIENCE", 0.05)
    reading, writing = os.pipe()

    def shown(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield item
            if item == 2:
                send()
                os.write(writing, bytes(10**6))

    with Stop() as stop:
        assert consumed(shown(stop.made_gently(range(5)))) == [0, 1, 2, signal.SIGTERM]
    os.close(reading)
    os.close(writing)


def test_while_the_next_item_is_waited_for_a_signal_ends_at_once() -> None:
    drawn = []

    def source() -> Iterator[int]:
        for item in sends_before(2):
            drawn.append(item)
            yield item

    with Stop() as stop, stop.gently():
        assert consumed(stop.waiting(source())) == [0, 1, signal.SIGTERM]
    assert drawn == [0, 1]


def test_between_two_waits_the_work_is_as_gentle_as_before() -> None:
    with Stop() as stop, stop.gently():
        assert consumed(stop.waiting(range(5)), signal_at=2) == [0, 1, 2, signal.SIGTERM]


def test_without_a_signal_all_items_come_and_the_source_may_fail() -> None:
    def failing() -> Iterator[int]:
        yield 0
        raise OSError("the list ends here")

    with Stop() as stop, stop.gently():
        assert list(stop.until(stop.waiting(range(5)))) == [0, 1, 2, 3, 4]
        with pytest.raises(OSError, match="the list ends here"):
            list(stop.until(stop.waiting(failing())))


def test_a_signal_after_the_last_item_asks_for_nothing_any_more() -> None:
    with Stop() as stop:
        with stop.gently():
            assert consumed(stop.until(range(3)), signal_at=2) == [0, 1, 2]
        assert consumed(range(2)) == [0, 1]


def test_a_second_signal_ends_the_process_on_the_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(BaseException):
        pass

    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(os, "_exit", end)
    with Stop() as stop, stop.gently():
        send(signal.SIGINT)
        with pytest.raises(EndedError) as ended:
            send(signal.SIGTERM)
    assert ended.value.args == (128 + signal.SIGTERM,)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_ignored_from_the_start_stays_ignored(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    with Stop() as stop:
        send(number)
        with stop.gently():
            send(number)
            assert list(stop.until(range(2))) == [0, 1]
        assert signal.getsignal(number) is signal.SIG_IGN
    assert signal.getsignal(number) is signal.SIG_IGN


def test_the_handlers_before_stand_again_however_it_ends(handlers: list[object]) -> None:
    with Stop():
        assert not set(handlers) & {signal.getsignal(number) for number in SIGNALS}
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    with pytest.raises(Interrupted), Stop():
        send()
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_what_was_begun_in_threads_before_the_signal_is_still_given() -> None:
    """As in a run: the source is waited for in the thread that takes the results."""
    with Stop() as stop, stop.gently(), ThreadPoolExecutor(2) as pool:
        results = in_order(pool, abs, stop.waiting(sends_before(3)), ahead=9)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(Interrupted):
            next(results)


class Slowly:
    """What stands for the stations of a run: reading takes its time, the rest nothing."""

    preprocessing = SimpleNamespace(size=(8, 8))
    picture_size = 8

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.reader = self.attributor = self.writer = self

    def read(self, image: ImageRef) -> Failed:
        self.begun.append(image.key)
        time.sleep(0.005)
        return Failed(image, "open", "Empty", "the file is empty")

    def attribute(self, pictures: Iterable[Failed]) -> Iterator[Failed]:
        yield from pictures

    def write(self, failed: Failed) -> Written:
        return Written([failed.as_row()])


@pytest.mark.parametrize("how", ["signal", "reader gone"])
def test_what_waits_to_be_read_when_a_run_ends_is_not_read(tmp_path: Path, how: str) -> None:
    options = RunOptions(out=tmp_path / "out", batch_size=50, workers=1)
    images = (ImageRef(str(number), Path(str(number))) for number in range(1000))
    stations: Any = Slowly()
    with Stop() as stop, RunFolder(options.out, Request.of([], [], [options])) as folder:
        folder.begin({"model": {}, "layers": {}, "versions": {}})
        records = explain(images, stations, folder, options, stop)
        next(records)
        if how == "signal":
            with stop.gently():
                assert consumed((number for number, _ in enumerate(records)), signal_at=1)[-1] == signal.SIGTERM
        else:
            records.close()  # type: ignore[attr-defined]
    assert len(stations.begun) < 150  # of a thousand: a hundred pictures may wait to be read

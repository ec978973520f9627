"""A file that stumbles is read again, one that is broken is not; large ones are not read at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xai_cli.engine import reading
from xai_cli.engine.memory import Budget
from xai_cli.engine.options import InputOptions
from xai_cli.engine.outcomes import Failed, Loaded
from xai_cli.engine.reading import Reader
from xai_cli.images.decode import Broken, Picture
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.sources import ImageRef
from xai_cli.targets import parse_target

IMAGE = ImageRef("cats/a.png", Path("cats/a.png"), (1, 1))
STUMBLE = Broken("open", "ReadError", "reading it failed: Stale file handle", transient=True)
DAMAGE = Broken("decode", "Corrupt", "its data is damaged: so it is")
PIXELS = np.full((30, 90, 3), 7, np.uint8)


def reader(target: str = "predicted", memory: int = 100) -> Reader:
    preprocessing = Preprocessing((8, 8), 8, "center", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
    labels = ("cats", "dogs")
    return Reader(preprocessing, labels, parse_target(target, labels), InputOptions(), 16, Budget(memory))


class File:
    """A picture file whose header says that it needs so much memory."""

    def __init__(self, memory: int = 0, decode: Callable[[], None] = lambda: None) -> None:
        self.memory, self.decode = memory, decode

    def picture(self, turn: bool) -> Picture:
        self.decode()
        return Picture(PIXELS, "PNG", "RGB", 1, 1, ("a warning",))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


def opens(monkeypatch: pytest.MonkeyPatch, answers: Sequence[Any]) -> Iterator[Any]:
    """Opening a file gives these files, or raises these errors, one after the other; returns those not asked for."""
    left = iter(answers)

    @contextmanager
    def opened(path: Path, *, max_pixels: int) -> Iterator[File]:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        yield answer

    monkeypatch.setattr(reading, "opened", opened)
    return left


def fails(error: Exception) -> File:
    def decode() -> None:
        raise error

    return File(decode=decode)


@pytest.mark.parametrize("stumble", [STUMBLE, fails(STUMBLE)])
@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_a_file_that_stumbles_is_read_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], stumble: Any, times: int
) -> None:
    opens(monkeypatch, [stumble] * times + [File()])
    loaded = reader().read(IMAGE)
    assert isinstance(loaded, Loaded)
    assert pauses == [0.5, 1.0, 2.0][:times]
    assert (loaded.image, loaded.warnings) == (IMAGE, ("a warning",))
    assert (loaded.pixels.shape, loaded.photo.shape) == ((8, 8, 3), (5, 16, 3))


def test_a_file_that_always_stumbles_may_be_tried_by_a_later_run(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    left = opens(monkeypatch, [STUMBLE] * 4 + [File()])
    assert reader().read(IMAGE) == Failed(IMAGE, "open", "ReadError", STUMBLE.message, transient=True)
    assert pauses == [0.5, 1.0, 2.0]
    assert len(list(left)) == 1


@pytest.mark.parametrize("before", [0, 2])
def test_a_broken_file_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, pauses: list[float], before: int) -> None:
    left = opens(monkeypatch, [STUMBLE] * before + [fails(DAMAGE), File()])
    assert reader().read(IMAGE) == Failed(IMAGE, "decode", "Corrupt", DAMAGE.message)
    assert len(pauses) == before
    assert len(list(left)) == 1


@pytest.mark.parametrize(
    ("error", "message", "transient"),
    [(ZeroDivisionError("so it is"), "so it is", False), (KeyError(), "KeyError", False),
     (MemoryError(), "MemoryError", True)],
)  # fmt: skip
def test_whatever_a_file_does_is_a_failure_of_that_file(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], error: Exception, message: str, transient: bool
) -> None:
    opens(monkeypatch, [fails(error)] * 4)
    failed = reader().read(IMAGE)
    assert failed == Failed(IMAGE, "preprocess", type(error).__name__, message, transient)
    assert len(pauses) == 3 * transient


def test_a_picture_without_a_label_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    left = opens(monkeypatch, [File(), File()])
    assert isinstance(reader("label").read(IMAGE), Loaded)
    failed = reader("label").read(ImageRef("mice/b.png", Path("mice/b.png")))
    assert isinstance(failed, Failed)
    assert (failed.stage, failed.type, failed.transient) == ("target", "UnknownClass", False)
    assert len(list(left)) == 1


@pytest.mark.parametrize(("memory", "most"), [(1000, 1), (51, 1), (50, 2), (25, 4)])
def test_so_many_pictures_are_decoded_at_once_as_the_memory_allows(
    monkeypatch: pytest.MonkeyPatch, memory: int, most: int
) -> None:
    lock, now, counts = threading.Lock(), [0], []
    together = threading.Barrier(most)

    def decode() -> None:
        with lock:
            now[0] += 1
            counts.append(now[0])
        together.wait(5)
        threading.Event().wait(0.01)  # one more would come now
        with lock:
            now[0] -= 1

    opens(monkeypatch, [File(memory, decode) for _ in range(8)])
    shared = reader(memory=100)
    with ThreadPoolExecutor(8) as pool:
        assert all(isinstance(each, Loaded) for each in pool.map(shared.read, [IMAGE] * 8))
    assert max(counts) == most


def test_a_broken_picture_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = reader()
    for error in (DAMAGE, ZeroDivisionError()):
        opens(monkeypatch, [File(100, fails(error).decode), File(100)])
        assert isinstance(shared.read(IMAGE), Failed)
        assert isinstance(shared.read(IMAGE), Loaded)

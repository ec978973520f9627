"""Pictures on which a process has died are tried in another one: the innocent ones are explained like all others."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import explained
from PIL import Image

from xai_cli import load_classifier
from xai_cli.classifiers.options import ModelOptions
from xai_cli.engine import trial as module
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.outcomes import HopelessError
from xai_cli.engine.trial import Job, try_alone
from xai_cli.images.sources import ImageRef, find_images, stamped
from xai_cli.methods.saliency import Saliency

# Cannot bear a white picture.
KILLER = """
import os, signal, torch
from torch import nn

class Net(nn.Module):
    pretrained_cfg = {"input_size": (3, 8, 8), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(192, 3)

    def forward(self, x):
        if (x.flatten(1).amin(1) > 1.99).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x.flatten(1))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("killer.py").write_text(KILLER)
    Path("photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photos/a.png")
    Path("photos/b.png").write_text("no picture")
    Image.new("RGB", (8, 8), "white").save("photos/c.png")


def job(model: str = "killer.py:Net", batch_size: int = 2) -> Job:
    options = RunOptions(out=Path("out"), batch_size=batch_size)
    return ModelOptions(model=model), [Saliency()], InputOptions(), options, DrawingOptions(overview=0)


def test_the_guilty_picture_gets_a_row_and_the_innocent_ones_the_rows_and_files_of_any_run() -> None:
    suspects = [stamped(image) for image in find_images(["photos"])]
    tried = list(try_alone(suspects, job()))
    assert [image for image, _, _ in tried] == suspects
    assert {found["model"]["name"] for _, _, found in tried} == {"killer.py:Net"}
    innocent, broken, guilty = ({name: value for name, value in rows[0].items() if name != "seconds"}
                                for _, rows, _ in tried)  # fmt: skip
    assert (guilty["status"], guilty["stage"], guilty["type"], guilty["transient"]) == (
        "error", "worker", "Crashed", False
    )  # fmt: skip
    assert guilty["message"] == (
        "two processes died while they worked on it, the last with SIGKILL; --retry-errors tries it again"
    )
    _, methods, inputs, _, drawing = job()
    usual = explained(suspects[:2], load_classifier("killer.py:Net"), methods, RunOptions(out=Path("usual"),
                      batch_size=2), drawing, inputs)  # fmt: skip
    assert [innocent, broken] == [
        {name: value for name, value in row.items() if name not in ("seconds", "schema", "part")} for row in usual
    ]
    for name in innocent["files"].values():
        assert Path("out", name).read_bytes() == Path("usual", name).read_bytes()


def test_a_process_that_cannot_load_the_model_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(BaseException):
        pass

    def end(code: int) -> None:
        raise EndedError(code)

    said: list[Any] = []
    ignored: list[int] = []
    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("signal.signal", lambda number, handler: ignored.append(number))
    with pytest.raises(EndedError, match=r"^0$"):
        module._serve(SimpleNamespace(send=said.append), job("nowhere.py:make"))  # type: ignore[arg-type]
    assert said == []
    # Those who ask for the end ask the run, which ends this process.
    assert set(ignored) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


# With other processes in the place of real ones


class Playing:
    """A trial that dies of pictures with these names, or finds no model after so many."""

    deadly: frozenset[str] = frozenset()
    models = 99
    begun = closed = 0
    batches: ClassVar[list[str]] = []

    def __init__(self, job: Any) -> None:
        type(self).begun += 1

    def found(self) -> dict[str, Any] | None:
        return {"model": self.begun} if self.begun <= self.models else None

    def rows(self, images: list[ImageRef]) -> list[list[dict[str, Any]]] | None:
        names = [image.key for image in images]
        self.batches.append("".join(names))
        return None if self.deadly & set(names) else [[{"key": name, "status": "ok"}] for name in names]

    def close(self) -> int | None:
        type(self).closed += 1
        return -11


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> type[Playing]:
    kind = type("Kind", (Playing,), {"batches": []})
    monkeypatch.setattr(module, "Trial", kind)
    return kind


def tried(names: str) -> Iterator[tuple[str, str, int]]:
    suspects = [ImageRef(name, Path(name)) for name in names]
    for image, [row], found in try_alone(suspects, job(batch_size=3)):
        yield image.key, row.get("type", row["status"]), found["model"]


def test_those_who_did_not_do_it_are_tried_in_batches(playing: type[Playing]) -> None:
    assert list(tried("abcdefgh")) == [(name, "ok", 1) for name in "abcdefgh"]
    assert playing.batches == ["abc", "def", "gh"]
    assert list(tried("")) == []
    assert (playing.begun, playing.closed) == (1, 1)


@pytest.mark.parametrize(
    ("deadly", "batches"),
    [
        ("a", ["abc", "a", "bc", "def"]),
        ("b", ["abc", "a", "bc", "b", "c", "def"]),
        ("cf", ["abc", "a", "bc", "b", "c", "def", "d", "ef", "e", "f"]),
    ],
)
def test_a_batch_that_kills_is_tried_in_halves_in_new_processes(
    playing: type[Playing], deadly: str, batches: list[str]
) -> None:
    playing.deadly = frozenset(deadly)
    assert [(name, how) for name, how, _ in tried("abcdef")] == [
        (name, "Crashed" if name in deadly else "ok") for name in "abcdef"
    ]
    assert playing.batches == batches
    deaths = sum(bool(playing.deadly & set(batch)) for batch in batches)
    assert playing.begun == playing.closed == deaths + (batches[-1] not in deadly)


def test_a_process_that_dies_whatever_the_picture_is_no_fault_of_theirs(playing: type[Playing]) -> None:
    playing.deadly = frozenset("abcdef")
    going = tried("abcdef")
    assert [next(going)[:2] for _ in range(3)] == [(name, "Crashed") for name in "abc"]
    with pytest.raises(HopelessError, match="the process dies whatever the picture, the last time with "):
        next(going)
    assert playing.begun == playing.closed


def test_who_could_not_be_tried_is_not_accused(playing: type[Playing]) -> None:
    playing.deadly, playing.models = frozenset("a"), 2
    assert list(tried("abc")) == [("a", "Crashed", 2)]
    assert (playing.begun, playing.closed) == (3, 3)


def test_a_trial_that_is_broken_off_ends_its_process(playing: type[Playing]) -> None:
    going = tried("abc")
    assert next(going) == ("a", "ok", 1)
    going.close()  # type: ignore[attr-defined]
    assert (playing.begun, playing.closed) == (1, 1)

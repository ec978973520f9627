"""Pictures on which a process has died are tried in another one: the innocent ones are explained like all others."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import explained
from PIL import Image

from xai_cli import load_classifier
from xai_cli.classifiers.options import ModelOptions
from xai_cli.engine import trial as module
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
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


def job(model: str = "killer.py:Net", out: str = "out") -> Job:
    options = RunOptions(out=Path(out), batch_size=3)
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
                      batch_size=3), drawing, inputs)  # fmt: skip
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

    def __init__(self, job: Any) -> None:
        type(self).begun += 1

    def found(self) -> dict[str, Any] | None:
        return {"model": self.begun} if self.begun <= self.models else None

    def rows(self, image: ImageRef) -> list[dict[str, Any]] | None:
        return None if image.key in self.deadly else [{"key": image.key, "status": "ok"}]

    def close(self) -> int | None:
        type(self).closed += 1
        return -11


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> type[Playing]:
    kind = type("Kind", (Playing,), {})
    monkeypatch.setattr(module, "Trial", kind)
    return kind


def tried(names: str) -> Iterator[tuple[str, str, int]]:
    suspects = [ImageRef(name, Path(name)) for name in names]
    for image, [row], found in try_alone(suspects, job()):
        yield image.key, row.get("type", row["status"]), found["model"]


@pytest.mark.parametrize(
    ("names", "deadly", "expected", "processes"),
    [
        ("ab", "", [("a", "ok", 1), ("b", "ok", 1)], 1),
        ("abcd", "ac", [("a", "Crashed", 1), ("b", "ok", 2), ("c", "Crashed", 2), ("d", "ok", 3)], 3),
        ("ab", "ab", [("a", "Crashed", 1), ("b", "Crashed", 2)], 2),
        ("", "", [], 0),
    ],
)
def test_after_each_death_the_rest_are_tried_in_a_new_process(
    playing: type[Playing], names: str, deadly: str, expected: list[tuple[str, str, int]], processes: int
) -> None:
    playing.deadly = frozenset(deadly)
    assert list(tried(names)) == expected
    assert (playing.begun, playing.closed) == (processes, processes)


def test_who_could_not_be_tried_is_not_accused(playing: type[Playing]) -> None:
    playing.deadly, playing.models = frozenset("a"), 1
    assert list(tried("abc")) == [("a", "Crashed", 1)]
    assert (playing.begun, playing.closed) == (2, 2)


def test_a_trial_that_is_broken_off_ends_its_process(playing: type[Playing]) -> None:
    going = tried("abc")
    assert next(going) == ("a", "ok", 1)
    going.close()  # type: ignore[attr-defined]
    assert (playing.begun, playing.closed) == (1, 1)

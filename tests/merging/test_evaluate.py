"""Accuracies of weights that come as a stream, against those of a net that answers with the brightest channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import classifier_of
from PIL import Image
from torch import Tensor, nn

from xai_cli.classifiers.classifier import Classifier
from xai_cli.merging.evaluate import Evaluator, Task
from xai_cli.merging.pictures import Picture, labelled

LABELS = ("red", "green", "blue")


class Brightest(nn.Module):
    """Logits `mix @ mean colour`."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(3))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.mix.T


@pytest.fixture
def classifier() -> Classifier:
    return classifier_of(Brightest(), dtype=torch.float32)


def task(folder: Path, classes: tuple[int, ...] | None = None, count: int = 5) -> Task:
    """So many pictures of each class, in which its channel is brightest and the next one next."""
    for index, name in enumerate(LABELS):
        for number in range(count if classes is None or index in classes else 0):
            pixels = np.full((8, 8, 3), 10 + number, np.uint8)
            pixels[..., index], pixels[..., (index + 1) % 3] = 200, 100
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return Task(folder.name, labelled(folder, LABELS, required=True), classes)


def silent(text: str) -> None:
    raise AssertionError(text)


def unbroken(picture: Picture, why: str) -> None:
    raise AssertionError(f"{picture.key}: {why}")


def test_accuracies_are_those_of_the_weights(tmp_path: Path, classifier: Classifier) -> None:
    evaluator = Evaluator(classifier, [task(tmp_path / "all"), task(tmp_path / "two", (0, 1), 2)], 4, silent, unbroken)
    assert evaluator.counts == {"all": 15, "two": 4}
    assert evaluator.scores([("mix", torch.eye(3))]) == {"all": 1.0, "two": 1.0}
    # Red and green change places; blue stays.
    assert evaluator.scores([("mix", torch.eye(3)[[1, 0, 2]])]) == {"all": 1 / 3, "two": 0.0}
    assert evaluator.scores([("mix", torch.eye(3).half())]) == {"all": 1.0, "two": 1.0}


def test_classes_that_do_not_count_are_no_answers(tmp_path: Path, classifier: Classifier) -> None:
    tasks = [task(tmp_path / "a", (0, 2)), Task("b", task(tmp_path / "a", (0, 2)).pictures)]
    # These pictures are rather dark, inputs negative on average: green comes first for all of them, then what is right.
    mix = torch.tensor([[1.0, 0, 0], [-9, -9, -9], [0, 0, 1]])
    assert Evaluator(classifier, tasks, 4, silent, unbroken).scores([("mix", mix)]) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("size", [1, 4, 100])
def test_pictures_are_decoded_once_and_the_batch_size_changes_nothing(
    tmp_path: Path, classifier: Classifier, size: int
) -> None:
    tasks = [task(tmp_path / "all")]
    evaluator = Evaluator(classifier, tasks, size, silent, unbroken)
    for picture in tasks[0].pictures:
        picture.path.unlink()
    for _ in range(2):
        assert evaluator.scores([("mix", torch.eye(3)[[1, 0, 2]])]) == {"all": 1 / 3}


def test_a_broken_picture_is_told_and_left_out(tmp_path: Path, classifier: Classifier) -> None:
    broken = task(tmp_path / "all")
    (tmp_path / "all/green/3.png").write_bytes(b"<html>")
    told: list[str] = []
    evaluator = Evaluator(classifier, [broken], 4, silent, lambda picture, why: told.append(picture.key))
    assert told == ["green/3.png"]
    assert evaluator.counts == {"all": 14}
    assert evaluator.scores([("mix", torch.eye(3))]) == {"all": 1.0}


def test_nan_logits_are_wrong_and_told(tmp_path: Path, classifier: Classifier) -> None:
    told: list[str] = []
    tasks = [task(tmp_path / "all"), task(tmp_path / "two", (0, 1))]
    evaluator = Evaluator(classifier, tasks, 4, told.append, unbroken)
    mix = torch.eye(3)
    mix[2] = float("nan")
    assert evaluator.scores([("mix", mix)]) == {"all": 0.0, "two": 1.0}
    assert told == ["all: 15 of 15 pictures get NaN logits and count as wrong"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], r"expects mix, and the weights lack it"),
        ([("mix", torch.eye(4))], r"mix expects shape \(3, 3\) in this model, found \(4, 4\)"),
        ([("mix", torch.eye(3)), ("bias", torch.ones(3))], r"expects no tensor 'bias'"),
        ([("mix", torch.eye(3)), ("mix", torch.eye(3))], r"expects no tensor 'mix', or not twice"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, classifier: Classifier, tensors: list[tuple[str, Tensor]], message: str
) -> None:
    evaluator = Evaluator(classifier, [task(tmp_path / "all")], 4, silent, unbroken)
    with pytest.raises(ValueError, match=message):
        evaluator.scores(tensors)
    assert evaluator.scores([("mix", torch.eye(3)), ("num_batches_tracked", torch.tensor(7))]) == {"all": 1.0}
    assert classifier.module.num_batches_tracked == 7


def test_tasks_that_cannot_be_scored_are_refused(tmp_path: Path, classifier: Classifier) -> None:
    good = task(tmp_path / "all")
    with pytest.raises(ValueError, match="tasks expect a name each, found all, all"):
        Evaluator(classifier, [good, good], 4, silent, unbroken)
    with pytest.raises(ValueError, match=r"task x expects pictures in folders named after classes, found 'a\.png'"):
        Task("x", [Picture("a.png", tmp_path)])
    with pytest.raises(ValueError, match=r"task x counts only classes 0 and 1, and 'blue/0.png' is of class 2"):
        Task("x", good.pictures[:1], (0, 1))
    missing = Task("x", [Picture("red/a.png", tmp_path / "a.png", 0)])
    with pytest.raises(ValueError, match="task x expects pictures, found none that can be read"):
        Evaluator(classifier, [missing], 4, silent, lambda picture, why: None)


class Remembering(Brightest):
    """As it was with the weights that it saw first."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        kept = self.mix_cache.setdefault("made", self.mix * 1)
        return x.mean((2, 3)) @ kept.T


def test_what_is_kept_of_other_weights_is_forgotten(tmp_path: Path) -> None:
    evaluator = Evaluator(
        classifier_of(Remembering(), dtype=torch.float32), [task(tmp_path / "task")], 4, silent, unbroken
    )
    assert evaluator.scores([("mix", torch.eye(3))]) == {"task": 1.0}
    assert evaluator.scores([("mix", -torch.eye(3))]) == {"task": 0.0}

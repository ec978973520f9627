"""How well weights do on labelled folders: loaded into one module, time after time, on pictures decoded once."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xai_cli.classifiers.classifier import Classifier
from xai_cli.merging.pictures import Picture, batches
from xai_cli.operators.per_example import forgetful


@dataclass(frozen=True)
class Task:
    """A labelled folder, and which of the model's classes may be the answer (None: all).

    Logits of heads that were trained apart are not comparable: with several label sets in one head each task counts its
    own classes alone.
    """

    name: str
    pictures: Sequence[Picture]
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a picture without label, or of a class that does not count."""
        for picture in self.pictures:
            if picture.label is None:
                raise ValueError(
                    f"task {self.name} expects pictures in folders named after classes, found {picture.key!r} in none"
                )
            if self.classes is not None and picture.label not in self.classes:
                counted = " and ".join(map(str, self.classes[:10]))
                raise ValueError(
                    f"task {self.name} counts only classes {counted}, and {picture.key!r} is of class {picture.label}; "
                    "leave it out, or count its class"
                )


class Evaluator:
    """Accuracies of any weights of one architecture on the `tasks`.

    The pictures are decoded when it is made and kept as bytes in a temporary file without name (where `TMPDIR` says),
    so memory holds one batch of them. One that cannot be decoded is told to `broken` and left out. The classifier must
    not be folded; its module holds other weights afterwards.

    Raises:
        ValueError: the classifier is folded, two tasks have one name, or of a task no picture can be read.
    """

    def __init__(
        self, classifier: Classifier, tasks: Sequence[Task], batch_size: int, tell: Callable[[str], None],
        broken: Callable[[Picture, str], None],
    ) -> None:  # fmt: skip
        if classifier.folded:
            raise ValueError("evaluating weights expects the model as its files have it; load it with fold=False")
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks expect a name each, found {', '.join(names)}; rename the folders")
        self._classifier = classifier
        self._batch_size = batch_size
        self._tell = tell
        self._tasks = [_Decoded(classifier, task, batch_size, broken) for task in tasks]

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures each task has that can be read."""
        return {task.name: len(task.labels) for task in self._tasks}

    def scores(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
        """The share of pictures that the model with these weights predicts right, by task. Raises as `load`."""
        self.load(tensors)
        return self.accuracies()

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Loads weights and buffers by name into the module, one after the other.

        Raises ValueError if one does not fit, comes twice or is missing (but for counts of training steps, which stay):
        then the module holds weights of both, and must be loaded again.
        """
        waiting = self._classifier.module.state_dict()
        for name, tensor in tensors:
            own = waiting.pop(name, None)
            if own is None:
                raise ValueError(f"the model expects no tensor {name!r}, or not twice; merge checkpoints of this model")
            if own.shape != tensor.shape:
                raise ValueError(f"{name} expects shape {tuple(own.shape)} in this model, found {tuple(tensor.shape)}")
            own.copy_(tensor)
        missing = [name for name in waiting if not name.endswith("num_batches_tracked")]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(f"the model expects {', '.join(missing[:3])}{more}, and the weights lack it")

    def accuracies(self) -> dict[str, float]:
        """The same for the weights that the module holds. A picture with NaN among its logits is wrong, and told."""
        with forgetful(self._classifier.module):  # of the weights that were here before
            return {task.name: self._accuracy(task) for task in self._tasks}

    def _accuracy(self, task: _Decoded) -> float:
        right = undefined = 0
        for pixels, labels in task.batches(self._batch_size):
            with torch.inference_mode():
                # What was compiled holds the weights that it was compiled with.
                logits = self._classifier.eager_logits(self._classifier.prepare(pixels)).cpu()
            answers = logits if task.classes is None else logits[:, task.classes]
            predicted = answers.argmax(1) if task.classes is None else task.classes[answers.argmax(1)]
            broken = answers.isnan().any(1)
            right += int(((predicted == labels) & ~broken).sum())
            undefined += int(broken.sum())
        if undefined:
            self._tell(f"{task.name}: {undefined} of {len(task.labels)} pictures get NaN logits and count as wrong")
        return right / len(task.labels)


class _Decoded:
    """The pictures of a task as the model's preprocessing leaves them, in a file."""

    def __init__(
        self, classifier: Classifier, task: Task, batch_size: int, broken: Callable[[Picture, str], None]
    ) -> None:
        self.name = task.name
        self.classes = None if task.classes is None else torch.tensor(task.classes)
        self._shape = (*classifier.preprocessing.size, classifier.preprocessing.channels)
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as this object
        weakref.finalize(self, self._file.close)
        labels = []
        for pictures, inputs in batches(classifier, task.pictures, batch_size, broken):
            self._file.write(classifier.pixels(inputs).tobytes())
            labels += [picture.label for picture in pictures]
        if not labels:
            raise ValueError(f"task {task.name} expects pictures, found none that can be read; check its folder")
        self.labels = torch.tensor(labels)

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        """Pixels `(B, h, w, C)` and labels `(B,)`, always in the same order."""
        # Read, not mapped: mapped pages would count as memory of this process.
        self._file.seek(0)
        for labels in self.labels.split(size):
            pixels = self._file.read(len(labels) * int(np.prod(self._shape)))
            yield np.frombuffer(bytearray(pixels), np.uint8).reshape(-1, *self._shape), labels

"""How well inputs and merges do on labelled folders, also where their heads know different classes.

For every list of class names there is one judge: the architecture with such a head, and those of the folders whose
classes it knows.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from xai_cli.classifiers.classifier import Classifier
from xai_cli.merging.batch_norm import recalibrate
from xai_cli.merging.evaluate import Evaluator, Task
from xai_cli.merging.inputs import Inputs
from xai_cli.merging.pictures import Picture, batches, labelled
from xai_cli.operators.per_example import forgetful

Tensors = Iterable[tuple[str, Tensor]]
Labels = tuple[str, ...]


@dataclass(frozen=True)
class Court:
    """All judges of a merge.

    Attributes:
        inputs: what is merged.
        folders: the labelled folders by task.
        recalibration: pictures on which a merge's batch-norm statistics are measured anew, if any.
        batch_size: pictures per pass.
        tell: is given sentences for the user.
        broken: is given every picture that cannot be read, with the reason.
    """

    inputs: Inputs
    folders: dict[str, Path]
    recalibration: Sequence[Picture]
    batch_size: int
    tell: Callable[[str], None]
    broken: Callable[[Picture, str], None]
    _judges: dict[Labels, tuple[Classifier, Evaluator]] = field(default_factory=dict, init=False)

    def check(self, *, search: bool) -> None:
        """Raises LookupError if no head knows the classes of a folder, ValueError if the merge's head knows those of
        none and a search is to go by them.
        """
        for folder in self.folders.values():
            if not any(_known(folder, labels) for labels in (self.merged_labels, *self._heads)):
                labelled(folder, self.merged_labels, required=True)
        if not search:
            return
        judged = self._heads if self.inputs.plan.head == "keep-all" else [self.merged_labels]
        if not any(_known(folder, labels) for folder in self.folders.values() for labels in judged):
            raise ValueError(
                "a search expects --eval with classes of the merge's head, found those of other checkpoints alone; "
                "give another --target, or --head by-name or keep-all"
            )

    def of_input(self, checkpoint: int) -> dict[str, float]:
        """The accuracies of one checkpoint on the folders whose classes it knows."""
        weights, misfit = self.inputs.weights[checkpoint], self.inputs.misfit_of(checkpoint)
        if misfit is not None:
            self.tell(f"{weights.path} is not evaluated: it {misfit}")
            return {}
        _, judge = self._judge(self.inputs.labels(checkpoint))
        return judge.scores((name, weights.tensor(name)) for name in weights.names)

    def of_merge(self, tensors: Callable[[], Tensors]) -> dict[str, float]:
        """The accuracies of a merge; with --head keep-all, on each folder by the first head that knows its classes."""
        if self.inputs.plan.head != "keep-all":
            return self._loaded(self.merged_labels, tensors())[1].accuracies()
        found: dict[str, float] = {}
        for checkpoint in range(len(self.inputs.weights)):
            judge = self._loaded(self.inputs.labels(checkpoint), self._with_head(tensors(), checkpoint))[1]
            found = judge.accuracies() | found
        return found

    def final(self, tensors: Tensors) -> Tensors:
        """The merge as it is written: with its batch-norm statistics measured anew, if pictures for that were given."""
        if not self.recalibration:
            return tensors
        return self._read_back(self._loaded(self.merged_labels, tensors)[0])

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures of each folder could be read, so far as it was judged."""
        return {name: count for _, judge in self._judges.values() for name, count in judge.counts.items()}

    @property
    def merged_labels(self) -> Labels:
        """The class names of the merge."""
        return self.inputs.plan.classes or self.inputs.labels(self.inputs.target)

    def _read_back(self, classifier: Classifier) -> Iterator[tuple[str, Tensor]]:
        state, layout = classifier.module.state_dict(), self.inputs.plan.layout
        yield from ((name, state[name].to("cpu", dtype)) for name, (dtype, _) in layout.items())

    def _loaded(self, labels: Labels, tensors: Tensors) -> tuple[Classifier, Evaluator]:
        """The judge for these class names with the merge in it."""
        classifier, judge = self._judge(labels)
        judge.load(tensors)
        if self.recalibration:
            # Folders are sorted by class, and what comes into a deep layer depends on the other pictures of a batch.
            mixed = random.Random(0).sample(self.recalibration, len(self.recalibration))
            source = batches(classifier, mixed, self.batch_size, self.broken)
            with closing(source), forgetful(classifier.module):
                recalibrate(classifier.module, (inputs for _, inputs in source))
        return classifier, judge

    def _judge(self, labels: Labels) -> tuple[Classifier, Evaluator]:
        if labels not in self._judges:
            classifier = self.inputs.empty(labels)
            tasks = [task for name, folder in self.folders.items() if (task := self._task(name, folder, labels))]
            self._judges[labels] = classifier, Evaluator(classifier, tasks, self.batch_size, self.tell, self.broken)
        return self._judges[labels]

    def _task(self, name: str, folder: Path, labels: Labels) -> Task | None:
        """The folder as a task for a head with these classes; None if only others know its classes."""
        pictures = _known(folder, labels)
        if pictures is None:
            return None
        of = next((number for number, own in enumerate(self._heads) if _known(folder, own)), None)
        if labels in self._heads or of is None:
            return Task(name, pictures)
        # Scores of classes that were trained apart are not comparable.
        own = self._heads[of]
        self.tell(f"{name}: merged heads answer among the {len(own)} of {len(labels)} classes that "
                  f"{self.inputs.weights[of].path} has: scores of classes trained apart do not compare")  # fmt: skip
        return Task(name, pictures, tuple(labels.index(each) for each in own))

    @property
    def _heads(self) -> list[Labels]:
        """The classes of every checkpoint."""
        return [self.inputs.labels(checkpoint) for checkpoint in range(len(self.inputs.weights))]

    def _with_head(self, tensors: Tensors, checkpoint: int) -> Iterator[tuple[str, Tensor]]:
        own = self.inputs.weights[checkpoint]
        for name, tensor in tensors:
            yield name, own.tensor(name) if name in self.inputs.head else tensor


def _known(folder: Path, labels: Labels) -> list[Picture] | None:
    """The folder's pictures with their classes among `labels`; None if one has no class there."""
    try:
        return labelled(folder, labels, required=True)
    except LookupError:
        return None


def task_names(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by names as short as tell them apart: `night/eval` and `fog/eval`.

    Raises ValueError if a folder is given twice.
    """
    if len({os.path.abspath(folder) for folder in folders}) < len(folders):
        raise ValueError("--eval expects each folder once, found one twice; leave it out")
    return dict(zip(names_apart(folders), folders, strict=True))


def names_apart(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or where two have the same all that tells them apart."""
    places = [Path(os.path.abspath(path)) for path in paths]
    names = [place.name for place in places]
    if len({*names}) == len(names):
        return names
    common = Path(os.path.commonpath(places))
    return [str(place.relative_to(common.parent if common in places else common)) for place in places]

"""The checkpoints that are merged: opened, under the names of one architecture, with their class names and the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from xai_cli.classifiers import zoo
from xai_cli.classifiers.blueprint import blueprint
from xai_cli.classifiers.checkpoints import digest_of, is_counter
from xai_cli.classifiers.classifier import Classifier
from xai_cli.classifiers.labels import read_labels
from xai_cli.classifiers.loading import load_classifier
from xai_cli.classifiers.options import ModelOptions
from xai_cli.merging.heads import head_names
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.plan import Plan, plan
from xai_cli.merging.statistics import Statistics, read_statistics
from xai_cli.merging.weights import Weights, aligned


@dataclass(frozen=True)
class Inputs:
    """What is merged.

    Attributes:
        model: the architecture, as the user named it.
        weights: one per checkpoint, under the architecture's names.
        counts: how many classes each checkpoint has.
        usual: how many the architecture has unless it is told otherwise.
        names: class names of every checkpoint, if they were given.
        head: names of the tensors of the classifier head.
        layout: types and shapes of the architecture's tensors.
        target: the checkpoint, counted from 0, whose head, types and order of classes are kept.
        plan: what becomes of each tensor.
        notes: sentences for the user.
    """

    model: ModelOptions
    weights: list[Weights]
    counts: list[int]
    usual: int
    names: list[tuple[str, ...]] | None
    head: tuple[str, ...]
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    target: int
    plan: Plan
    notes: tuple[str, ...]

    def classifier(self, checkpoint: int) -> Classifier:
        """One checkpoint as a classifier in float32, with its batch norms as the file has them."""
        return self._load(self.counts[checkpoint], checkpoint=self.weights[checkpoint].path)

    def empty(self, labels: Sequence[str]) -> Classifier:
        """The architecture as a classifier with these class names, for weights to be loaded into."""
        # Code of the user's own builds its weights as it likes; a library would look for trained ones.
        return self._load(len(labels), checkpoint=None, pretrained=zoo.is_code(self.model.model))

    def labels(self, checkpoint: int) -> tuple[str, ...]:
        """The class names of one checkpoint: given, the architecture's own, or numbers."""
        if self.names is not None:
            return self.names[checkpoint]
        count = self.counts[checkpoint]
        return self._own_labels if count == len(self._own_labels) else tuple(map(str, range(count)))

    def statistics(self, checkpoint: int, path: Path) -> Statistics:
        """The statistics of one checkpoint from a file. Raises ValueError if they are of another one."""
        found, weights = read_statistics(path), self.weights[checkpoint]
        # A safetensors file holds one set of weights, whose digest need not be told from the file's.
        if weights.path.suffix == ".safetensors" and found.about.checkpoint_sha256 == weights.sha256:
            return found
        loaded = digest_of((name, weights.tensor(name).to(self.layout[name][0])) for name in sorted(weights.names)
                           if name in self.layout)  # fmt: skip
        if found.about.model_digest != loaded:
            raise ValueError(
                f"{path} was made of other weights ({found.about.model_digest[:12]}) than those of {weights.path} "
                f"({loaded[:12]}); give the statistics in the order of the checkpoints, or make them again"
            )
        return found

    def misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """In what tensors of these shapes are not those of the model, as the end of a sentence; None if they fit.

        How many classes the head has does not matter.
        """
        missing = [name for name in self.layout if name not in shapes and not is_counter(name)]
        foreign = [name for name in shapes if name not in self.layout]
        other = self.reshaped(shapes)
        told = [
            *([f"lacks {_listed(missing)} of the model"] if missing else ()),
            *([f"holds {_listed(foreign)}, which the model does not have"] if foreign else ()),
            *([f"holds {_listed(other)} in another shape than the model"] if other else ()),
        ]
        return ", and ".join(told) or None

    def reshaped(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Which of the tensors have another shape than in the model, but for the number of classes."""
        own = {name: shape for name, (_, shape) in self.layout.items()}
        first = {name: int(name in self.head) for name in own}
        return [
            name for name, shape in shapes.items() if name in own and shape[first[name] :] != own[name][first[name] :]
        ]

    def misfit_of(self, checkpoint: int) -> str | None:
        """The same of one checkpoint."""
        weights = self.weights[checkpoint]
        return self.misfit({name: weights.shape(name) for name in weights.names})

    @cached_property
    def misfit_of_merge(self) -> str | None:
        """The same of the merge."""
        return self.misfit({name: shape for name, (_, shape) in self.plan.layout.items()})

    @cached_property
    def _own_labels(self) -> tuple[str, ...]:
        return self._load(self.usual, checkpoint=None, pretrained=zoo.is_code(self.model.model)).labels

    def _load(self, count: int, **changes: Any) -> Classifier:
        options = vars(self.model) | {"fold": False, "dtype": "float32", "compile": False, "labels": None} | changes
        if count != self.usual:
            options["num_classes"] = count
        return load_classifier(**options)


def open_inputs(checkpoints: Sequence[Path], model: ModelOptions, options: MergeOptions) -> Inputs:
    """The checkpoints, ready to be merged.

    Raises:
        FileNotFoundError, ValueError: a file is missing, holds no weights, or the checkpoints do not fit the model or
            each other and no policy is given for it; an option does not fit so many checkpoints.
        LookupError: the model has no such name.
    """
    options.check_for(len(checkpoints))
    built, usual = blueprint(model)
    state = built.module.state_dict()
    weights, notes = aligned([Weights(path, ema=model.ema) for path in checkpoints], state)
    _check_different(weights)
    head = head_names(built.module, usual)
    names, flag = _class_names(len(checkpoints), model, options)
    parameters = [name for name, _ in built.module.named_parameters(remove_duplicate=False)]
    counts = [_rows(each, head, usual) for each in weights]
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    nothing = Plan((), "target", None, ())
    inputs = Inputs(model, weights, counts, usual, names, head, layout, options.target - 1, nothing, ())
    _check_model(inputs, options)
    inputs = replace(inputs, plan=plan(weights, parameters, head, options, names))
    _check_loadable(inputs, options, "the merge", inputs.misfit_of_merge)
    for each, count, own in zip(weights, counts, names or [()] * len(counts), strict=True):
        if names is not None and len(own) != count:
            raise ValueError(f"{flag} expects {count} names for {each.path}, found {len(own)}")
    _check_sizes(inputs)
    notes += [f"{each.path}: its averaged weights ({each.averaged}) are read; --no-ema reads the others, if it has any"
              for each in weights if each.averaged is not None]  # fmt: skip
    notes += inputs.plan.notes
    if inputs.misfit_of_merge is not None:
        notes.append(f"the merge {inputs.misfit_of_merge}: no command can load it as it is")
    return replace(inputs, notes=tuple(notes))


def _check_different(weights: Sequence[Weights]) -> None:
    """Raises ValueError if a checkpoint is given twice."""
    for place, each in enumerate(weights):
        for other in weights[:place]:
            if each.path.samefile(other.path) or (
                each.path.stat().st_size == other.path.stat().st_size and each.sha256 == other.sha256
            ):
                raise ValueError(
                    f"expected different checkpoints, found {other.path} and {each.path}, which are the same: a "
                    "checkpoint merged with itself is that checkpoint; leave one out, or let it weigh more with "
                    "--coefficients"
                )


def _check_model(inputs: Inputs, options: MergeOptions) -> None:
    """Raises ValueError if no checkpoint fits the model, and for positions of a grid for which there is no estimate."""
    misfits = [inputs.misfit_of(number) for number in range(len(inputs.weights))]
    if all(misfits):
        _check_loadable(inputs, options, str(inputs.weights[inputs.target].path), misfits[inputs.target])
    for number, weights in enumerate(inputs.weights):
        others = inputs.reshaped({name: weights.shape(name) for name in weights.names})
        if others and options.data and options.interpolate_pos_embed:
            folder = options.data[number if len(options.data) > 1 else 0]
            raise ValueError(
                f"--data expects checkpoints with the positions of the model, found {_listed(others)} in another shape "
                f"in {weights.path}; make the statistics of each checkpoint at its own size, "
                f"'{_fisher_command(inputs, number, folder)}', and give them with --fisher instead of --data"
            )


def _fisher_command(inputs: Inputs, number: int, folder: Path) -> str:
    """How the Fisher of one checkpoint is made by itself, at a size that its user knows."""
    path, count = inputs.weights[number].path, inputs.counts[number]
    told = inputs.model.num_classes is not None or count != inputs.usual
    classes = f" --num-classes {count}" if told else ""
    return (
        f"xai fisher {inputs.model.model}{classes} --checkpoint {path} --input-size HEIGHT WIDTH "
        f"--data {folder} -o {path.with_suffix('.F.safetensors')}"
    )


def _check_loadable(inputs: Inputs, options: MergeOptions, what: str, misfit: str | None) -> None:
    """Raises ValueError for what does not fit the model, unless a policy was chosen by which it need not."""
    if misfit is not None and options.tensors == options.on_mismatch == "error":
        raise ValueError(
            f"the checkpoints do not fit {inputs.model.model} ({what} {misfit}); give --model, and what it was built "
            "with (--input-size, --in-chans); only with --tensors union they are merged all the same, and then no "
            "command loads the merge"
        )


def _check_sizes(inputs: Inputs) -> None:
    """Raises ValueError if the model cannot be built for as many classes as a checkpoint, or the merge, has."""
    merged = len(inputs.plan.classes or ())
    for count in sorted({*inputs.counts, merged} - {inputs.usual, 0}):
        sentence = f"{inputs.model.model} cannot be built for {count} classes, which a checkpoint or the merge has"
        advice = "; give the function a parameter num_classes" if zoo.is_code(inputs.model.model) else ""
        try:
            _, found = blueprint(replace(inputs.model, num_classes=count))
        except ValueError as error:
            raise ValueError(f"{sentence}: {error}{advice}") from error
        if found != count:
            raise ValueError(f"{sentence}: it gives {found} scores{advice}")


def _class_names(models: int, model: ModelOptions, options: MergeOptions) -> tuple[list[tuple[str, ...]] | None, str]:
    """The class names of every checkpoint, if they were given, and by which flag."""
    if options.class_names is not None:
        return [read_labels(path) for path in options.class_names], "--class-names"
    return (None if model.labels is None else [read_labels(model.labels)] * models), "--labels"


def _rows(weights: Weights, head: Sequence[str], usual: int) -> int:
    """How many classes a checkpoint's head has."""
    return next((weights.shape(name)[0] for name in head if name in weights.names and weights.shape(name)), usual)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"

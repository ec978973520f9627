"""What becomes of each tensor in a merge, from names, shapes and types alone: read before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Literal

import torch

from xai_cli.merging.buffers import COUNTER, VARIANCE, mean_beside
from xai_cli.merging.formula import Fit
from xai_cli.merging.heads import check_classes, rows_by_name, union_of_classes
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.positions import resampled
from xai_cli.merging.weights import Weights
from xai_cli.sentences import printable

Treatment = Literal["merge", "average", "mixture", "largest", "equal", "copy", "leave out"]
Head = Literal["target", "merge", "by-name", "keep-all"]

_POSITIONS = re.compile(r"pos(ition|itional)?_embed|rel(ative)?_pos")

_ROW_BY_ROW = (
    "the heads are merged row by row: the checkpoints are taken to have the same classes in the same order; if they "
    "have not, give --class-names for each, or --head target"
)


@dataclass(frozen=True)
class Entry:
    """One tensor of the merge."""

    name: str
    treatment: Treatment
    shape: tuple[int, ...]
    dtype: torch.dtype
    models: tuple[int, ...]
    """The models whose tensor is used, counted from 0."""
    fits: tuple[Fit | None, ...]
    """One per model, of all models: how its tensor comes into the merged shape."""
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """All tensors of the merge, in the order of the target, and what was decided for all of them."""

    entries: tuple[Entry, ...]
    head: Head
    classes: tuple[str, ...] | None
    """Class names of the merged head; None: not known."""
    notes: tuple[str, ...]
    """What a user should hear, in sentences."""

    @property
    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of every tensor of the merged file."""
        return {entry.name: (entry.dtype, entry.shape) for entry in self.entries if entry.treatment != "leave out"}


@dataclass(frozen=True)
class _Problem:
    """Why a tensor cannot be merged, and what to type for it."""

    sentence: str
    advice: str


def plan(
    weights: Sequence[Weights],
    parameters: Collection[str],
    head: Collection[str],
    options: MergeOptions,
    labels: Sequence[Sequence[str]] | None = None,
) -> Plan:
    """What becomes of each tensor.

    Args:
        weights: the checkpoints, under the model's names.
        parameters: names of the model's parameters; other floating-point tensors are statistics, and averaged.
        head: names of the tensors of the model's classifier head.
        options: the policies, and which checkpoint is the target.
        labels: class names of every checkpoint; None: not known.

    Raises:
        ValueError: tensors do not match and no policy is given for them (the first three are named), or the head cannot
            be as it is asked for.
    """
    if not any(name in parameters for each in weights for name in each.names):
        raise ValueError(
            f"{weights[0].path} shares no parameter with the model, found {weights[0].names[0]} there and "
            f"{next(iter(parameters), 'none')} in the model; name the checkpoints' own architecture"
        )
    _check_real(weights)
    policy, labels, notes = _head_policy(weights, head, options, labels)
    of_target = None if labels is None else tuple(labels[options.target - 1])
    ordered = [] if labels is None else [labels[options.target - 1], *labels]
    classes = union_of_classes(ordered) if policy == "by-name" else of_target
    has = tuple(frozenset(each.names) for each in weights)
    maker = _Maker(weights, has, frozenset(parameters), frozenset(head), options, policy, labels, classes)
    names = dict.fromkeys(name for each in (weights[options.target - 1], *weights) for name in each.names)
    found = [maker.entry(name) for name in names]
    problems = [each for each in found if isinstance(each, _Problem)]
    if problems:
        raise ValueError(_refusal(problems))
    entries = tuple(each for each in found if isinstance(each, Entry))
    if options.method == "fisher" and any("resampled" in entry.note for entry in entries):
        notes.append("the Fisher of resampled position embeddings is resampled too, and only approximate")
    return Plan(entries, policy, classes, tuple(notes))


def lines(plan: Plan) -> Iterator[str]:
    """The plan as text: name, treatment, shape, type and note of each tensor with tabs between, then a sum per
    treatment.
    """
    for entry in plan.entries:
        dtype = str(entry.dtype).removeprefix("torch.")
        yield "\t".join((printable(entry.name), entry.treatment, str(entry.shape), dtype, entry.note))
    for treatment in dict.fromkeys(entry.treatment for entry in plan.entries):
        same = [entry for entry in plan.entries if entry.treatment == treatment]
        values = sum(prod(entry.shape) for entry in same)
        yield f"total\t{treatment}\t{len(same)} tensor{'s' * (len(same) != 1)}\t{values} values\t"


def head_layout(weights: Weights, head: Collection[str]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of the head's tensors in one checkpoint: what a file of that head alone holds."""
    return {name: (weights.dtype(name), weights.shape(name)) for name in weights.names if name in head}


@dataclass(frozen=True)
class _Maker:
    """Makes the entry of one name, or tells why there is none."""

    weights: Sequence[Weights]
    has: Sequence[frozenset[str]]
    parameters: frozenset[str]
    head: frozenset[str]
    options: MergeOptions
    policy: Head
    labels: Sequence[Sequence[str]] | None
    classes: tuple[str, ...] | None

    def entry(self, name: str) -> Entry | _Problem:
        owners = tuple(model for model, names in enumerate(self.has) if name in names)
        source = self._source(owners)
        entry = Entry(
            name, "copy", self.weights[source].shape(name), self.weights[source].dtype(name), (source,),
            (None,) * len(self.weights),
        )  # fmt: skip
        if name in self.head and self.policy in ("target", "keep-all") and source == self._target:
            return replace(entry, note="the target's head")
        # A counter of training steps has no part in the scores, and some tools leave it out.
        if len(owners) < len(self.weights) and not name.endswith(COUNTER):
            return self._missing(replace(entry, models=owners))
        return self._matched(replace(entry, models=owners))

    def _source(self, owners: Sequence[int]) -> int:
        """The model whose shape and type count."""
        return self._target if self._target in owners else owners[0]

    @property
    def _target(self) -> int:
        """The target, counted from 0."""
        return self.options.target - 1

    def _missing(self, entry: Entry) -> Entry | _Problem:
        policy, owners = self.options.tensors, entry.models
        if policy == "error":
            lacking = next(model for model in range(len(self.weights)) if model not in owners)
            return _Problem(
                f"{entry.name}: {self.weights[owners[0]].path} {entry.shape}, not in {self.weights[lacking].path}",
                "--tensors union, intersection or target",
            )
        only = "only in checkpoint " + ", ".join(str(model + 1) for model in owners)
        if policy == "intersection" or (policy == "target" and self._target not in owners):
            return replace(entry, treatment="leave out", note=only)
        made = self._matched(entry)
        if isinstance(made, Entry):
            made = replace(made, note="; ".join(filter(None, (only, made.note))))
        return made

    def _matched(self, entry: Entry) -> Entry | _Problem:
        floating = {self.weights[model].dtype(entry.name).is_floating_point for model in entry.models}
        if len(floating) > 1:
            return self._mismatched(entry, "dtype")
        if entry.name in self.head and self.policy == "by-name" and self.classes is not None:
            return self._by_name(entry)
        shapes = [self.weights[model].shape(entry.name) for model in entry.models]
        if any(shape != entry.shape for shape in shapes):
            return self._resampled(entry)
        return self._treated(entry)

    def _treated(self, entry: Entry) -> Entry:
        """The entry where all tensors come into one shape."""
        if not entry.dtype.is_floating_point:
            counter = entry.name.endswith(COUNTER)
            return replace(entry, treatment="largest", dtype=torch.int64) if counter else replace(
                entry, treatment="equal"
            )  # fmt: skip
        own = {self.weights[model].dtype(entry.name) for model in entry.models} - {entry.dtype}
        converted = "converted from " + ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in own))
        entry = replace(entry, note="; ".join(filter(None, (entry.note, converted if own else ""))))
        if entry.name in self.parameters:
            return replace(entry, treatment="merge")
        mixture = entry.name.endswith(VARIANCE) and self.options.batch_norm == "mixture"
        has_means = all(mean_beside(entry.name) in self.has[model] for model in entry.models)
        return replace(entry, treatment="mixture" if mixture and has_means else "average")

    def _by_name(self, entry: Entry) -> Entry | _Problem:
        """Rows of one class come together, whatever their places."""
        assert self.labels is not None
        assert self.classes is not None
        for model in entry.models:
            shape, count = self.weights[model].shape(entry.name), len(self.labels[model])
            if shape[:1] != (count,):
                return _Problem(
                    f"{entry.name}: {self.weights[model].path} {shape}, for {count} class names",
                    "--class-names with one name per row of the head",
                )
        if len({self.weights[model].shape(entry.name)[1:] for model in entry.models}) > 1:
            return self._mismatched(entry, "shape")
        # A model without this tensor has none of its rows.
        fits = [
            rows_by_name(names if model in entry.models else (), self.classes)
            for model, names in enumerate(self.labels)
        ]
        shape = (len(self.classes), *entry.shape[1:])
        return self._treated(replace(entry, shape=shape, fits=tuple(fits), note="rows by class name"))

    def _resampled(self, entry: Entry) -> Entry | _Problem:
        """Position embeddings of another grid, if that is asked for."""
        if not (self.options.interpolate_pos_embed and _POSITIONS.search(entry.name)):
            return self._mismatched(entry, "shape")
        if not entry.dtype.is_floating_point:
            return replace(entry, models=(self._source(entry.models),), note="indices of the target's grid")
        fits = list(entry.fits)
        for model in entry.models:
            own = self.weights[model].shape(entry.name)
            if own != entry.shape:
                try:
                    resampled(torch.zeros(own), entry.shape, linear=True)
                except ValueError:
                    return self._mismatched(entry, "shape")
                fits[model] = Fit(
                    partial(resampled, shape=entry.shape, linear=False),
                    partial(resampled, shape=entry.shape, linear=True),
                )
        return self._treated(replace(entry, fits=tuple(fits), note="resampled"))

    def _mismatched(self, entry: Entry, what: Literal["shape", "dtype"]) -> Entry | _Problem:
        source = self._source(entry.models)
        if self.options.on_mismatch == "target":
            return replace(entry, models=(source,), note=f"of another {what} in some checkpoint")
        if self.options.on_mismatch == "skip":
            return replace(entry, treatment="leave out", note=f"of another {what} in some checkpoint")
        return self._mismatch(entry, source, what)

    def _mismatch(self, entry: Entry, source: int, what: Literal["shape", "dtype"]) -> _Problem:
        def told(model: int) -> str:
            each = self.weights[model]
            found = each.shape(entry.name) if what == "shape" else str(each.dtype(entry.name)).removeprefix("torch.")
            return f"{each.path} {found}"

        def kind(model: int) -> object:
            each = self.weights[model]
            return each.shape(entry.name) if what == "shape" else each.dtype(entry.name).is_floating_point

        other = next((model for model in entry.models if kind(model) != kind(source)), entry.models[-1])
        advice = "--on-mismatch target or skip"
        if entry.name in self.head:
            advice = "--head target, by-name or keep-all"
        elif _POSITIONS.search(entry.name) and not self.options.interpolate_pos_embed:
            advice += ", --interpolate-pos-embed"
        return _Problem(f"{entry.name}: {told(source)}, {told(other)}", advice)


def _check_real(weights: Sequence[Weights]) -> None:
    """Raises ValueError for complex numbers, of which there is no Fisher and which have no order."""
    for each in weights:
        for name in each.names:
            if each.dtype(name).is_complex:
                raise ValueError(
                    f"{each.path}: {name} holds complex numbers, expected real ones, which alone can be merged; "
                    "name checkpoints of a model without complex weights"
                )


def _head_policy(
    weights: Sequence[Weights],
    head: Collection[str],
    options: MergeOptions,
    labels: Sequence[Sequence[str]] | None,
) -> tuple[Head, Sequence[Sequence[str]] | None, list[str]]:
    """The policy that is meant, the class names if they are known, and what to tell of it."""
    asked = options.head
    if asked != "auto" and not head:
        raise ValueError(f"--head {asked} expects a model with a classifier head, found none; leave --head out")
    if labels is not None:
        check_classes(labels)
        same = len({frozenset(names) for names in labels}) == 1
        in_order = len({tuple(names) for names in labels}) == 1
        if asked in ("auto", "merge") and same:
            # The same classes in another order: rows come together by their names.
            return ("merge" if in_order else "by-name"), labels, []
        if asked == "merge":
            raise ValueError(
                "--head merge expects the same classes in all checkpoints, and --class-names differ; "
                "type --head by-name, target or keep-all"
            )
        notes = ["the checkpoints have different classes: the target's head is kept"] if asked == "auto" else []
        return ("target" if asked == "auto" else asked), labels, notes
    if asked == "by-name":
        raise ValueError("--head by-name expects the class names of every checkpoint; add --class-names FILE for each")
    if asked != "auto":
        return asked, None, []
    shapes = {tuple((name, each.shape(name)) for name in sorted(head) if name in each.names) for each in weights}
    if len(shapes) == 1:
        return "merge", None, [_ROW_BY_ROW] if shapes != {()} else []
    return "target", None, ["the checkpoints have different heads: the target's is kept; --head says otherwise"]


def _refusal(problems: Sequence[_Problem]) -> str:
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    first = "; ".join(problem.sentence for problem in problems[:3])
    advice = "; ".join(dict.fromkeys(problem.advice for problem in problems))
    return f"the checkpoints do not match: {first}{more}; choose {advice}"

"""How checkpoints are merged: the options, readable without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from xai_cli.options import Option, Options


@dataclass(frozen=True)
class MergeOptions(Options):
    """How checkpoints become one: the rule, the coefficients, and what becomes of tensors that do not match."""

    panel: ClassVar[str] = "Merge"

    method: Annotated[Literal["fisher", "average", "regmean"],
                      Option("Mean weighted by Fisher information, plain mean, or the linear layers' least squares "
                             "(RegMean).")] = "fisher"  # fmt: skip
    fisher: Annotated[list[Path] | None, Option("Statistics of each checkpoint, made by xai fisher; once per "
                                                "checkpoint, in their order.")] = None  # fmt: skip
    data: Annotated[list[Path] | None, Option("Pictures of each checkpoint, from which its statistics are computed; "
                                              "once for all, or once per checkpoint.")] = None  # fmt: skip
    coefficients: Annotated[str | None, Option("Weight of each checkpoint, as 0.5,0.5; equal if left out.")] = None
    grid: Annotated[int | None, Option("Try so many coefficients of two checkpoints, evenly spaced; needs --eval.",
                                       min=2, max=1001)] = None  # fmt: skip
    random: Annotated[int | None, Option("Try so many random coefficients; needs --eval.", min=1, max=10000)] = None
    eval: Annotated[list[Path] | None, Option("Folder of labelled pictures on which inputs and merge are scored; once "
                                              "per task.")] = None  # fmt: skip
    normalize: Annotated[Literal["l2", "trace", "none"],
                         Option("What each Fisher is divided by: its norm, its sum, or nothing.")] = "l2"  # fmt: skip
    floor: Annotated[float, Option("Least Fisher, as a part of the model's mean; where no model has more, the plain "
                                   "mean is taken.", min=0, max=1)] = 1e-6  # fmt: skip
    regmean_scale: Annotated[float, Option("RegMean: factor of the off-diagonal entries.", min=0, max=1)] = 0.9
    target: Annotated[int, Option("Checkpoint, counted from 1, whose head, types and order of classes are kept.",
                                  min=1)] = 1  # fmt: skip
    head: Annotated[Literal["auto", "target", "merge", "by-name", "keep-all"],
                    Option("The target's head, one merged like the rest, one with the classes of all by their names, "
                           "or a file for each; auto: merge where all have the same classes, else target.")] = (
        "auto"
    )  # fmt: skip
    class_names: Annotated[list[Path] | None, Option("Class names of each checkpoint, one per line, or JSON; once per "
                                                     "checkpoint.")] = None  # fmt: skip
    on_mismatch: Annotated[Literal["error", "target", "skip"],
                           Option("Tensors of different shape or kind: refuse, keep the target's, or leave out.")] = (
        "error"
    )  # fmt: skip
    tensors: Annotated[Literal["error", "union", "intersection", "target"],
                       Option("Tensors that some checkpoint lacks: refuse, take all, those that all have, or the "
                              "target's.")] = "error"  # fmt: skip
    interpolate_pos_embed: Annotated[bool, Option("Resample position embeddings to the target's grid.")] = False
    batch_norm: Annotated[Literal["mixture", "average"],
                          Option("Running variances: of all models' activations together, or the mean.")] = (
        "mixture"
    )  # fmt: skip
    recalibrate_bn: Annotated[Path | None, Option("Measure batch-norm statistics anew on these pictures.")] = None
    dry_run: Annotated[bool, Option("Print what would become of each tensor, and write nothing.")] = False

    def __post_init__(self) -> None:
        self._join_coefficients()
        super().__post_init__()
        given = [flag for flag, value in (("--coefficients", self.coefficients), ("--grid", self.grid),
                                          ("--random", self.random)) if value is not None]  # fmt: skip
        if len(given) > 1:
            raise ValueError(f"expected one way to choose coefficients, found {' and '.join(given)}; leave one out")
        if given and given[0] != "--coefficients" and not self.eval:
            raise ValueError(f"{given[0]} expects labelled pictures to score merges on, found none; add --eval DIR")
        if self.fisher and self.data:
            raise ValueError(
                "expected statistics or pictures to compute them from, found --fisher and --data; leave one out"
            )
        if self.method == "average" and (self.fisher or self.data):
            raise ValueError("--method average needs no statistics, found --fisher or --data; leave them out")

    def check_for(self, models: int) -> None:
        """Raises ValueError for options that do not fit so many checkpoints."""
        if models < 2:
            raise ValueError(f"a merge expects two checkpoints or more, found {models}; name them one after the other")
        if self.target > models:
            raise ValueError(f"--target expects 1 to {models} for {models} checkpoints, found {self.target}")
        if self.grid is not None and models != 2:
            raise ValueError(f"--grid expects two checkpoints, found {models}; try --random {self.grid}")
        for flag, paths in (("--fisher", self.fisher), ("--class-names", self.class_names)):
            if paths is not None and len(paths) != models:
                raise ValueError(f"{flag} expects one file per checkpoint, found {len(paths)} for {models} checkpoints")
        if self.data is not None and len(self.data) not in (1, models):
            raise ValueError(f"--data expects one folder, or one for each of {models} checkpoints, "
                             f"found {len(self.data)}")  # fmt: skip
        if not (self.fisher or self.data or self.method == "average" or self.dry_run):
            raise ValueError(f"--method {self.method} expects statistics of every checkpoint, found none; give "
                             "--fisher FILE or --data DIR, or take --method average")  # fmt: skip
        self.coefficients_for(models)

    def _join_coefficients(self) -> None:
        """Coefficients as a list, which YAML gives, also as the text of one, become text like any other."""
        given: object = self.coefficients
        if isinstance(given, list | tuple):
            given = ",".join(map(str, given))
        if isinstance(given, str):
            joined = ",".join(part.strip() for part in given.strip("[] ").split(","))
            object.__setattr__(self, "coefficients", joined)

    def coefficients_for(self, models: int) -> tuple[float, ...]:
        """One coefficient per checkpoint as given, equal ones by default. Raises ValueError if they cannot be so."""
        if self.coefficients is None:
            return (1 / models,) * models
        try:
            values = tuple(map(float, self.coefficients.split(",")))
        except ValueError:
            values = ()
        if not are_coefficients(values, models):
            raise ValueError(f"--coefficients expects {models} numbers of 0 or more with commas between, not all 0, "
                             f"found {self.coefficients!r}; "
                             f"type --coefficients {','.join(['1'] * models)} for equal ones")  # fmt: skip
        return values


def are_coefficients(values: Sequence[float], models: int) -> bool:
    """Whether these are finite numbers of 0 or more, not all 0, as many as models."""
    return len(values) == models and all(0 <= value < math.inf for value in values) and any(values)

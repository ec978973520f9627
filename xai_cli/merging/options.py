"""How Fisher information is estimated: the options, readable without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from xai_cli.options import Option, Options

Estimator = Literal["expected", "importance", "eig", "sampled", "empirical"]

_FEW_CLASSES = 16
# At 1000 classes the rotated factors of 32 capture as much as the true eigenvectors do.
ROTATED = 32
"""Of so many classes, those of largest w, does `eig` rotate the factors."""
EXACT = ("expected", "empirical")
"""Estimators that draw nothing: probes and seed do not matter to them."""


@dataclass(frozen=True)
class FisherOptions(Options):
    """How the diagonal of the Fisher information is estimated, and from how many pictures."""

    panel: ClassVar[str] = "Fisher"

    estimator: Annotated[
        Literal["auto", "expected", "importance", "eig", "sampled", "empirical"],
        Option("expected (exact, one way back per class), importance (classes drawn by what they contribute), eig (the "
               "longest directions exactly, one drawn of the rest), sampled (classes drawn by their probability), "
               "empirical (the given labels: biased), or auto: expected up to 16 classes, else importance."),
    ] = "auto"  # fmt: skip
    probes: Annotated[
        int, Option("Ways back per picture: of importance and sampled the draws, of eig its directions and one.", min=1)
    ] = 1
    count: Annotated[int, Option("At most so many pictures, evenly spaced over their sorted list.", min=1,
                                 short="n")] = 1024  # fmt: skip
    seed: Annotated[int, Option("Where draws begin, together with each picture's name.", min=0,
                                max=2**63 - 1)] = 0  # fmt: skip
    batch_size: Annotated[int, Option("Pictures per pass; the result does not depend on it.", min=1)] = 8
    params: Annotated[str | None, Option("Only parameters in whose name this regular expression is found.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "eig" and not 2 <= self.probes <= ROTATED + 1:
            raise ValueError(f"--estimator eig expects --probes of 2 to {ROTATED + 1}, its directions and one draw of "
                             f"the rest, found {self.probes}; give --probes 2")  # fmt: skip
        if self.estimator in EXACT and self.probes > 1:
            raise ValueError(f"--probes has no effect with --estimator {self.estimator}; leave it out")
        try:
            re.compile(self.params or "")
        except re.error as error:
            raise ValueError(f"--params expects a regular expression, found {self.params!r}: {error}") from error

    def estimator_for(self, classes: int) -> Estimator:
        """The estimator of a model with so many classes: what `auto` stands for."""
        if self.estimator != "auto":
            return self.estimator
        return "expected" if classes <= _FEW_CLASSES else "importance"

    def ways_back(self, classes: int) -> int:
        """How often the estimator goes back through the model for one picture."""
        return {"expected": classes, "empirical": 1}.get(self.estimator_for(classes), self.probes)

    def settings_for(self, classes: int) -> dict[str, Any]:
        """What decides the Fisher of a model with so many classes, by its name in `About`; what does not is left at 0.

        Raises ValueError as `check_for`.
        """
        self.check_for(classes)
        estimator = self.estimator_for(classes)
        return {
            "estimator": estimator,
            "probes": self.ways_back(classes),
            "seed": 0 if estimator in EXACT else self.seed,
            "params": self.params or "",
        }

    def check_for(self, classes: int) -> None:
        """Raises ValueError for more probes than the estimator takes of a model with so many classes."""
        estimator = self.estimator_for(classes)
        if estimator in EXACT and self.probes > 1:
            raise ValueError(f"--probes {self.probes} has no effect with --estimator {estimator}, which is taken for "
                             f"{classes} classes; leave it out, or give --estimator importance")  # fmt: skip
        if estimator == "eig" and self.probes > classes:
            raise ValueError(f"--estimator eig expects --probes of at most {classes} for {classes} classes, found "
                             f"{self.probes}; give --estimator expected")  # fmt: skip

"""Which coefficients merge best: candidates, their scores, the best of them, and a table of all.

Equal coefficients are always the first candidate, so they win every tie and no search ends below them. Candidates of
two models lie on a grid, as in Matena & Raffel (2022); of more they are drawn from the flat Dirichlet distribution.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from xai_cli.outputs.files import write_atomically

Coefficients = tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One candidate with what it scored on each task."""

    coefficients: Coefficients
    scores: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The mean over the tasks, each counting the same."""
        return fmean(self.scores.values())


def grid(count: int) -> list[Coefficients]:
    """Equal coefficients, then those of two models in `count` even steps from (1, 0) to (0, 1).

    With an odd count equal coefficients are one of the steps and stand in their place no more. Raises ValueError for
    less than two steps.
    """
    if count < 2:
        raise ValueError(f"a grid expects 2 steps or more, from (1, 0) to (0, 1), found {count}; give --grid 11")
    steps: list[Coefficients] = [(1 - step / (count - 1), step / (count - 1)) for step in range(count)]
    return _equal_first(2, steps)


def dirichlet(count: int, models: int, seed: int) -> list[Coefficients]:
    """Equal coefficients, then `count` draws of those of so many models, each non-negative and of sum 1.

    Any such coefficients are equally likely. A seed gives the same on every machine, and more draws begin with the
    same ones.
    """
    source = random.Random(seed)
    draws: list[Coefficients] = []
    for _ in range(count):
        parts = [-math.log(1 - source.random()) for _ in range(models)]
        total = math.fsum(parts)
        draws.append(tuple(part / total for part in parts))
    return _equal_first(models, draws)


def search(
    candidates: Sequence[Coefficients],
    score: Callable[[Coefficients], Mapping[str, float]],
    *,
    partial: Path | None = None,
    request: str = "",
) -> list[Trial]:
    """Every candidate's trial, in order.

    What is done is kept in the file `partial` after each trial and taken from there the next time, if the `request` is
    the same: it must then name all that a score depends on. The caller removes the file when its own result is written.
    """
    done = {} if partial is None else _kept(partial, request)
    for candidate in candidates:
        if candidate in done:
            continue
        done[candidate] = Trial(candidate, dict(score(candidate)))
        if partial is not None:
            rows = [[trial.coefficients, trial.scores] for trial in done.values()]
            write_atomically(partial, json.dumps({"request": request, "trials": rows}).encode())
    return [done[candidate] for candidate in candidates]


def begun(partial: Path, request: str) -> bool:
    """Whether `partial` keeps trials of a search for this request."""
    return bool(_kept(partial, request))


def best(trials: Sequence[Trial]) -> Trial:
    """The trial of the largest mean, of equal ones the first."""
    return max(trials, key=lambda trial: trial.mean)


def write_table(path: Path, trials: Sequence[Trial]) -> None:
    """Write the trials as CSV, whole or not at all: coefficients, accuracy of each task, their mean; a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    models = range(1, len(trials[0].coefficients) + 1)
    tasks = list(trials[0].scores)
    writer.writerow([*(f"coefficient_{n}" for n in models), *(f"accuracy_{task}" for task in tasks), "mean"])
    for trial in trials:
        writer.writerow([*trial.coefficients, *(trial.scores[task] for task in tasks), trial.mean])
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _equal_first(models: int, candidates: list[Coefficients]) -> list[Coefficients]:
    equal = (1 / models,) * models
    return [equal, *(candidate for candidate in candidates if candidate != equal)]


def _kept(partial: Path, request: str) -> dict[Coefficients, Trial]:
    """The trials of an earlier, interrupted search for the same; none where that cannot be read."""
    try:
        content = json.loads(partial.read_bytes())
        if content["request"] != request:
            return {}
        return {tuple(coefficients): Trial(tuple(coefficients), scores) for coefficients, scores in content["trials"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}

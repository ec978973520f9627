"""Adaptive sampling: every picture gets samples until what is chance in its maps is small enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from xai_cli.methods.masking import Masking
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

Tolerance = Annotated[
    float,
    Option("A picture gets no more samples once the spread of its maps, of all its targets, is at most this; with 0 "
           "each gets all.", min=0),
]  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What samples say of one picture, for each of its T targets and P places (segments, pixels).

    Attributes:
        values: `(T, P)`.
        errors: `(T, P)`, their standard errors; None if there is nothing random about them.
        sizes: `(P,)`, pixels of each place.
        checks: `{name: (T,)}`, what else was measured.
        samples: how many masked pictures that rests on.
    """

    values: Tensor
    errors: Tensor | None
    sizes: Tensor
    checks: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0

    @property
    def spread(self) -> Tensor:
        """Length `(T,)` of the error of the map over that of the map; 0 where there is no error."""
        import torch

        if self.errors is None:
            return torch.zeros(len(self.values))
        error, length = ((self.sizes.to(each) * each.square()).sum(dim=1).sqrt() for each in (self.errors, self.values))
        return torch.where(error == 0, 0, error / length)


def checks_of(estimates: Sequence[Estimate], rank: int) -> dict[str, Tensor]:
    """What was measured of each picture's map for one target, `{name: (B,)}`."""
    import torch

    measured: dict[str, list[float]] = {"evaluations": [each.samples for each in estimates]}
    if estimates[0].errors is not None:
        measured["spread"] = [float(each.spread[rank]) for each in estimates]
    for name in estimates[0].checks:
        measured[name] = [float(each.checks[name][rank]) for each in estimates]
    return {name: torch.tensor(values) for name, values in measured.items()}


def sampled(
    masking: Masking,
    tolerance: float,
    blocks: Sequence[int],
    estimate: Callable[[Sequence[int], Sequence[Tensor]], Sequence[Estimate]],
    *,
    first: int = 1,
    ends: int = 0,
) -> list[Estimate]:
    """The estimate of every picture of the batch.

    `estimate` takes pictures and the scores `(S_b, T)` of each, and must give each picture the same whatever others are
    beside it. The samples of a picture are `ends` that are not random, and then a multiple of its `blocks[b]`, or all
    that there are; it looks after the `first` blocks, and then each round adds a quarter.
    """
    import torch

    rows, done = [*range(len(masking.evidence.inputs))], first
    begin = [min(ends + first * block, count) for block, count in zip(blocks, masking.counts, strict=True)]
    masking, scores, agreement = masking.settled(
        [torch.arange(stop) for stop in begin], lambda row, scores: estimate([row], [scores])[0].values
    )
    found: dict[int, Estimate] = {}
    while rows:
        stops = [masking.counts[row] for row in rows]
        if tolerance:
            stops = [min(ends + done * blocks[row], most) for row, most in zip(rows, stops, strict=True)]
        _extend(scores, masking, rows, stops)
        made = estimate(rows, [scores[row] for row in rows])
        found |= {row: replace(each, samples=stop) for row, each, stop in zip(rows, made, stops, strict=True)}
        # Written so that NaN is not small enough.
        rows = [
            row
            for row, stop, each in zip(rows, stops, made, strict=True)
            if stop < masking.counts[row] and not bool((each.spread <= tolerance).all())
        ]
        done += max(1, done // 4)
    return [_agreeing(found[row], None if agreement is None else agreement[row]) for row in range(len(found))]


def _agreeing(estimate: Estimate, agreement: Tensor | None) -> Estimate:
    """The estimate with what was measured of its precision."""
    if agreement is None:
        return estimate
    return replace(estimate, checks={**estimate.checks, "bfloat16_agreement": agreement.expand(len(estimate.values))})


def _extend(scores: list[Tensor], masking: Masking, rows: Sequence[int], stops: Sequence[int]) -> None:
    """Adds to the scores of each of these pictures those of its next samples."""
    import torch

    new = masking.of(rows, [torch.arange(len(scores[row]), stop) for row, stop in zip(rows, stops, strict=True)])
    for row, more in zip(rows, new, strict=True):
        scores[row] = torch.cat([scores[row], more])

"""Adaptive sampling: every picture gets samples until what is chance in its maps is small enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from xai_cli.methods.masking import Masking
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

Tolerance = Annotated[
    float,
    Option("A picture gets no more samples once the spread of its maps is below this; with 0 each gets all.", min=0),
]


@dataclass(frozen=True)
class Estimate:
    """What samples say of one picture, for each of its T targets and P places (segments, pixels).

    Attributes:
        values: `(T, P)`.
        errors: `(T, P)`, their standard errors.
        sizes: `(P,)`, pixels of each place.
        checks: `{name: (T,)}`, what else was measured.
    """

    values: Tensor
    errors: Tensor
    sizes: Tensor
    checks: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def spread(self) -> Tensor:
        """Length `(T,)` of the error of the map over that of the map; 0 where there is no error."""
        import torch

        error, length = ((self.sizes.to(each) * each.square()).sum(dim=1).sqrt() for each in (self.errors, self.values))
        return torch.where(error == 0, 0, error / length)


def sampled(
    masking: Masking,
    tolerance: float,
    blocks: Sequence[int],
    estimate: Callable[[Sequence[int], Sequence[Tensor]], Sequence[Estimate]],
) -> list[tuple[Estimate, int]]:
    """The estimate of every picture of the batch, and on how many samples it rests.

    `estimate` takes pictures and the scores `(S_b, T)` of each, and must give each picture the same whatever others are
    beside it. The samples of a picture are a multiple of its `blocks[b]`, or all that there are; after the first blocks
    each round adds a quarter.
    """
    inputs = masking.evidence.inputs
    rows, done = [*range(len(inputs))], 0
    scores = [inputs.new_empty(0, len(masking.evidence.everyone)) for _ in rows]
    found: dict[int, tuple[Estimate, int]] = {}
    while rows:
        done += max(1, done // 4)
        stops = [min(done * blocks[row], masking.counts[row]) if tolerance else masking.counts[row] for row in rows]
        _extend(scores, masking, rows, stops)
        made = estimate(rows, [scores[row] for row in rows])
        found |= zip(rows, zip(made, stops, strict=True), strict=True)
        # Written so that NaN is not small enough.
        rows = [
            row
            for row, stop, each in zip(rows, stops, made, strict=True)
            if stop < masking.counts[row] and not bool((each.spread <= tolerance).all())
        ]
    return [found[row] for row in range(len(found))]


def _extend(scores: list[Tensor], masking: Masking, rows: Sequence[int], stops: Sequence[int]) -> None:
    """Adds to the scores of each of these pictures those of its next samples."""
    import torch

    new = masking.of(rows, [torch.arange(len(scores[row]), stop) for row, stop in zip(rows, stops, strict=True)])
    for row, more in zip(rows, new, strict=True):
        scores[row] = torch.cat([scores[row], more])

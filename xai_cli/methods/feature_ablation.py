"""Feature ablation: what the score loses when one segment of the picture is hidden.

    R_i = f(x) - f(x without the segment of i)

Segments are those of colours, of a grid, or given as files: parts that a person has outlined, say. Of a score that is
linear in the pixels, R is the segment's share of the change from the fill to the picture. As with occlusion, what
several segments do together is not seen: of two that each alone are enough for the class, hiding one costs nothing.

Known as leave-one-covariate-out; of images: Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013
(arXiv:1311.2901), with windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.contract import Evidence
from xai_cli.methods.sampling import Estimate
from xai_cli.methods.segmented import SegmentMethod, Segments

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FeatureAblation(SegmentMethod):
    """What the score loses when one segment of the picture is hidden; signed (Zeiler and Fergus 2013)."""

    name: ClassVar[str] = "feature-ablation"

    def estimates(self, evidence: Evidence, segments: Segments) -> tuple[list[tuple[Estimate, int]], dict[str, Tensor]]:
        import torch

        present = [~torch.eye(count, dtype=torch.bool) for count in segments.counts]
        masking, checks = self.hidden(evidence, segments, present, usual=self.segments)
        scores = masking.of(range(len(present)), [torch.arange(count) for count in segments.counts])
        made = []
        for row, (whole, without) in enumerate(zip(masking.whole(), scores, strict=True)):
            values = (whole - without).T
            made.append((Estimate(values, torch.zeros_like(values), segments.sizes(row)), len(without)))
        return made, checks

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
from typing import ClassVar

from xai_cli.methods.contract import Evidence
from xai_cli.methods.perturbation import losses
from xai_cli.methods.sampling import Estimate
from xai_cli.methods.segmented import SegmentMethod, Segments


@dataclass(frozen=True)
class FeatureAblation(SegmentMethod):
    """What the score loses when one segment of the picture is hidden; signed (Zeiler and Fergus 2013)."""

    name: ClassVar[str] = "feature-ablation"

    def estimates(self, evidence: Evidence, segments: Segments) -> list[Estimate]:
        import torch

        present = [~torch.eye(count, dtype=torch.bool) for count in segments.counts]
        found, checks = losses(self.hidden(evidence, segments, present, usual=self.segments))
        made = []
        for row, lost in enumerate(found):
            measured = {name: values[row].expand(lost.shape[1]) for name, values in checks.items()}
            made.append(Estimate(lost.T, None, segments.sizes[row], measured, samples=len(lost) + 1))
        return made

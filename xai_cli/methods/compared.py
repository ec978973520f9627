"""Methods that compare each picture with baselines; what `ig` and `deeplift` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from xai_cli.methods.baselines import Baselines, made_baseline, noise, read_folder, read_picture
from xai_cli.methods.contract import Evidence, Method
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier

Baseline = Annotated[
    Literal["mean", "zero", "black", "white", "blur", "noise", "image", "folder"],
    Option("What is compared with: a colour (mean and zero are the same, what the model calls zero), the picture "
           "blurred, pictures of noise, another picture, or those of a folder; of several the maps are averaged."),
]  # fmt: skip


@dataclass(frozen=True)
class ComparedMethod(Method):
    """The change of the score from baselines to the picture, divided among its pixels; of several the mean."""

    baseline: Baseline = "mean"
    baseline_image: Annotated[Path | None, Option("The picture of --baseline image.")] = None
    baseline_folder: Annotated[Path | None, Option("The pictures of --baseline folder.")] = None
    baselines: Annotated[
        int,
        Option("How many pictures to compare with: of noise, or of the folder, the first in the order of names.",
               min=1, max=1000),
    ] = 10  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, given in (("image", self.baseline_image), ("folder", self.baseline_folder)):
            if self.baseline == kind and given is None:
                raise ValueError(f"--baseline {kind} expects --baseline-{kind}, found none; add --baseline-{kind} PATH")
            if self.baseline != kind and given is not None:
                found = f"--baseline {self.baseline}"
                raise ValueError(f"--baseline-{kind} expects --baseline {kind}, found {found}; add --baseline {kind}")

    def baselines_of(self, evidence: Evidence) -> Baselines:
        """What the pictures of a batch are compared with."""
        pictures, notes = self.read_baselines(evidence.classifier)
        if pictures is not None:
            read = pictures.to(evidence.inputs)
            return Baselines(len(read), lambda _, numbers: read[numbers], common=True, notes=notes)
        if self.baseline == "noise":
            return Baselines(self.baselines, lambda rows, numbers: noise(evidence, rows, numbers), common=False)
        made = made_baseline(self.baseline, evidence.inputs, evidence.classifier)
        return Baselines(1, lambda rows, _: made[rows], common=self.baseline != "blur")

    def read_baselines(self, classifier: Classifier) -> tuple[Tensor | None, tuple[str, ...]]:
        """The pictures to compare with `(S, C, h, w)`, if they come from files, and what to say of broken ones.

        Raises ValueError if there is none.
        """
        if self.baseline_image is not None:
            return read_picture(self.baseline_image, classifier, "--baseline-image"), ()
        if self.baseline_folder is not None:
            return read_folder(self.baseline_folder, self.baselines, classifier)
        return None, ()


def completeness_gap(relevance: Tensor, change: Tensor) -> Tensor:
    """`|sum R - change| / |change|` `(B,)` of maps `(B, h, w)` that share out a `change` `(B,)` of the score."""
    import torch

    # Summed one by one, because a sum of many maps at once may round otherwise.
    missing = (torch.stack([each.sum() for each in relevance]) - change).abs()
    # A picture that is its own baseline has nothing to explain: 0 / 0 is a gap of 0.
    return torch.where(missing == 0, 0, missing / change.abs())

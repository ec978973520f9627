"""XRAI: the regions of the picture in order of how much score lies in them per pixel.

    R = mean over the region of A,    A = (ig from black + ig from white) / 2

Regions of like colour at six scales, overlapping, compete: again and again the one wins whose pixels that are not taken
yet have the largest mean of A, until none brings enough new pixels. What is left over is one last region. A pixel shows
the mean of the region that took it, so the best regions have the largest values, and the map still adds up to what A
does: sum R = f(x) - (f(black) + f(white)) / 2, up to the error of A that is measured for every picture as
`completeness_gap`. `segments` is the number of regions. Its borders are those of colours; that a whole object lights
up says that some of it matters, not that all of it does.

As published, but A is summed over the colour channels, where the authors' code takes the largest of them, and how many
pixels a region grows by, and must bring, is scaled from 224 x 224 to the picture.

Kapishnikov, Bolukbasi, Viegas, Terry: XRAI: Better Attributions Through Regions, 2019 (arXiv:1906.02825).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.compared import completeness_gap
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.options import Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier

_COLOURS: tuple[Literal["black"], Literal["white"]] = ("black", "white")
_SCALES = (50, 100, 150, 250, 500, 1200)
# For pictures of 224 x 224, and scaled with others.
_RADIUS = 5  # pixels by which a region grows, so that it holds its own outline
_FEWEST = 50  # new pixels that a region must bring


@dataclass(frozen=True)
class Xrai(Method):
    """Regions of like colour, ranked by their mean of integrated gradients; signed (Kapishnikov 2019)."""

    name: ClassVar[str] = "xrai"
    family: ClassVar[str] = "gradient"

    steps: Annotated[
        int, Option("Gradients per picture for each of black and white, before any more.", min=1, max=100_000)
    ] = 16
    tolerance: Annotated[
        float, Option("Largest completeness gap of each, over which a picture gets more gradients; 0 for none.", min=0)
    ] = 0.01

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(logits=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        import torch

        assert evidence.logits is not None
        both = [
            IntegratedGradients(steps=self.steps, tolerance=self.tolerance, baseline=colour).attribute(evidence)
            for colour in _COLOURS
        ]
        integrated = (both[0].relevance + both[1].relevance) / 2
        relevance, segments = torch.empty_like(integrated), torch.empty_like(integrated[:, 0, 0])
        pixels = evidence.classifier.pixels(evidence.inputs)
        for row, (values, picture) in enumerate(zip(integrated.cpu().double().numpy(), pixels, strict=True)):
            densities, count = ranked(values, *regions(picture))
            relevance[row], segments[row] = torch.from_numpy(densities), count
        gap = completeness_gap(relevance, evidence.scores(evidence.logits) - _begin(evidence))
        return Attribution(relevance, signed=True, checks={"completeness_gap": gap, "segments": segments})


def _begin(evidence: Evidence) -> Tensor:
    """The mean score of black and white `(B,)`."""
    import torch

    with torch.no_grad():
        colours = (evidence.classifier.colour(colour).to(evidence.inputs) for colour in _COLOURS)
        # One row at a time: what serves every picture need not fill a chunk.
        logits = [evidence.classifier.logits(colour).expand(len(evidence.inputs), -1) for colour in colours]
    return torch.stack([evidence.scores(each) for each in logits]).mean(dim=0)


def regions(picture: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of pixel and region, as two arrays: what lies in the overlapping regions of a picture `(h, w, C)`.

    Pixels are numbered row by row, regions from 0 on.
    """
    import numpy as np

    from xai_cli.images.segments import dilated, felzenszwalb

    height, width = picture.shape[:2]
    radius = round(_RADIUS * (height * width) ** 0.5 / 224)
    pixels, owners, known = [], [], 0
    for labels in felzenszwalb(picture, _SCALES):
        masks = dilated(labels, radius).reshape(height * width, -1)
        pixel, owner = np.nonzero(masks)
        pixels.append(pixel)
        owners.append(owner + known)
        known += masks.shape[1]
    return np.concatenate(pixels), np.concatenate(owners)


def ranked(
    values: NDArray[np.float64], pixels: NDArray[np.intp], owners: NDArray[np.intp]
) -> tuple[NDArray[np.float64], int]:
    """The map `(h, w)` of the regions' means, and how many there are; `values` `(h, w)`, the regions as pairs."""
    import numpy as np

    fewest = max(1, round(_FEWEST * values.size / 224**2))
    flat, densities, free = values.ravel(), np.empty(values.size), np.ones(values.size, np.bool_)
    chosen = 0
    while len(pixels):
        counts = np.bincount(owners)
        sums = np.bincount(owners, weights=flat[pixels])
        gains = np.where(counts < fewest, -np.inf, sums / counts.clip(1))
        best = gains.argmax()
        if counts[best] < fewest:
            break
        new = pixels[owners == best]
        densities[new], free[new] = gains[best], False
        pixels, owners = pixels[free[pixels]], owners[free[pixels]]
        chosen += 1
    if free.any():
        densities[free] = flat[free].mean()
        chosen += 1
    return densities.reshape(values.shape), chosen

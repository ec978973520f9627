"""Extremal perturbation: the smooth region of a given area that by itself keeps the score highest.

It is searched for by gradients: other than the rest of its family it wants a model that can be differentiated.

    R = mean over the areas a of m_a
    m_a = argmax_m  f(m x + (1 - m) fill) / |f(x) - f(fill)|  -  lambda mean_i (vecsort(m)_i - r_i)^2

r is 1 for the largest values, a share a of all, and 0 for the others: so the mask is pushed to be 0 or 1 and to have
the area that was asked for. It is a small grid of parameters p in 0..1, enlarged by a smooth maximum over discs,

    m(u) = smax_v k(|u - v| / radius) p(v),    smax s = sum_v s_v exp(20 s_v) / sum_v exp(20 s_v),
    k(z) = exp(-2 max(0, z - 1/2)^2)

which keeps it as smooth as the discs and still lets it reach 1; between the places of the grid it is bilinear. p is
found by gradient ascent with momentum. Meanwhile lambda grows from 0 to 300, so that the score orders the places before
the area binds them, and the steps get shorter, so that they end in one place.

What the map shows is enough for the score, not all that matters to it: of two objects one may do. It is the best of
what lies uphill from a mask of three quarters, perhaps not the best of all. Areas much below that of a disc,
3 radius^2, cannot be had. `area_gap` is the largest |mean m_a - a| / a, `score_kept` the share of
f(x) - f(fill) that the mask of the largest area leaves, 1 for all of it, and `last_gain` by how much of f(x) - f(fill)
the last tenth of the steps still changed a score: near 0 the masks have settled. Where f(x) and f(fill) are the same
but for rounding no region is better than another, and the map is zeros.

In the paper a pixel is blurred the more the less of it is seen; here it fades into the fill. And there the score is
not divided by anything, so that lambda means another thing for every model; here all have the same.

Fong, Patrick, Vedaldi: Understanding Deep Networks via Extremal Perturbations and Smooth Masks, 2019
(arXiv:1910.08485).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.baselines import made_baseline
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier

_SHARPNESS = 20  # one over the temperature of the smooth maximum, as in the paper
_MOMENTUM = 0.9
_RATE = 0.1  # of a step, in shares of the way from nothing to all of a picture
_LAMBDA = 300.0  # less leaves areas too large, more from the start keeps the first region found
_ROUNDING = 1e-5  # of the largest logit, up to which a change of the score is none


@dataclass(frozen=True)
class Discs:
    """Masks made of overlapping discs around the places of a grid.

    Attributes:
        shape: places down and across.
        kernel: `(places, places)`, how far the disc around one place covers another.
        sides: height and width of a mask.
    """

    shape: tuple[int, int]
    kernel: Tensor
    sides: tuple[int, int]

    @classmethod
    def of(cls, inputs: Tensor, radius: float) -> Discs:
        """Discs for pictures like `inputs`, of a radius that is a share of the longer side, two places to a radius."""
        import torch

        height, width = inputs.shape[-2:]
        radius *= max(height, width)
        down, across = (max(1, round(2 * side / radius)) for side in (height, width))
        centres = [(torch.arange(count) + 0.5) * side / count for count, side in ((down, height), (across, width))]
        places = torch.cartesian_prod(*centres).double()
        # Without a product of matrices, whose rounding would leave a place some way from itself.
        distance = (places[:, None] - places).norm(dim=2)
        kernel = (-2 * (distance / radius - 0.5).clamp_min(0).square()).exp()
        return cls((down, across), kernel.to(inputs), (height, width))

    def masks(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The masks at the places `(n, places)` and at all pixels `(n, 1, h, w)`, from `parameters` `(n, places)`."""
        from torch.nn.functional import interpolate

        discs = parameters[:, None] * self.kernel
        values = (discs * (_SHARPNESS * discs).softmax(dim=-1)).sum(dim=-1)
        grids = values.unflatten(1, (1, *self.shape))
        return values, interpolate(grids, self.sides, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class ExtremalPerturbation(Method):
    """The smooth region of a given area that by itself keeps the score highest (Fong 2019)."""

    name: ClassVar[str] = "extremal-perturbation"
    family: ClassVar[str] = "perturbation"
    trial: ClassVar[Mapping[str, object]] = {"steps": 5}

    areas: Annotated[
        list[float],
        Option("Share of the picture that the region has, repeated for several regions, which are averaged.",
               min=0.005, max=0.995),
    ] = (0.1,)  # type: ignore[assignment]  # fmt: skip  # becomes a list, and a default must not change
    steps: Annotated[int, Option("Steps of the search, each one gradient per area.", min=1, max=100_000)] = 100
    radius: Annotated[
        float, Option("Radius of the discs the region is made of, as share of the longer side.", min=0.05, max=0.5)
    ] = 0.09
    fill: Annotated[
        Literal["blur", "mean", "black", "white"],
        Option("What pixels outside the region become: the picture blurred, the colour the model calls zero (mean), or "
               "another colour."),
    ] = "blur"  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.areas:
            raise ValueError("--areas expects at least one share of the picture, found none; give --areas 0.1")

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(logits=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        import torch

        assert evidence.logits is not None
        inputs, areas = evidence.inputs, evidence.inputs.new_tensor(self.areas)
        fill, discs = made_baseline(self.fill, inputs, evidence.classifier), Discs.of(inputs, self.radius)
        with torch.no_grad():
            parts = [evidence.scores(evidence.classifier.logits(fill[rows]), rows)[:n] for rows, n in evidence.parts()]
        hidden = torch.cat(parts)
        change = evidence.scores(evidence.logits) - hidden
        same = change.abs() <= _ROUNDING * evidence.logits.abs().amax(dim=1)
        same |= (inputs == fill).flatten(1).all(dim=1)
        # A change of nothing has no scale.
        scale = change.abs().masked_fill(same, 1)
        found = []
        for rows, numbers, real in evidence.chunks(len(areas)):
            made = self._search(evidence, discs, fill[rows], scale[rows], rows, areas[numbers])
            found.append([each[:real] for each in made])
        masks, before, after = (torch.cat(each).unflatten(0, (-1, len(areas))) for each in zip(*found, strict=True))
        kept = (after[:, areas.argmax()] - hidden) / change
        checks = {
            "area_gap": ((masks.mean(dim=(2, 3)) - areas).abs() / areas).amax(dim=1),
            "score_kept": kept.masked_fill(same, 1),
            "last_gain": (after - before).abs().amax(dim=1) / scale,
        }
        relevance = masks.mean(dim=1).masked_fill(same[:, None, None], 0)
        return Attribution(relevance, signed=False, checks=checks)

    def _search(
        self, evidence: Evidence, discs: Discs, fill: Tensor, scale: Tensor, rows: Tensor, areas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The masks `(n, h, w)` of pictures `rows`, each of its area, and their scores when a tenth of the steps was
        left and at the end, both `(n,)`.
        """
        import torch

        difference, places = evidence.inputs[rows] - fill, len(discs.kernel)
        # From a mask of one half everywhere some searches end where the score is as flat as without the picture.
        parameters = fill.new_full((len(rows), places), 0.75)
        velocity, before = torch.zeros_like(parameters), torch.empty_like(scale)
        # Of the sorted values the last, the largest, are to be 1, and of the one between a part.
        wanted = (areas[:, None] * places - torch.arange(places, device=areas.device).flip(0)).clamp(0, 1)
        for step in range(self.steps):
            done = step / self.steps
            with torch.enable_grad():
                leaves = parameters.requires_grad_()
                values, masks = discs.masks(leaves)
                penalty = (values.sort(dim=1, stable=True).values - wanted).square().mean(dim=1)
            logits, gradient = evidence.logits_and_gradient(fill + masks.detach() * difference, rows)
            if step == int(0.9 * self.steps):
                before = evidence.scores(logits, rows)
            # The score goes with a pixel of the mask as it goes with its colours, each by how far that moves.
            rise = (gradient * difference).sum(dim=1, keepdim=True) / scale[:, None, None, None]
            weight = torch.full_like(penalty, 1 - _LAMBDA**done)
            (ascent,) = torch.autograd.grad([masks, penalty], [leaves], [rise, weight])
            velocity = _MOMENTUM * velocity + (1 - _MOMENTUM) * places * ascent
            parameters = (parameters.detach() + _RATE * (1 - done) * velocity).clamp(0, 1)
        with torch.no_grad():
            masks = discs.masks(parameters)[1]
            after = evidence.scores(evidence.classifier.logits(fill + masks * difference), rows)
        return masks[:, 0], before, after

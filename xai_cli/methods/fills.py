"""What hidden parts of a picture become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from xai_cli.methods.baselines import made_baseline, noise, read_picture
from xai_cli.methods.contract import Evidence
from xai_cli.methods.masking import taken
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.methods.masking import Fill

FillKind = Annotated[
    Literal["mean", "black", "white", "blur", "noise", "inpaint", "image"],
    Option("What hidden pixels become: a colour (mean is what the model calls zero), the picture blurred, noise drawn "
           "once per picture, the mean of what is seen nearby, or another picture."),
]  # fmt: skip


def fill_of(kind: str, image: Path | None, evidence: Evidence) -> Fill:
    """The fill called `kind`, of the picture in the file `image` if that is what it is."""
    import torch

    inputs = evidence.inputs.contiguous()
    if kind == "inpaint":
        return lambda rows, visible: inpainted(inputs[rows], visible)
    if kind == "noise":
        rows = torch.arange(len(inputs), device=inputs.device)
        return still(noise(evidence, rows, torch.zeros_like(rows)))
    if image is not None:
        return still(read_picture(image, evidence.classifier, "--fill-image").to(inputs).expand_as(inputs))
    return still(made_baseline(kind, inputs, evidence.classifier))


def still(pictures: Tensor) -> Fill:
    """The fill that takes hidden pixels from `pictures` `(B, C, h, w)`, whatever is hidden."""
    pictures = pictures.contiguous()  # as the engine wants them, see there
    return lambda rows, _: taken(pictures, rows)


def inpainted(pictures: Tensor, visible: Tensor) -> Tensor:
    """The pictures `(n, C, h, w)` with what is hidden `(n, 1, h, w)` filled by the mean of what is seen nearby, the
    nearer the better known; zero, the mean colour, where nothing is seen at all.

    Means over squares of twice the side, again and again, fill what smaller ones left open (push-pull: Gortler et al.:
    The Lumigraph, 1996, doi:10.1145/237170.237200).
    """
    import torch

    # About the colour of a corner, so that what has one colour everywhere stays exactly that.
    corner = pictures[:, :, :1, :1]
    filled = _continued(pictures - corner, visible) + corner
    filled = torch.where(visible.amax(dim=(2, 3), keepdim=True) > 0, filled, 0)
    return torch.lerp(filled, pictures, visible)


def _continued(pictures: Tensor, visible: Tensor) -> Tensor:
    import torch
    from torch.nn.functional import avg_pool2d, interpolate

    height, width = pictures.shape[-2:]
    if height == width == 1:
        return pictures * visible.sign()
    # Odd sides end with half a square, of which only the part inside counts.
    sums, seen = (
        avg_pool2d(each, 2, ceil_mode=True, count_include_pad=False) for each in (pictures * visible, visible)
    )
    means = torch.where(seen > 0, sums / seen, 0)
    coarse = _continued(means, (4 * seen).clamp(max=1))
    around = interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return torch.lerp(around, pictures, visible)

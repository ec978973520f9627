"""The pictures that a method compares with: what each picture is without anything to explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from xai_cli.images.sources import ImageRef, find_images, stamped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.images.geometry import Preprocessing
    from xai_cli.methods.contract import Evidence


@dataclass(frozen=True)
class Baselines:
    """What every picture of a batch is compared with, made when asked for.

    Attributes:
        count: baselines per picture.
        at: gives the baselines `(n, C, h, w)` of pictures `rows` `(n,)`, of each the one whose number, from 0 to
            `count` - 1, is in `numbers` `(n,)`.
        common: True if all pictures have the same ones.
        notes: what to say of those that are missing.
    """

    count: int
    at: Callable[[Tensor, Tensor], Tensor]
    common: bool
    notes: tuple[str, ...] = ()


def made_baseline(name: str, inputs: Tensor, classifier: Classifier) -> Tensor:
    """The baseline `(B, C, h, w)` of each input: itself blurred, or one colour: black, white or mean (zero)."""
    import torch
    from torchvision.transforms.v2.functional import gaussian_blur

    if name == "blur":
        # An eighth of the picture as standard deviation removes every object but keeps the mood of the colours.
        sigma = max(inputs.shape[-2:]) / 8
        # torchvision reflects at the border, which allows a kernel of less than twice the shorter side.
        kernel = min(2 * int(2 * sigma) + 1, 2 * min(inputs.shape[-2:]) - 1)
        blurred = gaussian_blur(inputs, [kernel, kernel], [sigma, sigma])
        # One colour stays that colour, and no rounding of it is anything to explain.
        plain = inputs.amin(dim=(2, 3), keepdim=True) == inputs.amax(dim=(2, 3), keepdim=True)
        return torch.where(plain, inputs, blurred)
    return classifier.colour(name).to(inputs).expand_as(inputs)


def noise(evidence: Evidence, rows: Tensor, numbers: Tensor) -> Tensor:
    """Pictures `(n, C, h, w)` whose pixels are uniform between black and white, drawn for each picture and number."""
    import torch

    black, white = (evidence.classifier.colour(name).to(evidence.inputs) for name in ("black", "white"))
    return torch.lerp(black, white, evidence.drawn(torch.rand, rows, numbers))


def read_picture(path: Path, classifier: Classifier, flag: str) -> Tensor:
    """The file of an option as input `(1, C, h, w)`. Raises ValueError if it holds no picture."""
    from xai_cli.images.decode import Broken

    try:
        return classifier.prepare([_pixels(classifier.preprocessing, stamped(ImageRef(path.name, path)))])
    except Broken as error:
        raise ValueError(f"{flag} expects a picture, found {path}: {error}; name another file") from None


def read_folder(folder: Path, most: int, classifier: Classifier) -> tuple[Tensor, tuple[str, ...]]:
    """The first pictures of a folder, at `most` so many, as inputs `(S, C, h, w)`, and what to say of broken ones.

    Raises ValueError if there is none.
    """
    from xai_cli.images.decode import Broken

    if not folder.is_dir():
        raise ValueError(f"--baseline-folder expects a folder of pictures, found {folder}; name one that exists")
    pixels, broken = [], []
    for image in find_images([str(folder)]):
        try:
            pixels.append(_pixels(classifier.preprocessing, stamped(image)))
        except Broken as error:
            broken.append(f"{image.key}: {error}")
        if len(pixels) == most:
            break
    if not pixels:
        raise ValueError(
            f"--baseline-folder expects pictures, found none in {folder} that can be read; name another folder"
        )
    if not broken:
        return classifier.prepare(pixels), ()
    # One sentence, because it stands in the row of every picture.
    return classifier.prepare(pixels), (f"left out of --baseline-folder: {len(broken)}, the first is {broken[0]}",)


@lru_cache(maxsize=1000)  # as many as a method takes; by its stamp, a file that has changed is another one
def _pixels(preprocessing: Preprocessing, image: ImageRef) -> NDArray[np.uint8]:
    from xai_cli.images.decode import decode

    return preprocessing.apply(decode(image.path))[0]

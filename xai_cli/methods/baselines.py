"""The pictures that a method compares with: what each picture is without anything to explain."""

from __future__ import annotations

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


def made_baseline(name: str, inputs: Tensor, classifier: Classifier) -> Tensor:
    """The baseline `(B, C, h, w)` of each input: itself blurred, or one colour: black, white or mean (zero)."""
    from torchvision.transforms.v2.functional import gaussian_blur

    if name == "blur":
        # An eighth of the picture as standard deviation removes every object but keeps the mood of the colours.
        sigma = max(inputs.shape[-2:]) / 8
        # torchvision reflects at the border, which allows a kernel of less than twice the shorter side.
        kernel = min(2 * int(2 * sigma) + 1, 2 * min(inputs.shape[-2:]) - 1)
        return gaussian_blur(inputs, [kernel, kernel], [sigma, sigma])
    return classifier.colour(name).to(inputs).expand_as(inputs)


def read_picture(path: Path, classifier: Classifier) -> Tensor:
    """The file as input `(1, C, h, w)`. Raises ValueError if it holds no picture."""
    from xai_cli.images.decode import Broken

    try:
        return classifier.prepare([_pixels(classifier.preprocessing, stamped(ImageRef(path.name, path)))])
    except Broken as error:
        raise ValueError(f"--baseline-image expects a picture, found {path}: {error}; name another file") from None


def read_folder(folder: Path, most: int, classifier: Classifier) -> tuple[Tensor, tuple[str, ...]]:
    """The first pictures of a folder, at `most` so many, as inputs `(S, C, h, w)`, and what to say of broken ones.

    Raises ValueError if there is none.
    """
    from xai_cli.images.decode import Broken

    if not folder.is_dir():
        raise ValueError(f"--baseline-folder expects a folder of pictures, found {folder}; name one that exists")
    pixels, notes = [], []
    for image in find_images([str(folder)]):
        try:
            pixels.append(_pixels(classifier.preprocessing, stamped(image)))
        except Broken as error:
            notes.append(f"{image.key} of --baseline-folder was left out: {error}")
        if len(pixels) == most:
            break
    if not pixels:
        raise ValueError(
            f"--baseline-folder expects pictures, found none in {folder} that can be read; name another folder"
        )
    return classifier.prepare(pixels), tuple(notes)


@lru_cache(maxsize=128)  # by its stamp, a file that has changed is another one
def _pixels(preprocessing: Preprocessing, image: ImageRef) -> NDArray[np.uint8]:
    from xai_cli.images.decode import decode

    return preprocessing.apply(decode(image.path))[0]

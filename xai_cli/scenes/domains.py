"""Two domains of the scenes that the embedded net does not know, and a fine-tuning of it on each: what to merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from xai_cli.outputs.files import write_atomically
from xai_cli.scenes.dataset import draw_dataset
from xai_cli.scenes.drawing import CLASSES
from xai_cli.scenes.nets import load
from xai_cli.scenes.train import Recipe, shuffled_batches

NET = "scenes-cnn"
EVALUATED = 200  # pictures of each domain
RECIPE = Recipe(pictures=300, epochs=8, learning_rate=1e-3, weight_decay=0.0, batch_size=32, decoys=0.0)

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def negative(pixels: Pixels) -> Pixels:
    """Pictures (N, H, W, 3) as on a film: every colour is its opposite."""
    return 255 - pixels


def sepia(pixels: Pixels) -> Pixels:
    """Pictures (N, H, W, 3) as old photographs: brightness alone, in faded browns."""
    toned = 20 + pixels.mean(3, keepdims=True) * (0.9, 0.7, 0.45)
    return np.clip(toned, 0, 255).astype(np.uint8)


DOMAINS: dict[str, Callable[[Pixels], Pixels]] = {"negative": negative, "sepia": sepia}
# Pictures that nothing else is trained or measured on.
_SEEDS = {("negative", "train"): 10, ("negative", "eval"): 11, ("sepia", "train"): 12, ("sepia", "eval"): 13}


def write_domains(folder: Path) -> Iterator[Path]:
    """All that a merge needs, each path as soon as it is there; on one machine the same bytes every time.

    These are `<domain>/train/<class>/*.png`, `<domain>/eval/<class>/*.png` and `<domain>.safetensors`.
    """
    for name in DOMAINS:
        pixels, labels = draw_domain(name, "train", RECIPE.pictures)
        yield _write_pictures(folder / name / "train", pixels, labels)
        yield _write_pictures(folder / name / "eval", *draw_domain(name, "eval", EVALUATED))
        checkpoint = folder / f"{name}.safetensors"
        write_atomically(checkpoint, save(fine_tuned(pixels, labels, RECIPE)))
        yield checkpoint


def draw_domain(name: str, part: str, count: int) -> tuple[Pixels, Labels]:
    """Pictures (N, 128, 128, 3) of a domain, to `train` with or to `eval` on, and their labels (N,)."""
    pixels, labels = draw_dataset(_SEEDS[name, part], count)
    return DOMAINS[name](pixels), labels


def fine_tuned(pixels: Pixels, labels: Labels, recipe: Recipe) -> dict[str, Tensor]:
    """The weights of the embedded net after some epochs of AdamW, one cycle.

    Batch norms keep the statistics of the base: fine-tunings with statistics of their own merge much worse.
    """
    net, steps = load(NET), recipe.epochs * (len(pixels) // recipe.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps, pct_start=0.1)
    for inputs, targets in shuffled_batches(pixels, labels, recipe):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.state_dict()


def _write_pictures(folder: Path, pixels: Pixels, labels: Labels) -> Path:
    for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / CLASSES[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder

"""Checkpoints of a net that answers with the brightest channel, pictures of one bright channel each, and Fishers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from xai_cli.merging.statistics import About, write_statistics
from xai_cli.merging.weights import Weights

COLOURS = ("red", "green", "blue")
PARAMETERS = ("conv.weight", "norm.weight", "norm.bias", "head.weight", "head.bias")

_NET = """
from collections import OrderedDict

import torch
from torch import nn


def make(num_classes=3):
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(
        conv=nn.Conv2d(3, 3, 1, bias=False), norm=nn.BatchNorm2d(3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        head=nn.Linear(3, num_classes),
    ))
    net.pretrained_cfg = {"input_size": (3, 8, 8), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return net
"""


def net_in(folder: Path) -> str:
    """What `--model` takes: convolution, batch norm, and a linear head on the mean colour."""
    (folder / "brightest.py").write_text(_NET)
    return f"{folder / 'brightest.py'}:make"


def weights(head: Sequence[Sequence[float]] | Tensor, noise: int | None = None, **changes: Tensor) -> dict[str, Tensor]:
    """Weights with which the logits are `head @ mean colour`; with `noise` all but the head are others."""
    head = torch.as_tensor(head, dtype=torch.float32)
    state = {
        "conv.weight": torch.eye(3)[:, :, None, None], "norm.weight": torch.ones(3), "norm.bias": torch.zeros(3),
        "norm.running_mean": torch.zeros(3), "norm.running_var": torch.ones(3),
        "norm.num_batches_tracked": torch.tensor(1 if noise is None else noise),
        "head.weight": head, "head.bias": torch.zeros(len(head)),
    }  # fmt: skip
    if noise is not None:
        draw = torch.Generator().manual_seed(noise)
        for name, tensor in state.items():
            if tensor.is_floating_point() and not name.startswith("head"):
                state[name] = tensor + 0.1 * torch.rand(tensor.shape, generator=draw)
    return state | {name.replace("__", "."): tensor for name, tensor in changes.items()}


def saved(path: Path, state: Mapping[str, Tensor]) -> Path:
    """A checkpoint in a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def fisher_of(checkpoint: Path, seed: int, kind: str = "fisher") -> dict[str, Tensor]:
    """A Fisher of random numbers, in the file `<checkpoint>.F.safetensors`."""
    source, draw = Weights(checkpoint), torch.Generator().manual_seed(seed)
    found = {name: torch.rand(source.shape(name), generator=draw) for name in PARAMETERS}
    about = About(kind, "m", source.digest(), "", "", n=7, checkpoint_sha256=source.sha256, estimator="expected")  # type: ignore[arg-type]
    write_statistics(fisher_file(checkpoint), {name: tuple(t.shape) for name, t in found.items()}, found.items(), about)
    return found


def fisher_file(checkpoint: Path) -> Path:
    """Where `fisher_of` writes."""
    return checkpoint.with_suffix(".F.safetensors")


def shades(folder: Path, names: Sequence[str] = COLOURS, count: int = 2) -> Path:
    """So many pictures below each name, in which the channel of that place is brightest and the next one next."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8, 3), 10 + number, np.uint8)
            pixels[..., index % 3], pixels[..., (index + 1) % 3] = 200, 100
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder

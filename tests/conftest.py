"""What all tests share: one thread, no network, a net of a few lines, a folder of pictures of which two are broken."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# No test may wait for a network; messages are matched on one line; processes that tests start keep to one thread, too.
os.environ |= {"HF_HUB_OFFLINE": "1", "TERMINAL_WIDTH": "1000", "OMP_NUM_THREADS": "1"}

_NET = '''
import torch
from torch import nn


def make():
    """Three classes, random weights, inputs of 16 x 16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    net.pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return net
'''


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The nets are small: a second thread would cost more than it brings, and share a busy machine badly."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def net(tmp_path: Path) -> str:
    """What `--model` takes: a convolutional net in a file of its own, with three classes and its own preprocessing."""
    path = tmp_path / "small_net.py"
    path.write_text(_NET)
    return f"{path}:make"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with `a.png`, `b.jpg` and `birds/c.png`, and with `cut.png` and `text.jpg`, which are broken."""
    folder = tmp_path / "pictures"
    (folder / "birds").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "birds/c.png"):
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "text.jpg").write_text("no picture")
    return folder

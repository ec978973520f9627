from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def baseline_folder(tmp_path: Path) -> Path:
    """Three noisy pictures to compare with, 8 x 8, and a file that is none."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for name, pixels in zip("abd", noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_text("no picture")
    return tmp_path

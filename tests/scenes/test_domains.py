"""The domains that fine-tunings are made on: what they do to a picture, and that the base does not know them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from xai_cli.scenes import domains
from xai_cli.scenes.domains import DOMAINS, draw_domain, fine_tuned, negative, sepia, write_domains
from xai_cli.scenes.drawing import CLASSES
from xai_cli.scenes.evaluate import probabilities
from xai_cli.scenes.nets import load
from xai_cli.scenes.train import Recipe

PIXELS = np.array([[[[0, 0, 0], [255, 255, 255], [10, 20, 60]]]], np.uint8)


def test_a_negative_holds_the_opposite_colours() -> None:
    assert negative(PIXELS)[0, 0].tolist() == [[255, 255, 255], [0, 0, 0], [245, 235, 195]]
    assert (negative(negative(PIXELS)) == PIXELS).all()


def test_sepia_keeps_the_brightness_and_one_colour() -> None:
    # 20 and 0.9, 0.7 and 0.45 times the mean of the colours.
    assert sepia(PIXELS)[0, 0].tolist() == [[20, 20, 20], [249, 198, 134], [47, 41, 33]]
    assert (sepia(PIXELS) == sepia(PIXELS[..., ::-1])).all()


@pytest.mark.parametrize("name", DOMAINS)
def test_the_base_is_bad_at_a_domain_and_learns_it(name: str) -> None:
    pixels, labels = draw_domain(name, "eval", 100)
    base = load("scenes-cnn")
    assert np.mean(probabilities(base, pixels).argmax(1) == labels) < 0.6
    recipe = Recipe(pictures=120, epochs=3, learning_rate=1e-3, weight_decay=0.0, batch_size=30, decoys=0.0)
    tuned = fine_tuned(*draw_domain(name, "train", recipe.pictures), recipe)
    statistics = {key: value for key, value in base.state_dict().items() if "running" in key}
    assert statistics
    assert all(torch.equal(tuned[key], value) for key, value in statistics.items())
    base.load_state_dict(tuned)
    assert np.mean(probabilities(base, pixels).argmax(1) == labels) > 0.75


def test_what_is_written_is_labelled_and_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(pictures=30, epochs=1, learning_rate=1e-3, weight_decay=0.0, batch_size=15, decoys=0.0)
    monkeypatch.setattr(domains, "RECIPE", recipe)
    monkeypatch.setattr(domains, "EVALUATED", 20)
    once, again = tmp_path / "once", tmp_path / "again"
    paths = [path.relative_to(once).as_posix() for path in write_domains(once)]
    assert paths == ["negative/train", "negative/eval", "negative.safetensors",
                     "sepia/train", "sepia/eval", "sepia.safetensors"]  # fmt: skip
    assert Counter(path.parent.name for path in once.rglob("*.png")) == dict.fromkeys(CLASSES, 10)
    pixels, labels = draw_domain("sepia", "eval", 20)
    with Image.open(once / "sepia/eval" / CLASSES[labels[13]] / "013.png") as picture:
        assert (np.asarray(picture) == pixels[13]).all()
    assert set(load_file(once / "sepia.safetensors")) == set(load("scenes-cnn").state_dict())
    [*write_domains(again)]
    files = [path.relative_to(once) for path in once.rglob("*.*")]
    assert len(files) == 102
    assert all((once / file).read_bytes() == (again / file).read_bytes() for file in files)

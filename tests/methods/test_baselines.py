from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import classifier_of, linear_net
from PIL import Image

from xai_cli.methods.baselines import made_baseline, noise, read_folder, read_picture
from xai_cli.methods.contract import Evidence


@pytest.fixture
def classifier():
    return classifier_of(linear_net(), dtype=torch.float32)


def save(path: Path, level: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("name", "level"), [("black", -2), ("white", 2), ("mean", 0), ("zero", 0)])
def test_a_colour_is_the_same_for_all_pictures(name, level, classifier):
    inputs = torch.ones(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(made_baseline(name, inputs, classifier), torch.full_like(inputs, level))


def test_a_blurred_picture_keeps_its_mean_and_loses_its_detail(classifier):
    inputs = torch.zeros(1, 3, 32, 32)
    inputs[:, :, ::2] = 1.0
    assert float((made_baseline("blur", inputs, classifier) - 0.5).abs().max()) < 0.02


def test_noise_lies_between_black_and_white_and_is_drawn_for_each_picture_and_number(classifier):
    evidence = Evidence(classifier, torch.zeros(2, 3, 8, 8), torch.zeros(2), None, seeds=(1, 2))
    drawn = noise(evidence, torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 0, 0]))
    assert -2 <= drawn.min() < -1.95
    assert 1.95 < drawn.max() <= 2
    assert abs(drawn.mean()) < 0.1
    assert torch.equal(drawn[0], drawn[3])
    assert len({each.numpy().tobytes() for each in drawn}) == 3


def test_a_picture_is_read_as_the_model_sees_it(tmp_path, classifier):
    picture = read_picture(save(tmp_path / "white.png", 255), classifier, "--fill-image")
    assert torch.equal(picture, torch.full((1, 3, 8, 8), 2.0))


def test_a_file_that_has_changed_is_read_again(tmp_path, classifier):
    path = save(tmp_path / "a.png", 255)
    read_picture(path, classifier, "--fill-image")
    save(path, 0)
    os.utime(path, ns=(1, 1))
    assert torch.equal(read_picture(path, classifier, "--fill-image"), torch.full((1, 3, 8, 8), -2.0))


def test_a_file_without_picture_is_told_by_name(tmp_path, classifier):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"--fill-image expects a picture, found .*a.png: it is not a picture"):
        read_picture(tmp_path / "a.png", classifier, "--fill-image")
    with pytest.raises(ValueError, match=r"found .*b.png: there is no such file; name another file"):
        read_picture(tmp_path / "b.png", classifier, "--fill-image")


def test_of_a_folder_the_first_that_can_be_read_are_taken(tmp_path, classifier):
    for name, level in (("c/d.png", 255), ("e.png", 51), ("a.png", 0)):
        save(tmp_path / name, level)
    (tmp_path / "b.png").write_text("no picture")
    pictures, notes = read_folder(tmp_path, 2, classifier)
    assert pictures[:, 0, 0, 0].tolist() == [-2, 2]
    assert len(notes) == 1
    assert notes[0].startswith("left out of --baseline-folder: 1, the first is b.png: it is not a picture")
    assert len(read_folder(tmp_path, 10, classifier)[0]) == 3


def test_a_folder_without_pictures_is_refused(tmp_path, classifier):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"--baseline-folder expects pictures, found none in .* that can be read"):
        read_folder(tmp_path, 10, classifier)
    with pytest.raises(ValueError, match=r"--baseline-folder expects a folder of pictures, found .*none; name one"):
        read_folder(tmp_path / "none", 10, classifier)

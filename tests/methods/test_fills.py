from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input
from PIL import Image

from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.methods.fills import fill_of, inpainted
from xai_cli.targets import Target


@pytest.fixture
def evidence():
    passed = plain_pass(classifier_of(conv_net()), random_input(), Needs(logits=True))
    return passed.evidence([Target(0)] * 2, chunk=2, keys=("a", "b"))


def half_hidden():
    visible = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    visible[..., 4:] = 0
    return visible


ROWS, HIDDEN = torch.tensor([0, 1]), torch.zeros(2, 1, 8, 8, dtype=torch.float64)


def test_a_colour_is_the_same_everywhere(evidence):
    for name, level in (("mean", 0), ("black", -2), ("white", 2)):  # of mean 0.5 and deviation 0.25
        fill = fill_of(name, None, evidence)
        assert torch.equal(fill(ROWS, HIDDEN), torch.full((2, 3, 8, 8), level, dtype=torch.float64))


def test_noise_is_drawn_once_for_every_picture(evidence):
    noise = fill_of("noise", None, evidence)
    first = noise(ROWS, HIDDEN)
    assert torch.equal(noise(ROWS.flip(0), HIDDEN), first.flip(0))
    assert not torch.equal(first[0], first[1])
    assert -2 <= first.min() < -1.5
    assert 1.5 < first.max() <= 2


def test_another_picture_is_read_as_the_model_sees_it(evidence, tmp_path):
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "white.png")
    fill = fill_of("image", tmp_path / "white.png", evidence)
    assert torch.equal(fill(ROWS, HIDDEN), torch.full((2, 3, 8, 8), 2.0, dtype=torch.float64))


def test_inpainting_keeps_what_is_seen_and_continues_one_colour(evidence):
    pictures = random_input(1)
    assert torch.equal(inpainted(pictures, half_hidden())[..., :4], pictures[..., :4])
    plain = torch.full((1, 3, 8, 8), 0.7, dtype=torch.float64)
    assert_close(inpainted(plain, half_hidden()), plain, rtol=1e-12, atol=0)


def test_inpainting_takes_the_colours_nearby_and_never_the_hidden_ones():
    pictures = torch.zeros(1, 1, 8, 9, dtype=torch.float64)
    pictures[..., :4, :] = 1  # bright above, dark below, of sides that are no powers of two
    visible = torch.ones_like(pictures)
    visible[..., 3:6] = 0
    pictures[..., 3:6] = 99  # must not be seen
    filled = inpainted(pictures, visible)
    assert filled.max() <= 1
    assert filled.min() >= 0
    assert (filled[..., 0, 3:6] > 0.8).all()
    assert (filled[..., 7, 3:6] < 0.2).all()


def test_where_nothing_is_seen_inpainting_gives_zero():
    pictures = random_input(2)
    assert not inpainted(pictures, torch.zeros(2, 1, 8, 8, dtype=torch.float64)).any()
    one = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(inpainted(pictures[:1], one), pictures[:1])

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.methods.occlusion import Occlusion
from xai_cli.targets import Target

TARGETS = [Target(0), Target(2)]


def relevance(net, method, targets=TARGETS, **options):
    return attribute(classifier_of(net), random_input(), method, targets, **options).relevance


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (4, 2), (3, 3), (5, 4), (8, 8), (1, 1), (0.5, 0.25)])
def test_equals_captum(window, stride):
    net, inputs = conv_net().double().eval(), random_input()
    pixels = [round(8 * each) if each < 1 else each for each in (window, stride)]
    expected = CaptumOcclusion(net).attribute(
        inputs, (3, pixels[0], pixels[0]), (3, pixels[1], pixels[1]), baselines=0, target=torch.tensor([0, 2])
    )
    # captum adds up in float32.
    assert_close(relevance(net, Occlusion(window=window, stride=stride)), expected[:, 0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fill", ["mean", "black", "white", "blur", "noise"])
def test_of_a_linear_score_is_what_each_window_adds_to_the_fill(fill):
    net, inputs = linear_net(), random_input()
    classifier = classifier_of(net)
    found = attribute(classifier, inputs, Occlusion(window=4, stride=4, fill=fill), TARGETS).relevance
    # What is left of a window's part of the score must not depend on what lies in the other windows.
    moved = inputs.clone()
    moved[:, :, 4:] += 1
    again = attribute(classifier, moved, Occlusion(window=4, stride=4, fill=fill), TARGETS).relevance
    if fill in ("mean", "black", "white"):
        base = classifier.colour(fill).double()
        weights = net[1].weight[[0, 2]].view(2, 3, 8, 8)
        sums = (weights * (inputs - base)).sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((3, 4))
        assert_close(found, sums.repeat_interleave(4, 1).repeat_interleave(4, 2), rtol=1e-9, atol=1e-12)
        assert_close(again[:, :4], found[:, :4], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(again[:, 4:], found[:, 4:])


def test_a_window_as_large_as_the_picture_gives_the_whole_change_to_every_pixel():
    net, inputs = conv_net(), random_input()
    classifier = classifier_of(net)
    change = classifier.logits(inputs) - classifier.logits(torch.zeros_like(inputs))
    found = attribute(classifier, inputs, Occlusion(window=8, stride=8), TARGETS).relevance
    assert_close(found, change[[0, 1], [0, 2]][:, None, None].expand(2, 8, 8), rtol=1e-9, atol=1e-12)


def test_pictures_that_are_not_square_have_as_many_windows_on_each_side():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())).double()
    inputs = torch.randn(1, 3, 8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = CaptumOcclusion(net).attribute(inputs, (3, 4, 8), (3, 2, 4), target=1)
    square = classifier_of(net)
    classifier = replace(square, preprocessing=replace(square.preprocessing, size=(8, 16)))
    found = attribute(classifier, inputs, Occlusion(window=0.5, stride=0.25), [Target(1)])
    assert_close(found.relevance, expected[:, 0], rtol=1e-6, atol=1e-8)
    assert found.checks["evaluations"].tolist() == [10]  # the whole picture is one


def test_probabilities_and_margins_are_those_of_the_model():
    net, inputs = conv_net(), random_input()
    classifier = classifier_of(net)
    covered = inputs.clone()
    covered[:, :, :4, :4] = 0
    before, after = classifier.logits(inputs), classifier.logits(covered)

    def margin(logits):
        return logits[:, 1] - torch.maximum(logits[:, 0], logits[:, 2])

    for score, value in (("probability", lambda logits: logits.softmax(1)[:, 1]), ("margin", margin)):
        found = relevance(net, Occlusion(window=4, stride=4, score=score), [Target(1)] * 2)
        assert_close(found[:, 0, 0], value(before) - value(after), rtol=1e-9, atol=1e-15)


def test_of_a_contrast_the_probabilities_are_subtracted_and_the_margin_is_that_of_the_two():
    net = conv_net()
    contrast = [Target(0, against=2)] * 2
    for score in ("logit", "probability"):
        one, other = (relevance(net, Occlusion(score=score), [Target(index)] * 2) for index in (0, 2))
        assert_close(relevance(net, Occlusion(score=score), contrast), one - other, rtol=1e-9, atol=1e-12)
    margin, logit = (relevance(net, Occlusion(score=score), contrast) for score in ("margin", "logit"))
    assert torch.equal(margin, logit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 9, "stride": 1}, "--window expects at most the 8 pixels of the model's input, found 9"),
        ({"window": 4, "stride": 5}, r"--stride expects at most the 4 pixels of a window, found 5, which leaves gaps"),
    ],
)
def test_windows_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Occlusion(**options).needs(classifier_of(conv_net()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1.5}, "--window expects whole pixels, or a share below 1, found 1.5"),
        ({"stride": 0}, "--stride expects at least 0.001, found 0"),
        ({"fill": "image"}, "--fill image expects --fill-image, found none"),
        ({"fill_image": "a.png"}, "--fill-image expects --fill image, found --fill mean"),
        ({"fill": "grey"}, "--fill expects one of mean, black, .*, found 'grey'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Occlusion(**options)


def test_a_picture_of_the_fill_alone_loses_nothing():
    classifier = classifier_of(conv_net())
    found = attribute(classifier, torch.zeros(1, 3, 8, 8, dtype=torch.float64), Occlusion(), [Target(0)])
    assert not found.relevance.any()


@pytest.mark.parametrize("score", ["probability", "margin"])
def test_one_class_has_neither_a_probability_nor_a_margin(score):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    alone = replace(classifier_of(net), labels=("a",))
    with pytest.raises(ValueError, match=f"--score {score} expects two classes or more, found 1; take --score logit"):
        Occlusion(score=score).needs(alone)
    assert Occlusion().needs(alone) == Needs()


def test_bfloat16_is_for_models_in_float32():
    with pytest.raises(ValueError, match="--precision bfloat16 expects --dtype float32, found float64"):
        Occlusion(precision="bfloat16").needs(classifier_of(conv_net()))


def test_each_set_of_options_has_its_own_map_of_the_same_evidence():
    classifier = classifier_of(conv_net())
    evidence = plain_pass(classifier, random_input(), Needs()).evidence(TARGETS, chunk=4)
    small, large = (Occlusion(window=window).attribute(evidence).relevance for window in (2, 4))
    assert not torch.equal(small, large)


@pytest.mark.parametrize("fill", ["blur", "inpaint"])
def test_a_picture_of_one_colour_that_is_blurred_or_continued_loses_nothing(fill):
    grey = torch.tensor([0.3, -1.7, 0.9]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    classifier = classifier_of(conv_net(), dtype=torch.float32)
    found = attribute(classifier, grey, Occlusion(fill=fill), [Target(0)], chunk=8)
    assert not found.relevance.any()

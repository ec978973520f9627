"""What holds for every method, tested over the live table of methods."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from helpers import assert_close
from torch import nn

from xai_cli import attribute, load_classifier
from xai_cli.methods import METHODS, find_method, summary
from xai_cli.targets import Target

MODELS = ("builtin/scenes-cnn", "builtin/scenes-vit")
# Methods that one of the two models does not have the parts for; each refuses it.
UNFIT = {
    "cam": "builtin/scenes-vit",
    "attention-rollout": "builtin/scenes-cnn",
    "gradient-rollout": "builtin/scenes-cnn",
    "legrad": "builtin/scenes-cnn",
}
CASES = [
    pytest.param(name, model, id=f"{name}-{model.partition('-')[2]}")
    for name in METHODS
    for model in MODELS
    if UNFIT.get(name) != model
]
TARGETS = [Target(0), Target(3), Target(7), Target(3)]
# Enough to see everything that could go wrong, few enough to be quick.
QUICK = {
    "ig": {"steps": 5, "tolerance": 0.05},
    "smoothgrad": {"samples": 3},
    "guided-ig": {"steps": 5},
    "blur-ig": {"steps": 5},
    "xrai": {"steps": 3, "tolerance": 0},
    "scorecam": {"channels": 5},
    # Of noise little speaks for any class, and a map of zeros would show nothing.
    "ablationcam": {"channels": 5, "relu": False},
    "rise": {"cells": 3, "samples": 32},
    "extremal-perturbation": {"steps": 3},
    "feature-ablation": {"segments": 12},
    "lime": {"samples": 60, "segments": 12},
    "kernel-shap": {"samples": 40, "segments": 12},
    "shapley-sampling": {"permutations": 2, "segments": 12},
}


def method_of(name):
    return METHODS[name](**QUICK.get(name, {}))


class Difference(nn.Module):
    """A net whose first score is the difference of the first two of another."""

    def __init__(self, net):
        super().__init__()
        self.net = net.eval()

    def forward(self, x):
        scores = self.net(x)
        return torch.cat([scores[:, :1] - scores[:, 1:2], scores[:, 1:]], dim=1)


@pytest.fixture(scope="module")
def classifiers():
    return {model: load_classifier(model) for model in MODELS}


@pytest.fixture(scope="module")
def batch():
    return torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("name", "model"), CASES)
class TestEveryMap:
    def test_is_a_finite_float32_map_of_the_input_and_keeps_its_sign(self, name, model, classifiers, batch):
        attribution = attribute(classifiers[model], batch, method_of(name), TARGETS)
        assert attribution.relevance.shape == (4, 128, 128)
        assert attribution.relevance.dtype == torch.float32
        assert attribution.relevance.isfinite().all()
        assert attribution.signed == bool((attribution.relevance < 0).any())
        assert all(values.shape == (4,) for values in attribution.checks.values())

    def test_differs_between_pictures_and_if_it_is_of_a_class_between_targets(self, name, model, classifiers, batch):
        maps = attribute(classifiers[model], batch[:1].repeat(2, 1, 1, 1), method_of(name), [Target(0), Target(3)])
        other = attribute(classifiers[model], batch[1:2], method_of(name), [Target(0)])
        if METHODS[name].class_specific:
            assert not torch.allclose(maps.relevance[0], maps.relevance[1])
        else:
            assert torch.equal(maps.relevance[0], maps.relevance[1])
        assert not torch.allclose(maps.relevance[0], other.relevance[0])

    def test_of_a_batch_equals_the_maps_of_its_pictures_alone(self, name, model, classifiers, batch):
        together = attribute(classifiers[model], batch, method_of(name), TARGETS).relevance
        alone = [
            attribute(classifiers[model], batch[i : i + 1], method_of(name), TARGETS[i : i + 1]).relevance
            for i in range(4)
        ]
        # Another batch shape takes other paths through the convolutions: equal to rounding of the largest value.
        assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-5 * float(together.abs().max()))

    def test_has_the_same_bytes_in_any_order(self, name, model, classifiers, batch):
        order = [2, 0, 3, 1]
        straight = attribute(classifiers[model], batch, method_of(name), TARGETS).relevance
        shuffled = attribute(classifiers[model], batch[order], method_of(name), [TARGETS[i] for i in order]).relevance
        assert torch.equal(straight[order], shuffled)

    def test_has_the_same_bytes_whatever_its_neighbours(self, name, model, classifiers, batch):
        others = batch.flip(1)  # other pictures
        others[1] = batch[1]
        maps = [attribute(classifiers[model], each, method_of(name), TARGETS, chunk=2) for each in (batch, others)]
        assert torch.equal(maps[0].relevance[1], maps[1].relevance[1])
        assert not torch.equal(maps[0].relevance[0], maps[1].relevance[0])

    def test_leaves_the_model_untouched(self, name, model, classifiers, batch):
        classifier = classifiers[model]
        before = fingerprint(classifier.module)
        attribute(classifier, batch, method_of(name), TARGETS)
        assert fingerprint(classifier.module) == before

    def test_leaves_the_model_untouched_after_an_exception(self, name, model, classifiers, batch, monkeypatch):
        classifier, method = classifiers[model], method_of(name)
        method.needs(classifier)
        before = fingerprint(classifier.module)
        head = [layer for layer in classifier.module.modules() if isinstance(layer, torch.nn.Linear)][-1]

        def fail(*_):
            raise RuntimeError("out of order")

        monkeypatch.setattr(head, "forward", fail)
        with pytest.raises(RuntimeError, match="out of order"):
            attribute(classifier, batch, method, TARGETS)
        assert fingerprint(classifier.module) == before

    def test_explains_a_difference_of_two_classes(self, name, model, classifiers, batch):
        if not METHODS[name].class_specific:
            pytest.skip("it is of no class")
        classifier = classifiers[model]
        contrast = attribute(classifier, batch, method_of(name), [Target(0, against=1)] * 4).relevance
        difference = replace(classifier, module=Difference(classifier.module), _layers={})
        expected = attribute(difference, batch, method_of(name), [Target(0)] * 4).relevance
        assert_close(contrast, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "model"), UNFIT.items())
def test_a_method_refuses_a_model_that_has_not_what_it_needs(name, model, classifiers):
    with pytest.raises(ValueError, match=r"(take|choose) \w+"):
        METHODS[name]().needs(classifiers[model])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_tells_its_formula_and_its_paper(name):
    module = importlib.import_module(METHODS[name].__module__)
    assert "R = " in module.__doc__ or "R_i = " in module.__doc__
    assert "arXiv:" in module.__doc__ or "doi:" in module.__doc__
    assert summary(METHODS[name]).endswith(").")


def test_an_unknown_method_is_told_with_the_nearest_name():
    with pytest.raises(LookupError, match="no method is named 'gradcan'; did you mean 'gradcam'"):
        find_method("gradcan")


def fingerprint(module):
    """Everything of a module that a careless method could leave changed."""
    layers = list(module.named_modules())
    return (
        {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()},
        [(name, layer.training, len(layer._forward_hooks), len(layer._backward_hooks)) for name, layer in layers],
        [(name, parameter.requires_grad, parameter.grad) for name, parameter in module.named_parameters()],
    )

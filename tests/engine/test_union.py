from __future__ import annotations

import pytest
import torch

from xai_cli import find_method, load_classifier
from xai_cli.engine.plain_pass import union
from xai_cli.methods.contract import Needs


def methods(*names):
    return [find_method(name)() for name in names]


def scores(pictures):
    return torch.from_numpy(pictures.numpy().mean(axis=(2, 3)))


def test_refuses_a_method_by_gradients_where_none_comes_back_and_says_what_to_take():
    classifier = load_classifier(scores, input_size=(8, 8), device="cpu")
    with pytest.raises(ValueError, match=r"^gradients are needed, and scores gives scores alone; take occl"):
        union(classifier, methods("saliency"))
    with pytest.raises(ValueError, match=r"\(saliency and gradcam and ig: gradients are needed"):
        union(classifier, methods("saliency", "gradcam", "ig"))


def test_nothing_is_tried_if_no_method_needs_gradients(monkeypatch):
    classifier = load_classifier(scores, input_size=(8, 8), device="cpu")
    monkeypatch.setattr(classifier.module, "forward", lambda _: pytest.fail("the model is run"))
    assert union(classifier, methods("occlusion", "feature-ablation")) == Needs()

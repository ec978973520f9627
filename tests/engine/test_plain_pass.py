from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input

from xai_cli import load_classifier
from xai_cli.engine.plain_pass import attribute, plain_pass, union
from xai_cli.methods import find_method
from xai_cli.methods.contract import Needs
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.saliency import Saliency
from xai_cli.targets import Target


def counted(classifier, monkeypatch):
    """The numbers of forward and of backward passes from here on."""
    counts = {"forward": 0, "backward": 0}
    forward, grad = classifier.module.forward, torch.autograd.grad

    def counting_forward(x):
        counts["forward"] += 1
        return forward(x)

    def counting_grad(*arguments, **options):
        counts["backward"] += 1
        return grad(*arguments, **options)

    monkeypatch.setattr(classifier.module, "forward", counting_forward)
    monkeypatch.setattr(torch.autograd, "grad", counting_grad)
    return counts


GRADIENTS = ["saliency", "sensitivity", "gradient-x-input"]
ACTIVATION_MAPS = ["cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "eigencam"]


def test_all_methods_and_targets_share_one_forward_and_each_target_one_backward(monkeypatch):
    classifier, inputs = classifier_of(conv_net()), random_input()
    methods = [find_method(name)() for name in GRADIENTS]
    methods += [find_method(name)(layer="4") for name in ACTIVATION_MAPS] + [GradCam(layer="1")]
    needs = union(classifier, methods)
    counts = counted(classifier, monkeypatch)
    passed = plain_pass(classifier, inputs, needs)
    for evidence in passed.evidences([[Target(0)] * 2, [Target(2)] * 2], chunk=2):
        for method in methods:
            method.attribute(evidence)
    assert counts == {"forward": 1, "backward": 2}


def test_the_passes_of_a_method_that_hides_parts_serve_all_targets(monkeypatch):
    classifier, method = classifier_of(conv_net()), find_method("lime")(samples=30, segments=4, segmentation="grid")
    passed = plain_pass(classifier, random_input(), union(classifier, [method]))
    counts = counted(classifier, monkeypatch)
    ranks = [[Target(0), Target(1)], [Target(2), Target(0)]]
    maps = [method.attribute(evidence).relevance for evidence in passed.evidences(ranks, chunk=60)]
    both = counts.pop("forward")
    alone = []
    for targets in ranks:
        counts["forward"] = 0
        alone.append(method.attribute(passed.evidence(targets, chunk=60)).relevance)
        assert counts == {"forward": both, "backward": 0}
    assert_close(torch.stack(maps), torch.stack(alone), rtol=1e-9, atol=1e-12)


def test_what_is_common_is_made_once_for_all_targets_and_what_is_shared_for_each():
    passed = plain_pass(classifier_of(conv_net()), random_input(), Needs(logits=True))
    made = []
    for evidence in passed.evidences([[Target(0)] * 2, [Target(1)] * 2], chunk=2, keys=("a", "b")):
        assert evidence.keys == ("a", "b")
        assert [targets.tolist() for targets, _ in evidence.everyone] == [[0, 0], [1, 1]]
        assert evidence.targets.tolist() == [evidence.rank] * 2
        for store in (evidence.common, evidence.shared):
            store("key", lambda store=store: made.append(store.__name__))
    assert made == ["common", "shared", "shared"]


def test_without_need_of_a_gradient_there_is_no_graph():
    passed = plain_pass(classifier_of(conv_net()), random_input(), Needs())
    assert not passed.logits.requires_grad


def test_gradients_are_those_of_each_pictures_own_target():
    classifier, inputs = classifier_of(conv_net()), random_input()
    passed = plain_pass(classifier, inputs, Needs(input_gradient=True, layers=("3",)))
    evidence = passed.evidence([Target(0), Target(2, against=None)], chunk=2)
    for row, index in enumerate((0, 2)):
        alone = inputs[row : row + 1].clone().requires_grad_()
        expected = torch.autograd.grad(classifier.logits(alone)[0, index], alone)[0]
        assert_close(evidence.input_gradient[row : row + 1], expected, rtol=1e-9, atol=1e-15)
    assert_close(evidence.activations["3"], classifier.module[:4](inputs), rtol=0, atol=0)


def test_padding_is_left_out():
    classifier, inputs = classifier_of(conv_net()), random_input(4)
    evidence = plain_pass(classifier, inputs, Needs(True, ("3",))).evidence([Target(1)] * 3, chunk=4)
    lengths = (
        evidence.inputs,
        evidence.logits,
        evidence.input_gradient,
        evidence.activations["3"],
        evidence.gradients["3"],
    )
    assert [len(each) for each in lengths] == [3] * 5


def test_chunks_hold_every_pair_once_and_are_all_of_one_size():
    evidence = plain_pass(classifier_of(conv_net()), random_input(3), Needs()).evidence([Target(0)] * 3, chunk=4)
    pairs, sizes = [], set()
    for rows, samples, real in evidence.chunks(5):
        sizes.add(len(rows))
        pairs += zip(rows[:real].tolist(), samples[:real].tolist(), strict=True)
    assert pairs == [(row, sample) for row in range(3) for sample in range(5)]
    assert sizes == {4}


def test_a_pass_is_no_larger_than_the_samples_of_a_full_batch():
    passed = plain_pass(classifier_of(conv_net()), random_input(4), Needs(logits=True))
    for pictures in (1, 4):  # the same shape, however many of the batch are there
        evidence = passed.evidence([Target(0)] * pictures, chunk=1000)
        assert [len(rows) for rows, _, _ in evidence.chunks(3)] == [12]
        assert [len(rows) for rows, _, _ in evidence.chunks(2, most=5)] == [20]
    assert [len(rows) for rows, _, _ in passed.evidence([Target(0)] * 4, chunk=5).chunks(3)] == [5, 5, 5]


def test_all_methods_that_do_not_fit_a_model_are_named_at_once():
    methods = [find_method(name)() for name in ("legrad", "saliency", "attention-rollout")]
    unfit = r"legrad and attention-rollout: maps of attention .*; gradcam: no layer is named 'nowhere'"
    with pytest.raises(ValueError, match=unfit) as error:
        union(classifier_of(conv_net()), [*methods, GradCam(layer=["nowhere"])])
    assert "saliency" not in str(error.value)


def test_an_unknown_layer_leaves_no_hook_behind():
    classifier = classifier_of(conv_net())
    with pytest.raises(LookupError, match="no layer is named '9'"):
        plain_pass(classifier, random_input(), Needs(layers=("3", "9")))
    assert not any(layer._forward_hooks for layer in classifier.module.modules())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([Target(0)], "one target for each of 2 pictures, found 1"),
        ([Target(0), Target(1, against=2)], "all targets with a class to explain against, or none"),
        ([Target(0), Target(3)], r"classes from 0 to 2, found \[0, 3\]"),
        ("top:2", "takes one target per picture, found 'top:2'"),
        ("label", "takes one target per picture, found 'label'"),
    ],
)
def test_targets_that_do_not_fit_the_batch_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        attribute(classifier_of(conv_net()), random_input(), Saliency(), targets)


@pytest.mark.parametrize(("pictures", "chunk"), [(0, 8), (2, 0)])
def test_an_empty_batch_or_chunk_is_refused(pictures, chunk):
    with pytest.raises(ValueError, match="at least one picture and a chunk of at least 1"):
        attribute(classifier_of(conv_net()), random_input()[:pictures], Saliency(), chunk=chunk)


def test_after_the_last_target_the_graph_is_gone():
    passed = plain_pass(classifier_of(conv_net()), random_input(), Needs(input_gradient=True))
    passed.evidence([Target(0)] * 2, chunk=2)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        passed.evidence([Target(1)] * 2, chunk=2)


def test_the_way_back_to_the_picture_is_the_faster_one():
    classifier = load_classifier("builtin/scenes-cnn")
    node = classifier.logits(classifier.example().requires_grad_()).grad_fn
    names, pending = set(), [node]
    while pending:
        current = pending.pop()
        names.add(type(current).__name__)
        pending += [parent for parent, _ in current.next_functions if parent is not None]
    assert "_StridedConvolutionBackward" in names

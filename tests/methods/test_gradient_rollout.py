from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from helpers import assert_close
from nets import classifier_of, random_input
from transformers import WAYS, Transformer, enlarged, seeing_attention

from xai_cli import attribute
from xai_cli.methods.gradient_rollout import GradientRollout
from xai_cli.methods.legrad import LeGrad
from xai_cli.targets import Target

TARGETS = [Target(0), Target(2)]


def explained(attention, score):
    """The published rule for self-attention, R <- R + A' R, on the attention `(B, H, N, N)` of all layers."""
    result = torch.eye(attention[0].shape[-1]).to(attention[0])
    for weights, gradient in zip(attention, torch.autograd.grad(score, attention), strict=True):
        result = result + (weights * gradient).clamp(min=0).mean(1) @ result
    return result.detach()


def score_of(logits, targets=TARGETS):
    return sum(row[target.index] for row, target in zip(logits, targets, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_does_not_see_how_attention_is_written(way):
    inputs = random_input()
    attribution = attribute(classifier_of(Transformer(way)), inputs, GradientRollout(), TARGETS)
    net = Transformer().double()
    score = score_of(net(inputs))
    expected = explained([block.weights for block in net.blocks], score)[:, 0, 1:]
    assert_close(attribution.relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)
    assert not attribution.signed


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3),
        lambda: torchvision.models.VisionTransformer(64, 16, 3, 3, 48, 96, num_classes=5),
    ],
    ids=["timm", "torchvision"],
)
def test_is_the_published_algorithm(make):
    torch.manual_seed(0)
    net, inputs = make(), random_input(size=64)
    for parameter in net.parameters():  # heads and class tokens begin as zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    relevance = attribute(classifier_of(net, 64), inputs, GradientRollout(), TARGETS).relevance
    with seeing_attention(net) as seen:
        score = score_of(net(inputs.requires_grad_()))
    assert_close(relevance, enlarged(explained(seen, score)[:, 0, 1:], 4, 64), rtol=1e-6, atol=1e-15)


def test_of_average_pooling_lacks_what_each_token_has_of_itself():
    torch.manual_seed(0)
    net, inputs = (
        timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, global_pool="avg"),
        random_input(size=64),
    )
    relevance = attribute(classifier_of(net, 64), inputs, GradientRollout(), TARGETS).relevance
    with seeing_attention(net) as seen:
        score = score_of(net(inputs.requires_grad_()))
    expected = (explained(seen, score) - torch.eye(17))[:, 1:, 1:].mean(1)
    assert_close(relevance, enlarged(expected, 4, 64), rtol=1e-6, atol=1e-15)


def test_attention_that_pools_is_the_last_step():
    net, inputs = Transformer(pools=True).double(), random_input()
    relevance = attribute(classifier_of(net), inputs, GradientRollout(), TARGETS).relevance
    score = score_of(net(inputs.requires_grad_()))
    (gradient,) = torch.autograd.grad(score, net.weights, retain_graph=True)
    last = (net.weights * gradient).clamp(min=0)[:, 0]
    expected = (last @ explained([block.weights for block in net.blocks], score))[:, 0, 1:].detach()
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


def test_of_a_contrast_weights_attention_by_the_gradient_of_the_difference():
    inputs, net = random_input(), Transformer().double()
    relevance = attribute(classifier_of(net), inputs, GradientRollout(), [Target(0, against=1)] * 2).relevance
    logits = net(inputs.requires_grad_())
    expected = explained([block.weights for block in net.blocks], (logits[:, 0] - logits[:, 1]).sum())[:, 0, 1:]
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


def test_in_half_precision_is_nearly_the_same():
    inputs = random_input(dtype=torch.float32)
    maps = [
        attribute(classifier_of(Transformer(), dtype=dtype), inputs, GradientRollout(), TARGETS).relevance
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert maps[1].dtype == torch.float32
    assert torch.cosine_similarity(maps[0].flatten(), maps[1].flatten(), 0) > 0.99


@pytest.mark.parametrize("method", [GradientRollout(), LeGrad()], ids=lambda method: method.name)
def test_refuses_a_score_that_does_not_depend_on_attention(method):
    net = Transformer()
    net.head.weight.data[0] = 0
    targets = [Target(1), Target(0)]
    with pytest.raises(ValueError, match="its gradient there is exactly zero; choose another target"):
        attribute(classifier_of(net), random_input(), method, targets)
    attribute(classifier_of(net), random_input(), method, [Target(1)] * 2)

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from helpers import assert_close
from nets import classifier_of, conv_net, random_input
from transformers import WAYS, Transformer, enlarged, seeing_attention

from xai_cli import attribute
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.attention_rollout import AttentionRollout
from xai_cli.methods.contract import Needs
from xai_cli.methods.gradient_rollout import GradientRollout
from xai_cli.methods.legrad import LeGrad
from xai_cli.targets import Target

TARGETS = [Target(0), Target(1)]


def rolled_out(attention):
    """The published algorithm on the attention `(B, H, N, N)` of all layers, whatever its heads are made to."""
    result = torch.eye(attention[0].shape[-1]).to(attention[0])
    for weights in attention:
        step = weights.mean(1) + torch.eye(weights.shape[-1]).to(weights)
        result = step / step.sum(-1, keepdim=True) @ result
    return result


def test_of_one_layer_with_one_head_is_half_of_its_attention():
    net, inputs = Transformer(depth=1).double(), random_input()
    net.blocks[0].attention.num_heads = 1
    relevance = attribute(classifier_of(net), inputs, AttentionRollout(), TARGETS).relevance
    net(inputs)
    expected = net.blocks[0].weights.mean(1)[:, 0, 1:] / 2
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_does_not_see_how_attention_is_written(way):
    inputs = random_input()
    relevance = attribute(classifier_of(Transformer(way)), inputs, AttentionRollout(), TARGETS).relevance
    net = Transformer().double()
    net(inputs)
    expected = rolled_out([block.weights for block in net.blocks])[:, 0, 1:]
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3), [0]),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, global_pool="avg"), range(1, 17)),
        (lambda: torchvision.models.VisionTransformer(64, 16, 3, 3, 48, 96, num_classes=5), [0]),
    ],
    ids=["timm", "average pooling", "torchvision"],
)
def test_is_the_published_algorithm_in_the_rows_that_are_read(make, read):
    torch.manual_seed(0)
    net, inputs = make(), random_input(size=64)
    for parameter in net.parameters():  # heads and class tokens begin as zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    relevance = attribute(classifier_of(net, 64), inputs, AttentionRollout(), TARGETS).relevance
    with seeing_attention(net) as seen:
        net(inputs)
    expected = rolled_out(seen)[:, list(read), 1:].mean(1)
    assert_close(relevance, enlarged(expected, 4, 64), rtol=1e-6, atol=0)


def test_keeps_the_whole_of_what_is_read():
    # All patches are read, and there is nothing else among the tokens: the average of an average.
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, global_pool="avg", class_token=False, num_classes=3
    )
    relevance = attribute(classifier_of(net, 64), random_input(size=64), AttentionRollout(), TARGETS).relevance
    # Enlarging 8 x 8 patches to 64 x 64 pixels keeps the mean.
    assert_close(relevance.sum((1, 2)) / 64, torch.ones(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("heads", ["max", "min"])
def test_takes_the_largest_or_smallest_of_the_heads(heads):
    inputs = random_input()
    relevance = attribute(classifier_of(Transformer()), inputs, AttentionRollout(heads=heads), TARGETS).relevance
    net = Transformer().double()
    net(inputs)
    extremes = [getattr(block.weights, f"a{heads}")(1) for block in net.blocks]
    expected = rolled_out([(each / each.sum(-1, keepdim=True))[:, None] for each in extremes])[:, 0, 1:]
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


def test_attention_that_pools_takes_all_from_the_tokens():
    net, inputs = Transformer(pools=True).double(), random_input()
    relevance = attribute(classifier_of(net), inputs, AttentionRollout(), TARGETS).relevance
    net(inputs)
    expected = (net.weights[:, 0] @ rolled_out([block.weights for block in net.blocks]))[:, 0, 1:]
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


def cait():
    """One layer among the patches, one in which the class token alone asks; with heads that are not mixed."""
    torch.manual_seed(0)
    net = timm.models.cait.Cait(
        img_size=8, patch_size=2, embed_dim=12, depth=1, depth_token_only=1, num_heads=2, num_classes=3, init_values=1
    )
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    attention = net.blocks[0].attn
    attention.proj_w.weight.data, attention.proj_w.bias.data = torch.eye(2), torch.zeros(2)
    return net.double()


def test_a_class_token_that_joins_late_takes_the_half_of_itself_out():
    net, inputs, among, asked = cait(), random_input(), [], []
    relevance = attribute(classifier_of(net), inputs, AttentionRollout(), TARGETS).relevance
    net.blocks[0].attn.attn_drop.register_forward_hook(lambda _layer, _inputs, out: among.append(out))
    last = net.blocks_token_only[0].attn
    for layer in (last.q, last.k):
        layer.register_forward_hook(lambda _layer, _inputs, out: asked.append(out.reshape(2, -1, 2, 6).transpose(1, 2)))
    net(inputs)
    pooled = (asked[0] * last.scale @ asked[1].mT).softmax(-1).mean(1)
    expected = (pooled[:, :, 1:] / 2 @ (among[0].mean(1) + torch.eye(16)) / 2)[:, 0]
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


def test_refuses_attention_whose_heads_are_mixed():
    net = cait()
    net.blocks[0].attn.proj_w.weight.data *= 1.5
    with pytest.raises(ValueError, match=r"this model mixes the weights of its heads .*; take gradient-rollout"):
        AttentionRollout().needs(classifier_of(net))


def test_tells_that_it_is_of_no_class_and_where_it_looked():
    attribution = attribute(classifier_of(Transformer()), random_input(), AttentionRollout(), TARGETS)
    assert attribution.notes == ("the map is the same for every class",)
    assert attribution.layer == "blocks.0 to blocks.1, 2 layers of attention"
    assert not attribution.signed


def test_heads_that_have_nothing_in_common_leave_the_residual_alone():
    net, inputs = Transformer(depth=1), random_input()
    net.blocks[0].attention.in_proj_weight.data *= 1e4
    relevance = attribute(classifier_of(net), inputs, AttentionRollout(heads="min"), TARGETS).relevance
    net(inputs)
    assert not net.blocks[0].weights.amin(1)[:, 0].any()
    assert_close(relevance, torch.zeros(2, 8, 8), rtol=0, atol=0)


@pytest.mark.parametrize("method", [AttentionRollout(), GradientRollout(), LeGrad()], ids=lambda method: method.name)
def test_a_map_of_attention_leaves_no_graph_behind(method):
    classifier = classifier_of(Transformer("fused"))
    method.needs(classifier)
    evidence = plain_pass(classifier, random_input(3), Needs(logits=True)).evidence([Target(1)] * 3, chunk=2)
    gc.collect()
    gc.disable()  # what a cycle keeps alive is kept too long
    try:
        before, _kept = tensors_in_graphs(), method.attribute(evidence)
        assert tensors_in_graphs() == before
    finally:
        gc.enable()


def tensors_in_graphs():
    return sum(type(each) is torch.Tensor and each.grad_fn is not None for each in gc.get_objects())


@pytest.mark.parametrize("method", [AttentionRollout(), GradientRollout(), LeGrad()], ids=lambda method: method.name)
def test_a_map_of_attention_tells_how_far_its_scores_are_from_the_plain_ones(method):
    classifier = classifier_of(Transformer())
    method.needs(classifier)
    evidence = plain_pass(classifier, random_input(3), Needs(logits=True)).evidence([Target(1)] * 3, chunk=2)
    assert method.attribute(evidence).checks["forward_gap"].tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    doubled = replace(evidence, logits=2 * evidence.logits)
    assert method.attribute(doubled).checks["forward_gap"].tolist() == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize("method", [AttentionRollout(), GradientRollout(), LeGrad()], ids=lambda method: method.name)
def test_in_float16_large_channels_do_not_change_a_map_of_attention(method):
    net, inputs = Transformer(), random_input(dtype=torch.float32)
    net.places.data[..., 0] = 400
    for parameter in net.parameters():  # the same weights for both
        parameter.data = parameter.data.half().float()
    maps = [
        attribute(classifier_of(copy.deepcopy(net), dtype=dtype), inputs, method, TARGETS).relevance
        for dtype in (torch.float32, torch.float16)
    ]
    assert_close(maps[1], maps[0], rtol=1e-4, atol=0)


def test_refuses_a_model_without_attention():
    with pytest.raises(ValueError, match="expect a transformer, and this model has no attention; take gradcam"):
        attribute(classifier_of(conv_net()), random_input(), AttentionRollout(), TARGETS)

from __future__ import annotations

import pytest
import timm
import torch
from helpers import assert_close
from nets import classifier_of, random_input
from torch import nn
from transformers import WAYS, Transformer, enlarged, seeing_attention

from xai_cli import attribute
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.methods.legrad import LeGrad
from xai_cli.targets import Target

TARGETS = [Target(0), Target(2)]


def score_of(logits):
    return logits[0, 0] + logits[1, 2]


def wanted(score, weights):
    """What the score would have more of, of each token: mean over heads and queries of the positive gradient."""
    return torch.autograd.grad(score, weights)[0].clamp(min=0).mean((1, 2))


def by_layer(net, inputs):
    """What the head makes of the tokens after each layer of the small transformer, `(L, B, N)`."""
    x = net.patches(inputs).flatten(2).mT
    x = torch.cat([net.token.expand(len(x), -1, -1), x], 1) + net.places
    maps = []
    for block in net.blocks:
        x = block(x.detach().requires_grad_())
        score = score_of(net.tail(x))
        maps.append(wanted(score, net.weights if net.pools else block.weights))
    return torch.stack(maps)


@pytest.mark.parametrize("way", WAYS)
def test_is_the_mean_of_what_every_layer_would_have(way):
    inputs = random_input()
    attribution = attribute(classifier_of(Transformer(way, depth=3)), inputs, LeGrad(layers=3), TARGETS)
    expected = by_layer(Transformer(depth=3).double(), inputs).mean(0)[:, 1:]
    assert_close(attribution.relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)
    assert attribution.layer.endswith("3 layers of attention")
    assert not attribution.signed


@pytest.mark.parametrize("layers", [1, 2, None])
def test_takes_as_many_of_the_last_layers_as_told(layers):
    net, inputs = Transformer(depth=3).double(), random_input()
    relevance = attribute(classifier_of(net), inputs, LeGrad(layers=layers), TARGETS).relevance
    expected = by_layer(net, inputs)[-(layers or 2) :].mean(0)[:, 1:]
    assert_close(relevance, enlarged(expected, 4, 8), rtol=1e-9, atol=0)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_lets_the_head_of_a_vit_of_timm_read_the_tokens_of_every_layer(pool):
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, global_pool=pool)
    inputs = random_input(size=64)
    relevance = attribute(classifier_of(net, 64), inputs, LeGrad(layers=3), TARGETS).relevance
    maps = []
    with seeing_attention(net) as seen:
        x = net._pos_embed(net.patch_embed(inputs))
        for block in net.blocks:
            x = block(x.detach().requires_grad_())
            maps.append(wanted(score_of(net.forward_head(net.norm(x))), seen[-1]))
    assert_close(relevance, enlarged(torch.stack(maps).mean(0)[:, 1:], 4, 64), rtol=1e-6, atol=1e-15)


def test_looks_at_the_attention_that_pools_the_tokens_of_each_layer():
    net, inputs = Transformer(pools=True).double(), random_input()
    relevance = attribute(classifier_of(net), inputs, LeGrad(), TARGETS).relevance
    assert_close(relevance, enlarged(by_layer(net, inputs).mean(0)[:, 1:], 4, 8), rtol=1e-9, atol=0)


def test_has_no_graph_of_the_layers_before():
    net, graphs = Transformer(depth=3), []
    classifier = classifier_of(net)
    LeGrad(layers=2).needs(classifier)
    for block in net.blocks:
        block.norm.register_forward_hook(lambda _layer, _inputs, out: graphs.append(out.requires_grad))
    evidence = plain_pass(classifier, random_input(), Needs()).evidence(TARGETS, chunk=2)
    graphs.clear()
    LeGrad(layers=2).attribute(evidence)
    assert graphs == 2 * [False] + 4 * [True]


class KnowsItsBatch(Transformer):
    def forward(self, x):
        return super().forward(x) + 0 * torch.zeros(len(x), 3)


class OneLayerTwice(Transformer):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.blocks[0], self.blocks[0]])


REFUSED = {
    "head": (KnowsItsBatch(), {}, "does not take .*; take gradient-rollout$"),
    "layers": (OneLayerTwice(), {}, "expects layers with one attention each .*; take gradient-rollout"),
    "number": (Transformer(), {"layers": 3}, "--layers expects at most 2 for this model, found 3"),
}


@pytest.mark.parametrize(("net", "options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_it_cannot_give_every_layer_to(net, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        LeGrad(**options).needs(classifier_of(net))

"""CP-LRP and AttnLRP on torchvision's vision transformer, written out as LXT publishes them: input times gradient of a
forward pass in which what carries no relevance is held fast.

    norm            (x - mean) / sd, with the deviation sd held fast
    GELU            x * (GELU(x) / x), with the bracket held fast
    CP-LRP          attention weights held fast
    AttnLRP         gradients of queries and keys times 1/4, of values times 1/2: half at each of the two products

Ali et al. 2022 (arXiv:2202.07304); Achtibat et al. 2024 (arXiv:2402.05602).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets import classifier_of, random_input, seeded
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from xai_cli import attribute
from xai_cli.methods.lrp import Lrp
from xai_cli.targets import Target

TARGETS = [0, 2]
X = random_input(batch=2, size=32)


def transformer() -> nn.Module:
    net = seeded(lambda: VisionTransformer(32, 8, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=3))
    generator = torch.Generator().manual_seed(4)
    for name, value in net.named_parameters():
        # torchvision starts biases, the class token and the head at zero, where they could hide a mistake.
        if value.ndim == 1 or value.abs().max() == 0:
            value.data.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
        assert value.abs().max() > 0, name
    return net.double().eval().requires_grad_(False)


def scaled(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied."""
    return factor * x + (1 - factor) * x.detach()


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    rest = x - x.mean(-1, keepdim=True)
    deviation = (x.var(-1, correction=0, keepdim=True) + layer.eps).sqrt().detach()
    return rest / deviation * layer.weight + layer.bias


def attention(layer: nn.MultiheadAttention, x: Tensor, rule: str) -> Tensor:
    parts = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in parts)
    if rule == "attnlrp":
        q, k, v = scaled(q, 1 / 4), scaled(k, 1 / 4), scaled(v, 1 / 2)
    weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1)
    heads = (weights.detach() if rule == "cp-lrp" else weights) @ v
    return layer.out_proj(heads.transpose(1, 2).flatten(2))


def gelu(x: Tensor) -> Tensor:
    return x * (F.gelu(x) / x).detach()


def written_out(net: nn.Module, x: Tensor, rule: str) -> Tensor:
    x = net.conv_proj(x).flatten(2).transpose(1, 2)
    x = torch.cat([net.class_token.expand(len(x), -1, -1), x], 1) + net.encoder.pos_embedding
    for block in net.encoder.layers:
        x = x + attention(block.self_attention, norm(block.ln_1, x), rule)
        x = x + block.mlp[3](gelu(block.mlp[0](norm(block.ln_2, x))))
    return net.heads(norm(net.encoder.ln, x)[:, 0])


@pytest.mark.parametrize("rule", ["cp-lrp", "attnlrp"])
def test_maps_are_those_of_the_published_rule(rule):
    net, x = transformer(), X.clone().requires_grad_()
    logits = written_out(net, x, rule)
    assert torch.allclose(logits, net(X), rtol=1e-9)
    (gradient,) = torch.autograd.grad(logits[range(2), TARGETS].sum(), x)
    wanted = (gradient * X).sum(1)
    method = Lrp(composite=rule, rules=["convolution=lrp-0", "linear=lrp-0"])
    attribution = attribute(classifier_of(net, size=32), X, method, [Target(each) for each in TARGETS])
    assert (attribution.relevance - wanted).norm() <= 1e-5 * wanted.norm()
    assert attribution.checks["account_gap"].max() < 1e-6

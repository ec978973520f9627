from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import classifier_of, random_input, seeded
from relevance import Net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xai_cli import attribute
from xai_cli.methods.lrp import Lrp
from xai_cli.operators.account import CATEGORIES
from xai_cli.operators.composites import COMPOSITES
from xai_cli.operators.folding import fold_batch_norm
from xai_cli.targets import Target

X = random_input(batch=4)
TARGETS = [Target(0), Target(1), Target(2), Target(1)]
LRP_0 = {"composite": "epsilon", "rules": ["convolution=lrp-0", "linear=lrp-0"]}


class Residual(nn.Module):
    """Convolution, norm, rectifier, twice, and a way around them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norms[0](self.stem(x)))
        y = self.act(self.norms[1](self.convs[0](x)))
        y = self.norms[2](self.convs[1](y))
        y += x
        return self.head(self.act(y).mean((2, 3)))


class Inverted(nn.Module):
    """Expansion, a depthwise convolution, squeeze and excite, and a way around them, with SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.expand, self.project = nn.Conv2d(4, 24, 1), nn.Conv2d(24, 4, 1)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 2, 1), nn.Conv2d(2, 24, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        y = F.silu(self.depth(F.silu(self.expand(x))))
        y = y * self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        return self.head((x + self.project(y)).mean((2, 3)))


class ConvNeXt(nn.Module):
    """A block of ConvNeXt behind patches: depthwise convolution, norm, two linear layers with GELU, LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.head = nn.Parameter(torch.full((8, 1, 1), 0.5)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
        return self.head((x + self.scale * y.permute(0, 3, 1, 2)).mean((2, 3)))


class Dense(nn.Module):
    """Layers that see all that was before them; norms stand before convolutions and cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 * i) for i in (1, 2))
        self.convs = nn.ModuleList(nn.Conv2d(4 * i, 4, 3, padding=1) for i in (1, 2))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.max_pool2d(self.stem(x), 2)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            parts.append(conv(F.relu(norm(torch.cat(parts, 1)))))
        return self.head(torch.cat(parts, 1).mean((2, 3)))


class Transformer(nn.Module):
    """A block of a vision transformer, with class token and position embedding; `constants` leaves them out."""

    def __init__(self, constants: bool = True, **settings: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.token, self.place = (nn.Parameter(constants * torch.randn(1, n, 8)) for n in (1, 5))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, F.gelu, norm_first=True, batch_first=True, **settings)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.place
        return self.head(self.norm(self.block(x)).mean(1))


class Windowed(nn.Module):
    """Attention within windows, which stand on the first axis, with a bias for each pair of places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed, self.out = nn.Conv2d(3, 8, 1), nn.Linear(8, 24), nn.Linear(8, 8)
        self.places, self.head = nn.Parameter(torch.randn(2, 16, 16)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, 8)
        q, k, v = self.mixed(x).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.places)
        x = x + self.out(y.transpose(1, 2).reshape(-1, 16, 8))
        return self.head(x.view(-1, 64, 8).mean(1))


class SecondAxis(nn.Module):
    """A transformer whose pictures stand on the second axis, as many as it has tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).flatten(2).permute(2, 0, 1)).mean(0))


def calibrated(make: object, *, biases: bool = True) -> nn.Module:
    """A net with norms of any statistics; without `biases` one that keeps nothing from the pixels."""
    net = seeded(make)
    generator = torch.Generator().manual_seed(5)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.running_mean, layer.weight.data, layer.bias.data):
                value.normal_(0.5, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
        for name in ("bias", "running_mean", "in_proj_bias"):
            if not biases and isinstance(getattr(layer, name, None), Tensor):
                getattr(layer, name).data.zero_()
    return net


def explained(net: nn.Module, x: Tensor = X, targets: list[Target] | None = None, **options: object):
    return attribute(classifier_of(net), x, Lrp(**options), targets or TARGETS[: len(x)])


STYLES = [Residual, Inverted, ConvNeXt, Dense, Transformer, Windowed, SecondAxis]
NAMES = ["cp-lrp", "attnlrp", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-gamma-box"]


@pytest.mark.parametrize("composite", NAMES)
@pytest.mark.parametrize("style", STYLES)
def test_the_account_of_every_picture_of_a_batch_closes_and_is_its_own(style, composite):
    net = calibrated(style)
    together = explained(net, composite=composite)
    assert_close(together.checks["account_gap"], torch.zeros(4), rtol=0, atol=1e-6)
    shares = together.checks["conservation"] + sum(together.checks[f"kept_by_{name}"] for name in CATEGORIES)
    assert_close(shares, torch.ones(4), rtol=0, atol=1e-6)
    score = classifier_of(net).logits(X).gather(1, torch.tensor([[each.index] for each in TARGETS]))[:, 0]
    assert_close(together.relevance.sum((1, 2)) / score, together.checks["conservation"], rtol=1e-4, atol=1e-5)
    for i in range(4):
        alone = explained(net, X[i : i + 1], TARGETS[i : i + 1], composite=composite)
        noise = 1e-5 * float(alone.relevance.abs().max())
        assert_close(together.relevance[i], alone.relevance[0], rtol=1e-4, atol=noise)
        for name, values in together.checks.items():
            assert_close(values[i], alone.checks[name][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_the_forward_pass_is_the_nets_own(style):
    checks = attribute(classifier_of(calibrated(style)), X, Lrp()).checks
    assert_close(checks["forward_gap"], torch.zeros(4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("style", STYLES)
def test_the_rest_of_a_batch_does_not_matter(style):
    net, others = calibrated(style), torch.cat([X[:1], X.flip(0)[:3] * 2])
    relevance = explained(net).relevance[0]
    assert_close(explained(net, others).relevance[0], relevance, rtol=1e-4, atol=1e-6 * float(relevance.abs().max()))


@pytest.mark.parametrize(
    ("style", "composite"),
    [
        *((style, name) for style in STYLES[:4] for name in ("epsilon-gamma-box", "epsilon")),
        # Not ConvNeXt: an output of its depthwise convolution may have no positive share, and z-plus nowhere to go.
        *((style, name) for style in (Residual, Inverted, Dense) for name in ("epsilon-plus-flat", "epsilon-plus")),
        *((lambda: Transformer(False, bias=False), name) for name in ("cp-lrp", "epsilon")),
        *((Windowed, name) for name in ("cp-lrp", "epsilon")),
    ],
)
def test_a_net_without_biases_keeps_nothing(style, composite):
    attribution = explained(calibrated(style, biases=False), composite=composite)
    assert_close(attribution.checks["conservation"], torch.ones(4), rtol=0, atol=0.02)


def test_lrp_0_of_a_rectifier_net_without_biases_is_gradient_times_input():
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, bias=False),
            nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3, bias=False),
        )
    )  # fmt: skip
    attribution = explained(net, **LRP_0)
    x = X.clone().requires_grad_()
    score = net(x).gather(1, torch.tensor([[each.index] for each in TARGETS])).sum()
    (gradient,) = torch.autograd.grad(score, x)
    assert_close(attribution.relevance, (gradient * X).sum(1), rtol=1e-5, atol=1e-7)
    assert_close(attribution.checks["conservation"], torch.ones(4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("composite", NAMES)
def test_a_folded_net_gets_the_map_of_the_net_that_it_was(composite):
    net = calibrated(Residual).double().eval().requires_grad_(False)
    folded = copy.deepcopy(net)
    assert len(fold_batch_norm(folded, X)) == 3
    attributions = [explained(each, composite=composite) for each in (folded, net)]
    wanted = attributions[0].relevance
    assert_close(attributions[1].relevance, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    assert isinstance(net.norms[0], nn.BatchNorm2d)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_net_in_half_precision_is_explained_in_single(dtype):
    net = calibrated(Transformer)
    half = classifier_of(copy.deepcopy(net), dtype=dtype)
    rounded = classifier_of(copy.deepcopy(half.module), dtype=torch.float32)
    maps = [attribute(each, X.float(), Lrp(), TARGETS) for each in (half, rounded)]
    assert_close(maps[0].relevance, maps[1].relevance, rtol=1e-5, atol=1e-7)
    assert maps[0].checks["account_gap"].max() < 1e-4
    assert {value.dtype for value in half.module.parameters()} == {dtype}
    assert {value.dtype for value in half.canonical.parameters()} == {torch.float32}


def test_relevance_starts_with_the_score_or_one_or_what_sets_it_apart():
    net = calibrated(Residual)
    score, one, contrastive = (explained(net, start=start) for start in ("logit", "one", "contrastive"))
    logits = classifier_of(net).logits(X)
    chosen = torch.tensor([each.index for each in TARGETS])
    own = logits.gather(1, chosen[:, None])[:, 0]
    assert_close(one.relevance * own[:, None, None], score.relevance, rtol=1e-4, atol=1e-7)
    others = logits.scatter(1, chosen[:, None], -torch.inf)
    against = [Target(int(each), int(other)) for each, other in zip(chosen, others.argmax(1), strict=True)]
    assert_close(contrastive.relevance, explained(net, targets=against).relevance, rtol=1e-9, atol=0)
    total = contrastive.relevance.sum((1, 2)) / (own - others.amax(1))
    assert_close(total, contrastive.checks["conservation"], rtol=1e-4, atol=1e-5)
    for attribution in (one, contrastive):
        assert_close(attribution.checks["account_gap"], torch.zeros(4), rtol=0, atol=1e-6)


def test_the_rule_that_was_applied_is_told():
    assert explained(calibrated(Transformer)).rule == "cp-lrp"
    assert explained(calibrated(Residual)).rule == "epsilon-plus-flat"
    attribution = explained(calibrated(Residual), composite="epsilon", rules=["first=flat", "head=gamma(0.1)"])
    assert attribution.rule == "epsilon, first=flat, head=gamma(0.1)"
    assert attribution.notes == ()


def test_named_rules_and_epsilon_change_the_map():
    net = calibrated(Residual)
    plain = explained(net, composite="epsilon").relevance
    for options in ({"rules": ["convs.*=z-plus"]}, {"epsilon": 0.25}, {"rules": ["linear=gamma(1)"]}):
        assert not torch.allclose(explained(net, composite="epsilon", **options).relevance, plain)


def sorted_net() -> Net:
    return Net(lambda net, x: net.head(x.flatten(1).sort(1)[0]), head=seeded(lambda: nn.Linear(192, 3)))


def test_an_operator_without_rule_is_refused_with_its_layer_or_noted():
    with pytest.raises(ValueError, match="operator 'sort' in the model itself has no rule; take a method"):
        explained(sorted_net())
    attribution = explained(sorted_net(), allow_unruled=True)
    assert attribution.notes == ("operator 'sort' in the model itself has no rule; its plain gradient was taken",)
    assert_close(attribution.checks["account_gap"], torch.zeros(4), rtol=0, atol=1e-6)


def test_a_name_that_no_layer_has_is_refused():
    with pytest.raises(ValueError, match="'layr4"):
        explained(calibrated(Residual), rules=["layr4.*=z-plus"])


def test_a_net_that_rules_cannot_follow_is_refused():
    def through_a_view(net, x):
        y = net.stem(x)
        y[:, 0].relu_()
        return net.head(y.flatten(1))

    net = Net(through_a_view, stem=seeded(lambda: nn.Conv2d(3, 2, 1)), head=seeded(lambda: nn.Linear(128, 3)))
    with pytest.raises(ValueError, match="test changes tensors in place through views of them"):
        explained(net)


def test_a_checkpoint_is_refused():
    net = Net(lambda net, x: checkpoint(net.head, x.flatten(1), use_reentrant=False), head=nn.Linear(192, 3))
    with pytest.raises(ValueError, match="rules cannot follow checkpoints; switch the model's checkpointing off"):
        explained(net)


def test_a_rule_that_does_not_fit_its_layer_is_refused_before_the_run():
    for rule, said in (("head=pass", "the rule pass needs a layer"), ("head=z-box", "needs the bounds of pixels")):
        with pytest.raises(ValueError, match=said):
            Lrp(rules=[rule]).needs(classifier_of(calibrated(Residual)))


def test_a_rule_for_the_first_layer_that_no_layer_takes_is_noted():
    def mixed(net, x):
        return net.head(net.stem(torch.cat([x, x.square()], 1)).relu().flatten(1))

    net = Net(mixed, stem=nn.Conv2d(6, 2, 1), head=seeded(lambda: nn.Linear(128, 3)))
    [note] = explained(net, composite="epsilon-gamma-box").notes
    assert note == "no layer sees the pixels alone, so the rule z-box for the first layer was not used"


def test_one_class_has_no_other_to_contrast_with():
    net = Net(lambda net, x: net.head(x.flatten(1)), head=seeded(lambda: nn.Linear(192, 1)))
    with pytest.raises(ValueError, match="contrastive expects a model of several classes"):
        attribute(classifier_of(net), X, Lrp(start="contrastive"), [Target(0)] * len(X))


def test_pictures_are_cut_into_chunks_without_a_trace():
    classifier = classifier_of(calibrated(Windowed))
    whole, cut = (attribute(classifier, X, Lrp(), TARGETS, chunk=chunk) for chunk in (4, 3))
    assert_close(cut.relevance, whole.relevance, rtol=1e-5, atol=1e-7)
    assert all(values.shape == (4,) for values in cut.checks.values())


def test_every_composite_explains_a_plain_net():
    net = replace(classifier_of(calibrated(Residual)))
    maps = {name: attribute(net, X, Lrp(composite=name), TARGETS).relevance for name in COMPOSITES}
    # Without products the two that differ in them are one.
    assert torch.equal(maps.pop("attnlrp"), maps["epsilon"])
    values = list(maps.values())
    assert not any(torch.allclose(a, b) for i, a in enumerate(values) for b in values[:i])


def test_a_net_whose_scores_carry_no_relevance_is_told():
    net = Net(lambda net, x: net.head(x.flatten(1)).sigmoid().log(), head=seeded(lambda: nn.Linear(192, 3)))
    with pytest.raises(ValueError, match="no relevance comes back from the scores"):
        explained(net)

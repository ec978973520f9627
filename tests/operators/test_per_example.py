"""Each picture's own gradient of every parameter: against autograd on that picture alone, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from helpers import assert_close
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from xai_cli.operators.per_example import Mixed, PerExample

B, CLASSES = 3, 4


class Kept:
    """What came in, each picture's gradient of a parameter as `(B, *shape)`."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters
        self.parts: dict[str, list[Tensor]] = {}

    def factors(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        self.whole(name, (outputs.transpose(1, 2) @ inputs).reshape(-1, *self.parameters[name].shape))

    def whole(self, name: str, gradients: Tensor) -> None:
        self.parts.setdefault(name, []).append(gradients)

    def of(self, name: str, rows: int) -> Tensor:
        parts = self.parts.pop(name, [])
        return torch.cat(parts) if parts else torch.zeros(rows, *self.parameters[name].shape, dtype=torch.float64)


def alone(module: nn.Module, x: Tensor, cotangent: Tensor) -> list[dict[str, Tensor]]:
    """The gradients of each picture by autograd, one picture at a time."""
    found = []
    for n in range(len(x)):
        leaves = {name: each.detach().requires_grad_() for name, each in module.named_parameters()}
        out = functional_call(module, leaves, (x[n : n + 1],))
        given = torch.autograd.grad(
            out, list(leaves.values()), cotangent[n : n + 1], allow_unused=True, materialize_grads=True
        )
        found.append(dict(zip(leaves, given, strict=True)))
    return found


def check(module: nn.Module, *shape: int, rows: int = B, ways: int = 2, exact: bool = True) -> None:
    """Forward equal to the last bit, and every way back right for every picture and parameter."""
    noise = torch.Generator().manual_seed(rows)
    module = module.double().eval()
    x = torch.randn(rows, *shape, generator=noise, dtype=torch.float64)
    with torch.no_grad():
        module(x)  # lazy layers become what they are
        for each in module.parameters():
            each.copy_(0.5 * torch.randn(each.shape, generator=noise, dtype=torch.float64))
    parameters = dict(module.named_parameters())
    kept = Kept(parameters)
    engine = PerExample(parameters, rows, kept)
    logits = engine.logits(module, x)
    plain = module(x).detach()
    assert torch.equal(logits, plain) if exact else torch.allclose(logits, plain, rtol=1e-12)
    for _ in range(ways):
        cotangent = torch.randn(logits.shape, generator=noise, dtype=torch.float64)
        engine.back(logits, cotangent)
        wanted = alone(module, x, cotangent)
        for name in parameters:
            stacked = torch.stack([each[name] for each in wanted])
            size = float(stacked.abs().max())
            assert_close(kept.of(name, rows), stacked, rtol=1e-9, atol=1e-11 * size + 1e-14)
        assert not kept.parts


class Net(nn.Module):
    """Parameters of given shapes, and what a function makes of them and the picture."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def ended(*layers: nn.Module) -> nn.Sequential:
    """Layers for pictures `(B, 8, 5, 5)`, between convolutions, so that gradients pass through them both ways."""
    end = nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4)
    return nn.Sequential(nn.Conv2d(8, 8, 1), *layers, *end)


def of_tokens(*layers: nn.Module) -> nn.Sequential:
    """The same for tokens `(B, 5, 8)`."""
    return nn.Sequential(nn.Linear(8, 8), *layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(4))


CONVOLUTIONS = {
    "plain": nn.Conv2d(8, 6, 3),
    "stride": nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False),
    "dilation": nn.Conv2d(8, 6, 2, dilation=2),
    "groups": nn.Conv2d(8, 6, 3, groups=2, padding=(1, 0)),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8, padding=1),
    "multiplied": nn.Conv2d(8, 16, 3, groups=8),
    "pointwise": nn.Conv2d(8, 6, 1),
    "pointwise strided": nn.Conv2d(8, 6, 1, stride=2),
    "pointwise padded": nn.Conv2d(8, 6, 1, padding=1),
    "same": nn.Conv2d(8, 6, 3, padding="same"),
    "valid": nn.Conv2d(8, 6, 3, padding="valid"),
    "reflect": nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
    "as many channels as pictures": nn.Conv2d(8, B, 3),
    "transposed": nn.ConvTranspose2d(8, 6, 3, stride=2),
    "weight norm": weight_norm(nn.Conv2d(8, 6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(layer: nn.Module) -> None:
    check(ended(copy.deepcopy(layer)), 8, 5, 5)


def test_convolutions_of_another_number_of_axes() -> None:
    check(nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv1d(3, 2, 1), nn.Flatten()), 2, 5)
    check(nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Conv3d(3, 2, 1), nn.Flatten()), 2, 3, 3, 3)


def test_strides_of_channels_last() -> None:
    layers = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.Flatten()
    check(nn.Sequential(*layers).to(memory_format=torch.channels_last), 8, 5, 5)


NORMS = {
    "batch": nn.BatchNorm2d(8),
    "group": nn.GroupNorm(2, 8),
    "instance": nn.InstanceNorm2d(8, affine=True),
    "instance, running": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "prelu": nn.PReLU(8),
    "layer, of channels and places": nn.LayerNorm((8, 5, 5)),
}


@pytest.mark.parametrize("layer", NORMS.values(), ids=NORMS)
def test_norms_of_channels(layer: nn.Module) -> None:
    check(ended(copy.deepcopy(layer)), 8, 5, 5)


TOKENS = {
    "linear": nn.Linear(8, 8, bias=False),
    "layer norm": nn.LayerNorm(8),
    "layer norm without shift": nn.LayerNorm(8, bias=False),
    "rms norm": nn.RMSNorm(8),
    "LayerScale": Net(lambda m, x: x * m.gamma, gamma=(8,)),
    "LayerScale in place": Net(lambda m, x: x.mul_(m.gamma), gamma=(8,)),
    "position embedding": Net(lambda m, x: x + m.table, table=(1, 5, 8)),
    "position embedding in place": Net(lambda m, x: x.add_(m.table), table=(5, 8)),
    "class token": Net(lambda m, x: torch.cat([m.token.expand(len(x), -1, -1), x], 1), token=(1, 1, 8)),
    "class token as another": Net(lambda m, x: torch.cat([m.token.expand_as(x), x], 1), token=(1, 1, 8)),
    "prompt": Net(lambda m, x: x + m.prompt.expand(len(x), 5, 8).tanh(), prompt=(1, 1, 8)),
    "product": Net(lambda m, x: x @ m.w, w=(8, 8)),
    "product, as many rows as pictures": Net(lambda m, x: x[..., :B] @ m.w, w=(B, 8)),
    "product from the left": Net(lambda m, x: m.w @ x, w=(5, 5)),
    "einsum": Net(lambda m, x: torch.einsum("btc,cd->btd", x, m.w), w=(8, 8)),
    "einsum of vectors": Net(lambda m, x: torch.einsum("bc,cd->bd", x[:, 0, :B], m.w), w=(B, B)),
    "distances": Net(lambda m, x: torch.cdist(x[:, 0], m.prototypes), prototypes=(B, 8)),
    "where": Net(lambda m, x: torch.where(x > 0, m.token, x), token=(8,)),
    "masked": Net(lambda m, x: torch.where((x.sum(-1, keepdim=True) > 0), m.token, x), token=(1, 1, 8)),
    "power": Net(lambda m, x: x.abs().clamp(min=1e-6) ** (1 + m.p.sigmoid()), p=(1,)),
    "scalar": Net(lambda m, x: 2 * x / (1 + m.p.exp()), p=()),
    "table looked up": Net(lambda m, x: x * F.embedding(x.argmax(-1), m.table), table=(8, 8)),
    "table indexed": Net(lambda m, x: x + m.table[(x[:, :, 0] > 0).long()], table=(2, 8)),
    "compared": Net(lambda m, x: x * (x > m.p), p=(8,)),
    "chunks": Net(lambda m, x: x * m.p.chunk(2)[0] + m.p.chunk(2)[1], p=(16,)),
    "tied": Net(lambda m, x: F.linear(F.linear(x, m.w).tanh(), m.w.t(), m.w[0]), w=(8, 8)),
    "scale as shift": Net(lambda m, x: F.layer_norm(x, (8,), m.w, m.w), w=(8,)),
    "by keywords": Net(lambda m, x: F.linear(weight=m.w, input=x, bias=m.b), w=(8, 8), b=(8,)),
    "norm by torch": Net(lambda m, x: torch.layer_norm(x, (8,), m.w, m.b), w=(8,), b=(8,)),
    "windows": Net(lambda m, x: (x[:, :4].reshape(-1, 2, 8) * m.g).reshape(len(x), 4, 8) @ m.w, g=(2, 8), w=(8, 8)),
    "through no gradient": Net(lambda m, x: x * m.g + (x * m.g).detach(), g=(8,)),
}


@pytest.mark.parametrize("layer", TOKENS.values(), ids=TOKENS)
def test_tokens(layer: nn.Module) -> None:
    # Whether torch folds the axes of a product in one is up to who needs a gradient: another order of the same sums.
    check(of_tokens(copy.deepcopy(layer)), 5, 8, exact=layer is not TOKENS["product from the left"])


def put(m: Net, x: Tensor) -> Tensor:
    x = x.sin()
    x[:, 0] = m.token
    return x


def put_in_view(m: Net, x: Tensor) -> Tensor:
    x = x.sin()
    x[:, 0].add_(m.token)
    return x


def put_in_sum(m: Net, x: Tensor) -> Tensor:
    x = x.sin()
    x[:, 1:] += m.token
    return x


def under_a_view(m: Net, x: Tensor) -> Tensor:
    x = x.sin()
    flat = x.flatten(1)
    x *= m.token
    return torch.stack([flat.unflatten(1, (5, 8)), x], 1)


def filled(m: Net, x: Tensor) -> Tensor:
    room = x.new_zeros(len(x), 6, 8)
    room[:, 1:] = x
    room[:, 0] = m.token
    return room


@pytest.mark.parametrize("function", [put, put_in_view, put_in_sum, under_a_view, filled])
def test_written_in_place(function: Callable[..., Tensor]) -> None:
    check(of_tokens(Net(function, token=(8,)), nn.Tanh(), nn.Linear(8, 3)), 5, 8)


class Bias(nn.Module):
    """Attention within pairs of tokens with a table of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 2))
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x[:, :4].reshape(-1, 2, 8)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        bias = self.table[torch.tensor([1, 0, 2, 1])].view(2, 2, 2).permute(2, 0, 1)
        scores = (q @ k.mT + bias.unsqueeze(0)).softmax(-1)
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return (scores @ v + fused).transpose(1, 2).reshape(len(x), 4, 8)


class Attended(nn.Module):
    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.attention, self.first = nn.MultiheadAttention(8, 2, batch_first=first), first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        out = self.attention(x, x, x, need_weights=False)[0]
        return out if self.first else out.transpose(0, 1)


class Recurrent(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 0.1), self.bias)


def test_relative_positions() -> None:
    check(of_tokens(Bias()), 5, 8)


@pytest.mark.parametrize("first", [True, False])
def test_attention_of_torch(first: bool) -> None:
    check(of_tokens(Attended(first=first)), 5, 8, exact=False)


@pytest.mark.parametrize("fused", [True, False])
def test_latent_query(fused: bool) -> None:
    pool = AttentionPoolLatent(8, num_heads=2, latent_len=2, norm_layer=nn.LayerNorm)
    pool.fused_attn = fused
    check(nn.Sequential(nn.Linear(8, 8), pool, nn.Linear(8, 4)), 5, 8)


def test_recurrence() -> None:
    check(of_tokens(Recurrent(8, 3, num_layers=2, bidirectional=True, batch_first=True)), 5, 8, exact=False)


def test_standardised_kernel() -> None:
    check(ended(Standardised(8, 6, 3)), 8, 5, 5)


def test_parameters_in_lists_and_dicts() -> None:
    net = Net(lambda m, x: x * m.some[0] + m.named["shift"])
    net.some = nn.ParameterList([torch.zeros(8)])
    net.named = nn.ParameterDict({"shift": torch.zeros(5, 8)})
    check(of_tokens(net), 5, 8)


def test_one_tensor_under_two_names() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    check(net, 8)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    kept = Kept(parameters)
    engine = PerExample(parameters, 1, kept)
    logits = engine.logits(net, torch.ones(1, 8, dtype=torch.float64))
    engine.back(logits, logits.detach())
    assert kept.parts.keys() == {"0.weight", "0.bias", "2.bias"}


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_any_number_of_pictures(rows: int) -> None:
    check(ended(nn.Conv2d(8, 7, 3, groups=1), nn.BatchNorm2d(7)), 8, 5, 5, rows=rows)
    check(of_tokens(Net(lambda m, x: x + m.table, table=(5, 8)), nn.LayerNorm(8)), 5, 8, rows=rows)


class Turned(nn.Module):
    """Its batch norm gets a gradient with the strides of channels last for an input without them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.sin()).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("rows", [1, 2])
def test_batch_norm_of_one_picture_where_torch_is_wrong(rows: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Turned()).double().eval()
    nn.init.uniform_(net[1].norm.weight)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64).expand(rows, -1, -1, -1)
    cotangent = torch.randn(1, 16, 8, dtype=torch.float64)
    weight = net[0].weight
    step = 1e-6 * torch.randn_like(weight)
    kept = Kept(dict(net.named_parameters()))
    engine = PerExample(kept.parameters, rows, kept)
    logits = engine.logits(net, x)
    engine.back(logits, cotangent.expand(rows, -1, -1))
    with torch.no_grad():
        up, down = (functional_call(net, {"0.weight": weight + sign * step}, (x[:1],)) for sign in (1, -1))
    slope = ((up - down) * cotangent).sum() / 2
    assert_close((kept.of("0.weight", rows)[0] * step).sum(), slope, rtol=1e-6, atol=0)


class Cached(nn.Module):
    """It keeps what it makes of a parameter for the next picture."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cache = nn.Parameter(torch.ones(2, 8)), {}

    def forward(self, x: Tensor) -> Tensor:
        if "table" not in self.cache:
            self.cache["table"] = self.table[[0, 1, 0, 1, 1]]
        return x * self.cache["table"]


def test_what_a_module_remembers_of_its_parameters_is_made_anew() -> None:
    net = nn.Sequential(nn.Linear(8, 8), Cached(), nn.Flatten())
    with torch.no_grad():
        net(torch.ones(1, 5, 8))
    before = net[1].cache["table"]
    parameters = dict(net.named_parameters())
    for _ in range(2):
        kept = Kept(parameters)
        engine = PerExample(parameters, B, kept)
        logits = engine.logits(net, torch.ones(B, 5, 8))
        engine.back(logits, torch.ones_like(logits))
        assert kept.of("1.table", B).abs().min() > 0
    assert net[1].cache["table"] is before


def test_a_vision_transformer_with_all_its_parts() -> None:
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
    check(timm.create_model("vit_tiny_patch16_224", init_values=0.1, reg_tokens=1, qk_norm=True, **settings), 3, 16, 16)


def test_only_what_is_asked_for_and_used_is_given() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    net.unused = nn.Linear(2, 2)
    net.unused.forward = lambda x: x  # type: ignore[method-assign]
    asked = {name: each for name, each in net.named_parameters() if name in ("1.weight", "unused.weight")}
    kept = Kept(asked)
    engine = PerExample(asked, B, kept)
    logits = engine.logits(net, torch.ones(B, 8))
    engine.back(logits, torch.ones_like(logits))
    assert kept.parts.keys() == {"1.weight"}


def test_the_module_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval().requires_grad_(False)
    before, parameters = copy.deepcopy(net.state_dict()), dict(net.named_parameters())
    engine = PerExample(parameters, B, Kept(parameters))
    logits = engine.logits(net, torch.randn(B, 8))
    engine.back(logits, torch.ones_like(logits))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        PerExample(parameters, B, Kept(parameters)).logits(net, torch.randn(B, 9))
    for name, each in net.named_parameters():
        assert each is parameters[name]
        assert each.grad is None
        assert not each.requires_grad
    assert all(torch.equal(each, net.state_dict()[name]) for name, each in before.items())
    assert not torch.overrides._is_torch_function_mode_enabled()


# What cannot be followed is said


def mixed(net: nn.Module, *shape: int, rows: int = 2) -> None:
    parameters = dict(net.named_parameters())
    torch.manual_seed(0)
    for each in parameters.values():
        nn.init.normal_(each)
    engine = PerExample(parameters, rows, Kept(parameters))
    logits = engine.logits(net, torch.randn(rows, *shape))
    engine.back(logits, torch.ones_like(logits))


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return gradients[0] * scale, (gradients[0] * x).sum((0, 1))


def changed_afterwards(m: Net, x: Tensor) -> Tensor:
    x = x.tanh()
    out = x * m.p[0]
    x.zero_()
    return out


REFUSED = {
    "tokens first": (lambda m, x: F.linear(x.transpose(0, 1), m.p).tanh().transpose(0, 1), "linear does not keep"),
    "tokens first, copied": (lambda m, x: (x.transpose(0, 1).contiguous() * m.p[0]).transpose(0, 1), "does not keep"),
    "pictures mixed before": (lambda m, x: (x * m.p[0]).softmax(0), "mul does not keep"),
    "pictures mixed within": (lambda m, x: x.flatten(1).T @ x.flatten(1) @ m.p[:1].repeat(32, 4).T, "does not keep"),
    "pictures turned": (lambda m, x: (x * m.p[0]).roll(1, 0), "mul does not keep"),
    "changed afterwards": (changed_afterwards, "was changed in place afterwards"),
    "an autograd function": (lambda m, x: Hidden.apply(x, m.p[0]), "1.p reaches the logits by a way"),
    "a parameter of no name": (lambda m, x: x * m.alias[0], "is given a parameter that the module does not keep"),
    "several results": (lambda m, x: torch.broadcast_tensors(x, m.p[0])[0] * m.p[0], "broadcast_tensors"),
    "a checkpoint": (lambda m, x: checkpoint(lambda x: x * m.p[0], x, use_reentrant=True), "switch checkpointing off"),
    "logits without a picture": (lambda m, x: m.p[None], "by a way that torch does not show|does not require"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(function: Callable[..., Tensor], message: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), Net(function, p=(8, 8)), nn.Flatten())
    net[1].alias = [net[1].p]
    with pytest.raises(Mixed, match=message):
        mixed(net, 4, 8)


def test_training_mode_is_refused() -> None:
    with pytest.raises(Mixed, match="batch_norm in training mode"):
        mixed(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train(), 8)


def test_a_compound_call_without_a_rule_is_refused() -> None:
    class Padded(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x, key_padding_mask=torch.zeros(2, 4, dtype=torch.bool))[0].flatten(1)

    with pytest.raises(Mixed, match="padding masks"):
        mixed(nn.Sequential(nn.Linear(8, 8), Padded(8, 2, batch_first=True, bias=True)), 4, 8)

"""The operator layer sees every call, keeps the forward pass as it is, and leaves nothing behind."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import classifier_of, conv_net, random_input, seeded
from relevance import Net, relevance_of
from timm.layers import activations_me
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from xai_cli.operators.hidden import without_autograd_functions
from xai_cli.operators.mode import OperatorMode, UnruledError
from xai_cli.operators.rules import Rules

X = random_input(batch=3)


class Doubled(torch.autograd.Function):
    """What no function mode sees."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def in_place_before_a_branch(x: Tensor) -> Tensor:
    x = x * 1
    x.relu_()
    return x.sum((2, 3)) + x.amax((2, 3))


def in_place_without_its_result(x: Tensor) -> Tensor:
    y = x * 2
    y.add_(x).mul_(3)
    y += 1
    y.neg_()
    return y


def in_place_at_the_end(x: Tensor) -> Tensor:
    y = x * 2
    F.relu(y, inplace=True)
    return y


def in_place_through_two_names(x: Tensor) -> Tensor:
    y = z = x * 2
    y -= 1
    z.mul_(3)
    return torch.cat([y, z], 1)


def in_place_on_a_shape(x: Tensor) -> Tensor:
    y = x * 2
    y.unsqueeze_(1)
    y.transpose_(1, 2).squeeze_(2)
    return y.flatten(1) * y.shape[1]


def items_set(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 0] = x[:, 1]
    y[:, 1] += x[:, 2] * 2
    y[:, 2] = y[:, 0].clone() * y[:, 1].clone()
    return y


def a_part_without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = F.relu(x).add_(1)
    return x * gate + x.detach() + x.data.relu()


def numbers_read(x: Tensor) -> Tensor:
    return x * len(x) * x.shape[-1] * float(x.detach().abs().max()) if bool((x > 0).any()) else x


def rounded_in_place(x: Tensor) -> Tensor:
    y = x * 3
    y.round_()
    return y + x.requires_grad_()


FORWARDS = [
    in_place_before_a_branch,
    in_place_without_its_result,
    in_place_at_the_end,
    in_place_through_two_names,
    in_place_on_a_shape,
    items_set,
    a_part_without_gradient,
    numbers_read,
    rounded_in_place,
]


@pytest.mark.parametrize("forward", FORWARDS)
def test_the_forward_pass_and_its_gradient_stay_as_they_are(forward):
    plain, ruled = (X.clone().requires_grad_() for _ in range(2))
    expected = forward(plain)
    with OperatorMode(nn.Identity(), Rules()) as mode:
        found = mode.finished(forward(ruled))
    assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y, x in ((found, ruled), (expected, plain))]
    assert_close(*gradients, rtol=1e-12, atol=0)


@pytest.mark.parametrize("forward", FORWARDS)
def test_the_account_closes_whatever_is_done_in_place(forward):
    assert_close(relevance_of(Net(forward), X).gap, torch.zeros(3), rtol=0, atol=1e-9)


def through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].relu_()
    return y.flatten(1)


def through_its_data(x: Tensor) -> Tensor:
    y = x * 2
    y.data.relu_()
    return y.flatten(1)


def test_a_change_through_a_view_shows_as_another_forward_pass():
    with OperatorMode(nn.Identity(), Rules()) as mode:
        found = mode.finished(through_a_view(X.clone().requires_grad_()))
    assert not torch.allclose(found, through_a_view(X))


def test_a_change_behind_autograds_back_shows_in_the_account():
    net = Net(lambda net, x: net.head(through_its_data(net.first(x))), first=nn.Conv2d(3, 4, 1), head=nn.Linear(256, 3))
    passed = relevance_of(seeded(lambda: net), X)
    assert (passed.gap / passed.score).abs().min() > 1e-2


class Inner(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: x.cumprod(1), "cumprod"),
        (lambda x: Doubled.apply(x) + 1, "Doubled"),
        (lambda x: max((x.cumprod(1) for _ in range(1)), key=id), "cumprod"),
    ],
)
def test_what_has_no_rule_is_refused_with_its_layer(function, operator):
    net = nn.Sequential(nn.ReLU(), nn.Sequential(Inner(function)))
    sentence = (
        f"operator '{operator}' in layer '1.0' has no rule; take a method without rules .saliency, ig, gradcam., keep "
        "the operator's plain gradient with --allow-unruled, or report it"
    )
    with OperatorMode(net, Rules()), pytest.raises(UnruledError, match=sentence):
        net(X.clone().requires_grad_())


def test_the_model_itself_is_named_as_such_and_a_shared_layer_by_its_first_name():
    shared = Inner(lambda x: x.cumprod(1))
    net = Net(lambda net, x: net.second(x), first=shared, second=shared)
    with OperatorMode(net, Rules()), pytest.raises(UnruledError, match="in layer 'first'"):
        net(X.clone().requires_grad_())
    net = Net(lambda x: x.cumprod(1))
    with OperatorMode(net, Rules()), pytest.raises(UnruledError, match="in the model itself"):
        net(X.clone().requires_grad_())


@pytest.mark.parametrize("last", [True, False])
def test_an_autograd_function_is_refused_also_as_the_last_call(last):
    net = Net(lambda x: Doubled.apply(x) if last else Doubled.apply(x).relu())
    with OperatorMode(net, Rules()) as mode, pytest.raises(UnruledError, match="'Doubled'"):
        mode.finished(net(X.clone().requires_grad_()))


def test_compiled_script_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have other compilers used
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten())).double()
    with OperatorMode(scripted, Rules()) as mode, pytest.raises(UnruledError, match="has no rule"):
        mode.finished(scripted(X.clone().requires_grad_()))


def test_allowed_operators_keep_their_plain_gradient():
    net, (plain, ruled) = Net(lambda x: Doubled.apply(x).cumprod(1).relu()), (X.clone().requires_grad_() for _ in "ab")
    with OperatorMode(net, Rules(), allow_unruled=True) as mode:
        found = mode.finished(net(ruled))
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y, x in ((found, ruled), (net(plain), plain))]
    assert_close(*gradients, rtol=1e-12, atol=0)


def test_the_layer_is_closed_and_the_net_untouched_after_an_exception():
    net = seeded(conv_net).double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.append(Net(lambda x: x.cumprod(1)))
    with pytest.raises(UnruledError), OperatorMode(net, Rules()):
        net(X.clone().requires_grad_())
    assert _get_current_function_mode_stack() == []
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in net.modules())


def test_constants_are_left_alone():
    seen = []

    class Noting(Rules):
        def pointwise(self, name, apply, x):
            seen.append(name)
            return super().pointwise(name, apply, x)

    with OperatorMode(nn.Identity(), Noting()):
        torch.rand(3).relu_().cumprod(0)
        with torch.no_grad():
            X.clone().requires_grad_().relu().cumprod(1)
    assert seen == []


@pytest.mark.parametrize("name", ["SwishMe", "MishMe", "HardSigmoidMe", "HardSwishMe", "HardMishMe"])
def test_timms_hidden_activations_give_way_under_all_their_names(name):
    shared = getattr(activations_me, name)()
    net = nn.Sequential(shared, nn.Sequential(shared), shared)
    expected = net(X)
    net = without_autograd_functions(net)
    assert_close(net(X), expected, rtol=1e-12, atol=1e-12)
    with OperatorMode(net, Rules()) as mode:
        mode.finished(net(X.clone().requires_grad_()))


@pytest.mark.parametrize("forward", [in_place_at_the_end, lambda x: Doubled.apply(x)])
def test_a_classifier_hands_out_what_the_net_left_in_place_and_refuses_what_it_hides(forward):
    net = Net(lambda net, x: forward(net.linear(x.flatten(1))), linear=seeded(lambda: nn.Linear(192, 3)))
    classifier, x = classifier_of(net), X.clone().requires_grad_()
    if forward is in_place_at_the_end:
        assert_close(classifier.ruled_logits(x, Rules()), net(X), rtol=1e-12, atol=0)
    else:
        with pytest.raises(UnruledError, match="'Doubled'"):
            classifier.ruled_logits(x, Rules())


def test_a_rare_form_of_an_operator_is_refused_by_name():
    weight = torch.ones(3, 64, 3, dtype=X.dtype)
    with pytest.raises(UnruledError, match="operator 'bmm called in this way' in the model itself has no rule"):
        relevance_of(Net(lambda x: torch.bmm(x.flatten(2), mat2=weight)), X)


def test_groups_of_queries_share_their_keys_in_order():
    query, pairs = (torch.randn(1, heads, 5, 3, dtype=X.dtype).requires_grad_() for heads in (4, 2))
    keys, values = pairs, pairs.flip(1) ** 2
    plain = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
    with OperatorMode(nn.Identity(), Rules()):
        ruled = F.scaled_dot_product_attention(query, pairs, pairs.flip(1) ** 2, enable_gqa=True)
    assert_close(ruled, plain, rtol=1e-12, atol=1e-14)

"""Which layer gets which rule, and what is said to rules that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args, get_type_hints

import pytest
import torch
from nets import random_input, seeded
from relevance import Net, relevance_of
from torch import nn

from xai_cli.methods.lrp import Lrp
from xai_cli.operators.composites import COMPOSITES, PARAMETERS, Composite, Rule, composite_of, parse_rules
from xai_cli.operators.weighted_rules import RULES

E, Z, F, G, A = Rule("epsilon"), Rule("z-plus"), Rule("flat"), Rule("gamma"), Rule("alpha-beta")


@pytest.mark.parametrize(
    ("name", "convolution", "linear", "first"),
    [
        ("epsilon", E, E, None),
        ("epsilon-plus", Z, E, None),
        ("epsilon-plus-flat", Z, E, F),
        ("epsilon-alpha2-beta1", A, E, None),
        ("epsilon-alpha2-beta1-flat", A, E, F),
        ("epsilon-gamma-box", G, E, Rule("z-box")),
        ("excitation-backprop", Z, Z, None),
        ("attnlrp", E, E, None),
        ("cp-lrp", G, Rule("gamma", (0.05,)), None),
    ],
)
def test_a_composite_gives_each_kind_of_layer_its_rule(name, convolution, linear, first):
    composite = COMPOSITES[name]
    assert composite.rule("convolution", "stem", first=True) == (first or convolution)
    assert composite.rule("convolution", "layer1.0", first=False) == convolution
    assert composite.rule("linear", "head", first=False) == linear
    assert composite.products == ("half" if name == "attnlrp" else "gate")


def test_every_composite_and_rule_is_an_option():
    assert get_args(get_type_hints(Lrp)["composite"]) == ("auto", *COMPOSITES)
    assert PARAMETERS.keys() == RULES.keys()


def test_rules_as_written_replace_kinds_and_name_layers_of_which_the_last_counts():
    written = ["linear = gamma(0.1)", "first=flat", "layer4.*=z-plus", "layer4.1*=lrp-0", "head=alpha-beta(3,2)"]
    composite = composite_of("epsilon-plus", written, epsilon=0.5)
    assert composite.epsilon == 0.5
    assert composite.rule("linear", "fc", first=False) == Rule("gamma", (0.1,))
    assert composite.rule("convolution", "stem", first=True) == Rule("flat")
    assert composite.rule("convolution", "layer3.0", first=False) == Z
    assert composite.rule("convolution", "layer4.0.conv1", first=False) == Rule("z-plus")
    assert composite.rule("convolution", "layer4.1.conv1", first=False) == Rule("lrp-0")
    assert composite.rule("linear", "head", first=False) == Rule("alpha-beta", (3.0, 2.0))
    # A name also counts for the layer that sees the pixels, and upper case is not lower case.
    assert composite_of("epsilon-plus-flat", ["stem=z-plus"], 1e-6).rule("convolution", "stem", first=True) == Z
    assert composite_of("epsilon", ["HEAD=flat"], 1e-6).rule("linear", "head", first=False) == E


def test_a_place_that_is_given_twice_counts_as_given_last():
    composite = composite_of("epsilon", ["a*=flat", "ab=w2", "a*=z-plus"], 1e-6)
    assert composite.rule("linear", "ab", first=False) == Z


def test_composites_are_not_changed_by_rules():
    composite_of("epsilon", ["linear=flat", "a=w2"], 0.5)
    assert COMPOSITES["epsilon"] == Composite(E, E)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gamma", "--rules expects WHERE=RULE such as linear=gamma.0.1., found 'gamma'"),
        ("=gamma", "--rules expects WHERE=RULE"),
        (" = gamma", "--rules expects WHERE=RULE"),
        ("", "--rules expects WHERE=RULE"),
        ("linear=gama", "no rule of lrp is named 'gama'; did you mean 'gamma'?"),
        ("linear=", "no rule of lrp is named ''; write it like gamma.0.25."),
        ("linear=gamma(0.1", "no rule of lrp is named 'gamma.0.1'"),
        ("linear=gamma(0.1))", "no rule of lrp is named"),
        ("linear=gamma(a)", "the rule gamma takes 1 numbers from 0 up, found 'gamma.a.'"),
        ("linear=gamma()", "the rule gamma takes 1 numbers"),
        ("linear=gamma(1,2)", "the rule gamma takes 1 numbers"),
        ("linear=gamma(-1)", "the rule gamma takes 1 numbers from 0 up"),
        ("linear=gamma(nan)", "the rule gamma takes 1 numbers from 0 up"),
        ("linear=gamma(inf)", "the rule gamma takes 1 numbers from 0 up"),
        ("linear=flat(1)", "the rule flat takes 0 numbers"),
        ("linear=alpha-beta(2)", "the rule alpha-beta takes 2 numbers"),
        ("linear=alpha-beta(2,2)", "the rule alpha-beta needs alpha - beta = 1, found 'alpha-beta.2,2.'"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_in_one_sentence(text, sentence):
    for refuse in (lambda: parse_rules([text]), lambda: Lrp(rules=[text])):
        with pytest.raises(ValueError, match=sentence) as error:
            refuse()
        assert "\n" not in str(error.value)


def test_names_reach_the_layers_that_carry_them():
    net = Net(lambda net, x: net.b(net.a(x).relu()), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 3, 3))
    net = seeded(lambda: nn.Sequential(net))
    x, lrp_0 = random_input(), Rule("lrp-0")
    everywhere = relevance_of(net, x, Composite(lrp_0, lrp_0, first=Rule("flat"))).relevance
    named = relevance_of(net, x, Composite(lrp_0, lrp_0, named={"0.a": Rule("flat")})).relevance
    missed = relevance_of(net, x, Composite(lrp_0, lrp_0, named={"a": Rule("flat")})).relevance
    of_all = relevance_of(net, x, Composite(lrp_0, lrp_0, named={"0": Rule("flat")})).relevance
    assert torch.equal(named, everywhere)
    assert torch.equal(of_all, relevance_of(net, x, Composite(Rule("flat"), Rule("flat"))).relevance)
    assert torch.equal(missed, relevance_of(net, x, Composite(lrp_0, lrp_0)).relevance)


def test_composites_are_read_without_torch():
    code = "import sys, xai_cli.operators.composites; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

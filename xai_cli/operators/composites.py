"""Which layer gets which rule of LRP: composites by name, and rules as users write them; readable without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from xai_cli.sentences import unknown

if TYPE_CHECKING:
    from xai_cli.operators.plan import Plan

# How many numbers each rule may be given; without any it takes its own, and epsilon that of the composite.
PARAMETERS = {
    "epsilon": 1, "lrp-0": 0, "gamma": 1, "alpha-beta": 2, "z-plus": 0, "z-box": 0, "w2": 0, "flat": 0, "pass": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A rule by name, with its parameters."""

    name: str
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Composite:
    """Which rule each layer gets.

    Attributes:
        convolution, linear: rules by kind of layer.
        first: the rule of the layers that see the pixels, if they have one of their own.
        named: rules for layers whose name matches a pattern; the last that matches counts.
        products: of two factors, the signal takes all and the gate nothing; or each takes half.
        epsilon: what the rule epsilon adds to its denominator, relative to the size of a layer's output.
    """

    convolution: Rule
    linear: Rule
    first: Rule | None = None
    named: dict[str, Rule] = field(default_factory=dict)
    products: Literal["gate", "half"] = "gate"
    epsilon: float = 1e-6

    def rule(self, kind: Literal["convolution", "linear"], layer: str, *, first: bool) -> Rule:
        """The rule of one layer."""
        for pattern, rule in reversed(self.named.items()):
            if matches(pattern, layer):
                return rule
        if first and self.first is not None:
            return self.first
        return self.convolution if kind == "convolution" else self.linear


_EPSILON, _Z_PLUS, _FLAT, _Z_BOX = Rule("epsilon"), Rule("z-plus"), Rule("flat"), Rule("z-box")
_GAMMA, _ALPHA_BETA = Rule("gamma"), Rule("alpha-beta")
COMPOSITES: dict[str, Composite] = {
    "epsilon": Composite(_EPSILON, _EPSILON),
    "epsilon-plus": Composite(_Z_PLUS, _EPSILON),
    "epsilon-plus-flat": Composite(_Z_PLUS, _EPSILON, _FLAT),
    "epsilon-alpha2-beta1": Composite(_ALPHA_BETA, _EPSILON),
    "epsilon-alpha2-beta1-flat": Composite(_ALPHA_BETA, _EPSILON, _FLAT),
    "epsilon-gamma-box": Composite(_GAMMA, _EPSILON, _Z_BOX),
    "excitation-backprop": Composite(_Z_PLUS, _Z_PLUS),
    "attnlrp": Composite(_EPSILON, _EPSILON, products="half"),
    "cp-lrp": Composite(_GAMMA, Rule("gamma", (0.05,))),
}


def matches(pattern: str, layer: str) -> bool:
    """Whether a pattern names a layer, or something that it is part of."""
    return fnmatchcase(layer, pattern) or fnmatchcase(layer, f"{pattern}.*")


def default_composite(plan: Plan) -> str:
    """The composite for a model: made for attention if it attends or is mostly linear layers, else for convolutions."""
    mostly_linear = len(plan.layers("linear")) > len(plan.layers("convolution"))
    return "cp-lrp" if plan.attends or mostly_linear else "epsilon-plus-flat"


def composite_of(name: str, rules: Sequence[str], epsilon: float) -> Composite:
    """The composite called `name`, changed by `rules` as users write them: `KIND=RULE` or `LAYER=RULE`.

    Raises ValueError for a rule that cannot be read.
    """
    chosen, named = COMPOSITES[name], parse_rules(rules)
    return replace(
        chosen,
        convolution=named.pop("convolution", chosen.convolution),
        linear=named.pop("linear", chosen.linear),
        first=named.pop("first", chosen.first),
        named=named,
        epsilon=epsilon,
    )


def parse_rules(texts: Sequence[str]) -> dict[str, Rule]:
    """`{kind or layer: rule}` of texts such as `linear=gamma(0.1)` and `layer4.*=z-plus`.

    Raises ValueError for a text without `=`, an unknown rule, or parameters that it does not take.
    """
    parsed: dict[str, Rule] = {}
    for text in texts:
        where, sign, written = text.partition("=")
        if not sign or not where.strip():
            raise ValueError(f"--rules expects WHERE=RULE such as linear=gamma(0.1), found {text!r}")
        parsed.pop(where.strip(), None)  # a place that is given again counts as given last
        parsed[where.strip()] = _parse_rule(written.strip())
    return parsed


def _parse_rule(text: str) -> Rule:
    match = re.fullmatch(r"([\w-]+)(?:\(([^()]*)\))?", text)
    name = match[1] if match else text
    if match is None or name not in PARAMETERS:
        raise ValueError(unknown("rule of lrp", name, PARAMETERS, hint="write it like gamma(0.25)"))
    if match[2] is None:
        return Rule(name)
    try:
        numbers = tuple(map(float, match[2].split(",")))
    except ValueError:
        numbers = ()
    if not numbers or len(numbers) != PARAMETERS[name] or not all(0 <= each < float("inf") for each in numbers):
        raise ValueError(f"the rule {name} takes {PARAMETERS[name]} numbers from 0 up, found {text!r}")
    if name == "alpha-beta" and abs(numbers[0] - numbers[1] - 1) > 1e-6:
        raise ValueError(f"the rule alpha-beta needs alpha - beta = 1, found {text!r}")
    return Rule(name, numbers)

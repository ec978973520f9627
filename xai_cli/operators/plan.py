"""The plan of a model: each operator it calls, in which layer, and what a rule set will make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.operators.mode import OperatorMode, calling_layer, unruled
from xai_cli.operators.rules import Rules, Weighted, depends
from xai_cli.operators.table import CONSTANT, STEPS

# Treatments beside the kinds of rules: autograd is right as it is, or nobody knows.
PLAIN, REFUSED = "plain", "refused"
# It jumps with the picture, and is taken for constant in between.
STEP = "step"
KINDS = frozenset(
    name for name in vars(Rules) if not name.startswith("_") and name not in ("passed", "rescaled", "joined")
)
_COPIES = 3
_MATRIX_PRODUCTS = {
    "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "multi_head_attention_forward",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """All calls of one operator by one layer that get the same treatment.

    Attributes:
        layer: the name of the innermost module that calls; empty for the model itself.
        operator: its name, the same for all spellings.
        treatment: `plain` (needs no rule), `step` (jumps with the picture), `refused`, or the kinds of rules that it is
            said in, joined by commas.
    """

    layer: str
    operator: str
    treatment: str
    calls: int


@dataclass(frozen=True)
class Plan:
    """The steps of a model in the order of their first call.

    Attributes:
        batch_first: pictures stay on the first axis, alone or with windows of each, wherever a rule sees them.
    """

    steps: tuple[Step, ...]
    batch_first: bool = True

    @property
    def refused(self) -> tuple[str, ...]:
        """One sentence for each operator without rule."""
        return tuple(unruled(step.operator, step.layer) for step in self.steps if step.treatment == REFUSED)

    @property
    def attends(self) -> bool:
        """True if the model has a softmax, and multiplies matrices that both depend on the picture."""
        # A net with gates and a softmax over its scores does not attend: its products are not of matrices.
        products = {step.operator for step in self.steps if "product" in step.treatment}
        return self.calls("softmax") > 0 and not products.isdisjoint(_MATRIX_PRODUCTS)

    def calls(self, kind: str) -> int:
        """How often a kind of rule is asked for."""
        return sum(step.calls * step.treatment.split(", ").count(kind) for step in self.steps)

    def layers(self, kind: str) -> tuple[str, ...]:
        """The names of the layers that ask for a kind of rule, each once."""
        return tuple(dict.fromkeys(step.layer for step in self.steps if kind in step.treatment.split(", ")))

    def functions(self) -> frozenset[str]:
        """The names of all operators that the model calls."""
        return frozenset(step.operator for step in self.steps)


def plan_of(module: nn.Module, example: Tensor) -> Plan:
    """What `module` calls when it sees `example` `(1, C, h, w)`, each with its treatment."""
    try:
        return _survey(module, example.repeat(_COPIES, 1, 1, 1))
    except Exception:  # noqa: BLE001  # some models take one picture only
        return replace(_survey(module, example), batch_first=False)


def _survey(module: nn.Module, inputs: Tensor) -> Plan:
    survey = _Survey()
    with torch.enable_grad(), _SurveyMode(module, survey) as mode:
        mode.finished(module(inputs.detach().requires_grad_()))
    steps = (Step(layer, operator, kinds, calls) for (layer, operator, kinds), calls in mode.met.items())
    return Plan(tuple(steps), survey.batch_first)


class _Survey(Rules):
    """Notes which kinds an operator is said in, and whether pictures stay on the first axis."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.batch_first = True

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return partial(self._noted, name, found) if name in KINDS else found

    def _noted(self, kind: str, plain: Callable[..., Tensor], *operands: Any, **settings: Any) -> Tensor:
        calls = [each for each in operands if isinstance(each, Weighted)]
        self.kinds.append(calls[0].kind if calls else kind)
        tensors = [each.x for each in calls] or [each for each in operands if depends(each) or kind == "constant"]
        self.batch_first = self.batch_first and all(map(_is_by_picture, tensors))
        return plain(*operands, **settings)


def _is_by_picture(tensor: Tensor) -> bool:
    """True if the first axis counts copies of one picture, or windows of the first, then of the second, ..."""
    if tensor.ndim == 0 or len(tensor) % _COPIES:
        return False
    first, *others = tensor.detach().reshape(_COPIES, -1)
    noise = 1e-4 * float(first.nan_to_num(0, 0, 0).abs().max()) if first.numel() else 0.0
    return all(torch.allclose(first, each, rtol=0, atol=noise) for each in others)


class _SurveyMode(OperatorMode):
    """Counts every operator with its treatment, and refuses none."""

    def __init__(self, module: nn.Module, survey: _Survey) -> None:
        super().__init__(module, survey)
        self._survey = survey
        self.met: Counter[tuple[str, str, str]] = Counter()

    def _treated(self, name: str, *call: Any) -> Any:
        self._survey.kinds.clear()
        self._refused = False
        out = super()._treated(name, *call)
        if (name not in CONSTANT or name in STEPS) and not self._refused:
            treatment = STEP if name in STEPS else ", ".join(self._survey.kinds) or PLAIN
            self.met[calling_layer(self._names), name, treatment] += 1
        return out

    def _refuse(self, operator: str) -> None:
        self._refused = True
        self.met[calling_layer(self._names), operator, REFUSED] += 1

"""The operator layer: while open, every call that depends on the picture is seen, and replaced by its rule.

Nothing is left on the model: no hook, no patched class. What runs inside a rule is not seen again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xai_cli.operators.names import is_in_place, operator_name, usual_call
from xai_cli.operators.rules import NoRuleError, Rules, tensors_in
from xai_cli.operators.table import CONSTANT, LINEAR, RULED


class UnruledError(ValueError):
    """An operator that is not linear and has no rule: a map through it would be wrong."""


class OperatorMode(TorchFunctionMode):
    """While open, operators are treated by `rules`; those without rule are refused, or keep their plain gradient.

    Raises:
        UnruledError: an operator has no rule, and `allow_unruled` is not set.
    """

    def __init__(self, module: nn.Module, rules: Rules, *, allow_unruled: bool = False) -> None:
        super().__init__()
        self._names = {layer: name for name, layer in module.named_modules()}
        self._rules = rules
        self._allow_unruled = allow_unruled
        # What was changed in place lives on as another tensor, because a rule never works in place.
        self._renamed: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = self._current(args), self._current(kwargs or {})
        dependent = [tensor for tensor in tensors_in((args, kwargs)) if tensor.requires_grad]
        if not dependent or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        self._check_origin(dependent)
        args, kwargs = usual_call(args, kwargs)
        name, in_place = operator_name(function), is_in_place(function, kwargs)
        out = self._treated(name, function, args, kwargs, in_place)
        for tensor in tensors_in(out):
            tensor._seen = tensor.grad_fn  # type: ignore[attr-defined]  # a note of ours on the tensor
        if in_place and isinstance(args[0], Tensor):
            self._renamed[id(args[0])] = args[0], out
        return out

    def finished(self, output: Any) -> Any:
        """What the module returned, in its newest state, and refused if no call was seen to make it."""
        output = self._current(output)
        self._check_origin([tensor for tensor in tensors_in(output) if tensor.requires_grad])
        return output

    def _treated(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool
    ) -> Any:
        if name in RULED:
            try:
                return RULED[name](self._rules, *args, **kwargs)
            except NoRuleError as form:
                self._refuse(str(form))
            except TypeError as error:
                # The call itself did not fit, so it is one of the rarer forms that torch takes.
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
                self._refuse(f"{name} called in this way")
        elif name not in LINEAR and name not in CONSTANT:
            self._refuse(name)
        call = _on_copy(function) if in_place else function
        out = call(*args, **kwargs)
        if name in CONSTANT and isinstance(out, Tensor) and all(out is not each for each in args):
            return out.detach()
        if name in LINEAR and args and isinstance(args[0], Tensor):
            self._rules.passed(lambda x: call(x, *args[1:], **kwargs), args[0], out)
        return out

    def _refuse(self, operator: str) -> None:
        if not self._allow_unruled:
            raise UnruledError(unruled(operator, calling_layer(self._names)))

    def _check_origin(self, tensors: list[Tensor]) -> None:
        """A tensor that no call was seen to make comes from an autograd function or from compiled code."""
        for tensor in tensors:
            if tensor.grad_fn is not getattr(tensor, "_seen", None):
                tensor._seen = tensor.grad_fn  # type: ignore[attr-defined]
                self._refuse(type(tensor.grad_fn).__name__.removesuffix("Backward"))

    def _current(self, value: Any) -> Any:
        """The arguments with every tensor that was changed in place in its newest state."""
        if not self._renamed:
            return value
        if isinstance(value, Tensor):
            while id(value) in self._renamed:
                value = self._renamed[id(value)][1]
            return value
        if type(value) is dict:
            return {key: self._current(each) for key, each in value.items()}
        if isinstance(value, dict):  # with a type of its own it may be no plain mapping
            for key, each in value.items():
                if self._current(each) is not each:
                    value[key] = self._current(each)
            return value
        if type(value) in (tuple, list):
            return type(value)(map(self._current, value))
        return value


def unruled(operator: str, layer: str) -> str:
    """The sentence that refuses an operator."""
    place = f"layer {layer!r}" if layer else "the model itself"
    return (
        f"operator {operator!r} in {place} has no rule; take a method without rules (saliency, ig, gradcam), keep the "
        "operator's plain gradient with --allow-unruled, or report it"
    )


def calling_layer(names: Mapping[nn.Module, str]) -> str:
    """The name of the innermost layer whose code is running; empty for the model itself."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            layer = frame.f_locals.get("self")
            if isinstance(layer, nn.Module) and layer in names:
                return names[layer]
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return ""


def _on_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *rest, **settings: function(x.clone(), *rest, **settings)

"""One name for each operator, however it is spelled: `torch.add`, `x + y`, `x += y` and `x.add_(y)` are all `add`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Operators of Python and synonyms of torch.
_SYNONYMS = {
    "radd": "add", "iadd": "add", "isub": "sub", "rmul": "mul", "imul": "mul", "truediv": "div", "itruediv": "div",
    "rtruediv": "rdiv", "ipow": "pow", "imatmul": "matmul", "multiply": "mul", "subtract": "sub", "negative": "neg",
    "divide": "div", "true_divide": "div", "absolute": "abs", "concat": "cat", "concatenate": "cat", "clip": "clamp",
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "arccos": "acos",
    "special_expit": "sigmoid", "special_softmax": "softmax", "special_erf": "erf", "log_sigmoid": "logsigmoid",
}  # fmt: skip
# They are spelled like an operation in place, and are none.
_NOT_IN_PLACE = {"__invert__", "__index__", "__int__", "__init__", "__iter__", "requires_grad_"}
# Other names of arguments that torch takes, most of them numpy's.
_ARGUMENTS = {"axis": "dim", "keepdims": "keepdim", "ord": "p"}


def operator_name(function: Callable[..., Any]) -> str:
    """The operator's name without namespace, underscores and Python's letter for in place or reversed."""
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):  # reading `x.T` is a call of the property's descriptor
        name = function.__self__.__name__  # type: ignore[attr-defined]
    name = name.strip("_")
    return _SYNONYMS.get(name, name)


def is_in_place(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """True for `x.add_(y)`, `x += y`, `x[i] = y` and `relu(x, inplace=True)`."""
    name = getattr(function, "__name__", "")
    if name in _NOT_IN_PLACE:
        return False
    if name.startswith("__"):
        return name == "__setitem__" or name.startswith("__i")
    return name.endswith("_") or bool(kwargs.get("inplace"))


def usual_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with its operands in their places and its settings under torch's names."""
    if kwargs:
        kwargs = {_ARGUMENTS.get(name, name): value for name, value in kwargs.items()}
        for place, name in enumerate(("input", "other")):
            if name in kwargs and len(args) == place:
                args = (*args, kwargs.pop(name))
    return args, kwargs

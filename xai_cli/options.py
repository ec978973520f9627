"""An option is declared once: a dataclass field is the flag, the YAML key, the keyword and the manifest entry.

    @dataclass(frozen=True)
    class Smooth(Options):
        samples: Annotated[int, Option("Number of noisy copies.", min=1)] = 10

`Options` checks types and ranges whoever builds it, so the same sentence comes back from the command line, from YAML
and from Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Option:
    """What a field means to a user: its help, its smallest and largest value, a one-letter flag, the flag for "no".

    `may_change` says that the option shapes no map, so that a run may be continued with another value of it. `complete`
    is for shells: called with `incomplete`, the beginning of a value, it gives words that may be meant.
    """

    help: str
    min: float | None = None
    max: float | None = None
    short: str | None = None
    negative: str | None = None
    may_change: bool = False
    complete: Callable[[str], Iterable[str]] | None = None


@dataclass(frozen=True)
class Declaration:
    """One option as declared: its type without the annotation, and the annotation."""

    type: Any
    option: Option


@dataclass(frozen=True)
class Options:
    """Base of every set of options; building one checks each value and keeps it in the declared type.

    Raises:
        TypeError: a value has another type than declared.
        ValueError: a number is out of its range, or a word is not among the choices.
    """

    panel: ClassVar[str] = "Options"
    """The heading under which `--help` shows them."""

    def __post_init__(self) -> None:
        for name, declaration in declarations(type(self)).items():
            # Assigned past the freeze, because the object is still in the making.
            object.__setattr__(self, name, _checked(name, getattr(self, name), declaration))

    def as_row(self) -> dict[str, Any]:
        """The options as JSON can hold them: `{name: value}` in order of declaration."""
        return {name: _plain(getattr(self, name)) for name in declarations(type(self))}


def declarations(options: type[Options]) -> dict[str, Declaration]:
    """The declared options of a class, in order: `{field name: Declaration}`."""
    hints = get_type_hints(options, include_extras=True)
    found = {}
    for field in fields(options):
        annotated = hints[field.name]
        assert get_origin(annotated) is Annotated, f"{options.__name__}.{field.name} has no Option"
        kind, option = get_args(annotated)
        found[field.name] = Declaration(kind, option)
    return found


def flag(name: str) -> str:
    """The command-line flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def _checked(name: str, value: Any, declaration: Declaration) -> Any:
    try:
        value = _fitted(declaration.type, value)
    except TypeError:
        expected = _describe(declaration.type)
        kinds = (declaration.type, *get_args(declaration.type))
        error = ValueError if any(get_origin(kind) is Literal for kind in kinds) else TypeError
        raise error(f"{flag(name)} expects {expected}, found {value!r}") from None
    low, high = declaration.option.min, declaration.option.max
    for number in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(number, int | float):
            continue
        # Written so that NaN fails as well.
        if not ((low is None or number >= low) and (high is None or number <= high)):
            bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise ValueError(f"{flag(name)} expects {bounds}, found {number}")
        if not math.isfinite(number):
            raise ValueError(f"{flag(name)} expects a finite number, found {number}")
    return value


# YAML has no paths, and reads the number of a class or a layer as a number.
_TAKES: dict[Any, Any] = {int: int, float: (float, int), bool: bool, str: (str, int), Path: (Path, str)}


def _fitted(kind: Any, value: Any) -> Any:
    """The value in the declared type. Raises TypeError if it does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for argument in arguments:
            with suppress(TypeError):
                return _fitted(argument, value)
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (list, tuple):
        # One value is a list of one; of a tuple every place must be filled.
        if origin is list and isinstance(value, str | int | float | Path):
            value = [value]
        kinds = arguments if origin is tuple else arguments * len(value)
        if isinstance(value, list | tuple) and len(value) == len(kinds):
            return origin(map(_fitted, kinds, value))
    elif kind is NoneType and value is None:
        return None
    elif kind in _TAKES and isinstance(value, _TAKES[kind]) and isinstance(value, bool) == (kind is bool):
        return kind(value)
    raise TypeError


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(_describe(argument) for argument in arguments if argument is not NoneType)
    if origin is list:
        return f"a list of {_describe(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} times {_describe(arguments[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

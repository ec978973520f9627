"""All attribution methods: every file of this folder that defines a `Method` is found here, by its `name`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from inspect import isabstract

from xai_cli.methods.contract import Method
from xai_cli.sentences import unknown


def _methods() -> Iterator[type[Method]]:
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for member in vars(module).values():
            # What several methods share, and Method itself, are abstract.
            if isinstance(member, type) and issubclass(member, Method) and not isabstract(member):
                yield member


METHODS: dict[str, type[Method]] = {
    method.name: method for method in sorted(_methods(), key=lambda method: method.name)
}


def find_method(name: str) -> type[Method]:
    """The method called `name`. Raises LookupError with the nearest name."""
    if name not in METHODS:
        raise LookupError(unknown("method", name, METHODS, hint="see 'xai methods'"))
    return METHODS[name]


def summary(method: type[Method]) -> str:
    """The first paragraph of a method's docstring on one line, for lists and help."""
    return " ".join((method.__doc__ or "").partition("\n\n")[0].split())

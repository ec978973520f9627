"""The names of all models, read from the libraries' source files: a shell's completion cannot wait for torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("builtin", "timm", "torchvision")

# Both libraries register the functions under this decorator; others may stand between it and the function.
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def model_names(library: str) -> list[str]:
    """Every model name that `library` (timm, torchvision, builtin) offers, in its order and without its prefix."""
    if library == "builtin":
        return sorted(weights.stem for weights in (_folder("xai_cli") / "scenes" / "weights").glob("*.safetensors"))
    sources = (path.read_text(encoding="utf-8") for path in (_folder(library) / "models").glob("*.py"))
    return sorted({name for source in sources for name in _REGISTERED.findall(source)}, key=_ORDER[library])


def complete_model(incomplete: str) -> Iterator[str]:
    """The models, as `--model` takes them, of the libraries whose name can still be meant."""
    for library in LIBRARIES:
        if f"{library}/".startswith(incomplete[: len(library) + 1]):
            yield from (f"{library}/{name}" for name in model_names(library))


def _folder(package: str) -> Path:
    """Where a package lies; finding a top package does not import it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


_ORDER: dict[str, Callable[[str], list[str | int] | str]] = {"timm": _natural, "torchvision": str}

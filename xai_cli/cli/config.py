"""A YAML file of options: those of a command at its top, those of a method in a section with its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml

from xai_cli.options import Options, declarations, flag
from xai_cli.sentences import printable, unknown

Sections = Mapping[str, type[Options]]
_HINT = "--help lists them all"


def read_config(
    path: Path, known: Sequence[str], parts: Sequence[type[Options]], sections: Sections
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The options at the top of a YAML file, and those of each section; all are checked, also of unused sections.

    At the top stand fields of `parts` and whatever else is `known`. Raises a usage error for an unknown key, with the
    nearest one, and for a value that its option does not take.
    """
    shown = printable(str(path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{shown} is not a readable YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{shown} must hold options as 'name: value', found {type(content).__name__}")
    top, filled = {}, {}
    for key, value in content.items():
        if key in sections:
            filled[key] = _section(shown, key, value, sections[key])
        elif _field(key) in known:
            top[_field(key)] = value
        else:
            names = [*map(_yaml_key, known), *sections]
            raise typer.BadParameter(f"in {shown}: {unknown('option', str(key), names, hint=_HINT)}")
    for part in parts:
        build(part, {key: value for key, value in top.items() if key in declarations(part)})
    return top, filled


def _section(shown: str, name: str, values: Any, options: type[Options]) -> dict[str, Any]:
    if not isinstance(values, dict | None):
        raise typer.BadParameter(f"in {shown}: {name} must hold options as 'name: value', found {values!r}")
    known = declarations(options)
    for key in values or {}:
        if _field(key) not in known:
            names = [*map(_yaml_key, known)]
            raise typer.BadParameter(f"in {shown}: {unknown(f'option of {name}', str(key), names, hint=_HINT)}")
    section = {_field(key): value for key, value in (values or {}).items()}
    build(options, section)
    return section


def _field(key: Any) -> str:
    # YAML reads the key `null` as nothing.
    return "null" if key is None else str(key).replace("-", "_")


def _yaml_key(field: str) -> str:
    """A YAML key is the flag without its dashes."""
    return flag(field).removeprefix("--")


def build(options: type[Options], values: Mapping[str, Any]) -> Options:
    """The options with `values`, any mistake in them told as a usage error."""
    try:
        return options(**values)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error

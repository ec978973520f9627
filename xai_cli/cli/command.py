"""Sets of options become a Typer command; a YAML file gives the same options defaults.

Precedence: default < YAML < flag. This file names no option and looks at no type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from xai_cli.options import Declaration, Options, declarations, flag
from xai_cli.sentences import unknown

Sections = Mapping[str, type[Options]]
_HINT = "--help lists them all"


def add_command(
    app: typer.Typer,
    name: str,
    run: Callable[..., None],
    parts: Sequence[type[Options]],
    *,
    extra: Sequence[Parameter] = (),
    sections: Sections,
    help: str,
    panel: str,
) -> None:
    """Adds the command `name`: its flags are `extra` and the fields of `parts`; it calls `run(context, *parts,
    **extra)`.

    A YAML file given with `--config` may hold any of them at its top, and under a name of `sections` the options of
    that section; the section called like the command fills the command's own flags, the others wait in `context.meta`.
    """

    def call(context: typer.Context, config: Path | None = None, **values: Any) -> None:
        built = [build(part, {field.name: values.pop(field.name) for field in fields(part)}) for part in parts]
        run(context, *built, **values)

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            known = [parameter.name for parameter in signature if parameter.name not in ("context", "config")]
            top, filled = _read_config(path, known, sections)
            own = filled.pop(name, {})
            for part in parts:
                build(part, {key: value for key, value in top.items() if key in declarations(part)})
            for parameter in context.command.params:
                # What may be given several times need not be a list when it is given once.
                if (parameter.multiple or parameter.nargs == -1) and isinstance(top.get(str(parameter.name)), str):
                    top[str(parameter.name)] = [top[str(parameter.name)]]
            context.default_map = {**(context.default_map or {}), **top, **own}
            context.meta["sections"] = filled
        return path

    config = Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of options.", callback=read, is_eager=True, dir_okay=False),
    ]
    signature = [
        Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *extra,
        *(_parameter(key, declared, part) for part in parts for key, declared in declarations(part).items()),
        Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=config),
    ]
    call.__signature__ = Signature(signature)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    app.command(name, help=help, rich_help_panel=panel)(call)


def build(options: type[Options], values: Mapping[str, Any]) -> Options:
    """The options with `values`, any mistake in them told as a usage error."""
    try:
        return options(**values)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def _parameter(name: str, declared: Declaration, part: type[Options]) -> Parameter:
    option = declared.option
    long = flag(name) if option.negative is None else f"{flag(name)}/--{option.negative}"
    names = [long] if option.short is None else [long, f"-{option.short}"]
    default = next(field.default for field in fields(part) if field.name == name)
    info = typer.Option(*names, help=option.help, rich_help_panel=part.panel)
    typed: Any = Annotated.__class_getitem__((declared.type, info))  # type: ignore[attr-defined]  # a type that is data
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=typed)


def _read_config(path: Path, known: list[str], sections: Sections) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The options at the top of a YAML file, and those of each section; every key is checked, also of unused
    sections.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path} must hold options as 'name: value', found {type(content).__name__}")
    top, filled = {}, {}
    for key, value in content.items():
        if key in sections:
            filled[key] = _section(path, key, value, sections[key])
        elif _field(key) in known:
            top[_field(key)] = value
        else:
            names = [*map(_yaml_key, known), *sections]
            raise typer.BadParameter(f"in {path}: {unknown('option', str(key), names, hint=_HINT)}")
    return top, filled


def _section(path: Path, name: str, values: Any, options: type[Options]) -> dict[str, Any]:
    if not isinstance(values, dict | None):
        raise typer.BadParameter(f"in {path}: {name} must hold options as 'name: value', found {values!r}")
    known = declarations(options)
    for key in values or {}:
        if _field(key) not in known:
            names = [*map(_yaml_key, known)]
            raise typer.BadParameter(f"in {path}: {unknown(f'option of {name}', str(key), names, hint=_HINT)}")
    section = {_field(key): value for key, value in (values or {}).items()}
    build(options, section)
    return section


def _field(key: Any) -> str:
    return str(key).replace("-", "_")


def _yaml_key(field: str) -> str:
    """A YAML key is the flag without its dashes."""
    return flag(field).removeprefix("--")

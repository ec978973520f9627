"""Sets of options become a Typer command; a YAML file gives the same options defaults.

Precedence: default < YAML < flag. This file names no option and looks at no type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from xai_cli.cli.config import Sections, build, read_config
from xai_cli.options import Declaration, Options, declarations, flag


def add_command(
    app: typer.Typer,
    name: str,
    run: Callable[..., None],
    parts: Sequence[type[Options]],
    *,
    extra: Sequence[Parameter] = (),
    positional: Collection[str] = (),
    sections: Sections,
    help: str,
    panel: str,
) -> None:
    """Adds the command `name`: its flags are `extra` and the fields of `parts`, of which those that are `positional`
    must be given, by place; it calls `run(context, *parts, **extra)`.

    A YAML file given with `--config` may hold any of them at its top, and under a name of `sections` the options of
    that section; the section called like the command fills the command's own flags, the others wait in `context.meta`.
    """

    def call(context: typer.Context, config: Path | None = None, **values: Any) -> None:
        built = [build(part, {field.name: values.pop(field.name) for field in fields(part)}) for part in parts]
        run(context, *built, **values)

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            known = [parameter.name for parameter in signature if parameter.name not in ("context", "config")]
            top, filled = read_config(path, known, parts, sections)
            own = filled.pop(name, {})
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
        *(
            _positional(key, declared) if key in positional else _parameter(key, declared, part)
            for part in parts
            for key, declared in declarations(part).items()
        ),
        Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=config),
    ]
    call.__signature__ = Signature(signature)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    app.command(name, cls=_Command, help=help, rich_help_panel=panel)(call)


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # Pydantic puts it before whole sentences
            raise


def _positional(name: str, declared: Declaration) -> Parameter:
    info = typer.Argument(help=declared.option.help, autocompletion=declared.option.complete)
    typed: Any = Annotated.__class_getitem__((declared.type, info))  # type: ignore[attr-defined]  # a type that is data
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=typed)


def _parameter(name: str, declared: Declaration, part: type[Options]) -> Parameter:
    option = declared.option
    long = flag(name) if option.negative is None else f"{flag(name)}/--{option.negative}"
    names = [long] if option.short is None else [long, f"-{option.short}"]
    default = next(field.default for field in fields(part) if field.name == name)
    info = typer.Option(*names, help=option.help, rich_help_panel=part.panel, autocompletion=option.complete)
    typed: Any = Annotated.__class_getitem__((declared.type, info))  # type: ignore[attr-defined]  # a type that is data
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=typed)

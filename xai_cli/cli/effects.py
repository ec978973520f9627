"""Options that were given and change nothing are refused: whoever gives one believes that it does something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer


def refuse_idle(context: typer.Context, idle: Mapping[str, Sequence[str]]) -> None:
    """Raises a usage error for the first option of `idle`, `{why: names}`, that stands in the command or its YAML
    file.
    """
    for why, names in idle.items():
        for name in names:
            source = context.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                raise typer.BadParameter(f"{_typed(context, name)} has no effect {why}; leave it out")


def _typed(context: typer.Context, name: str) -> str:
    """The flag of an option, where it has two the one that was meant."""
    option = next(each for each in context.command.params if each.name == name)
    flags = option.secondary_opts if option.secondary_opts and context.params[name] is False else option.opts
    return flags[0]

"""What a shell may complete the words of a command to, besides what the options themselves know."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten

from xai_cli.methods import METHODS, summary

# Typer wraps longer ones at 80 columns, and fish would offer each further line as a word of its own.
_LONGEST_HELP = 60


def complete_method(incomplete: str) -> Iterator[tuple[str, str]]:
    """The methods whose name begins like that, each with what it is."""
    for name, method in METHODS.items():
        if name.startswith(incomplete):
            yield name, shorten(summary(method), _LONGEST_HELP, placeholder="...")

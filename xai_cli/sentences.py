"""The sentences in which mistakes are told: what was expected, what was found, what to type next."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str], *, hint: str = "", always: bool = False) -> str:
    """One sentence for an unknown `name`: the nearest of the `known` names, or `hint` on how to list them.

    With `always` the three nearest, however far they are.
    """
    known = list(known)
    # The word itself often stands inside the right name ("resnet" in "resnet50"), which edit distance ranks low.
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)]
    near = near or [candidate for candidate in known if name and name.lower() in candidate.lower()][:3]
    if always:
        nearest = difflib.get_close_matches(name.lower(), lowered, n=3 + len(near), cutoff=0)
        near = list(dict.fromkeys([*near, *(lowered[match] for match in nearest)]))[:3]
    sentence = f"no {kind} is named {name!r}"
    if near:
        sentence += f"; did you mean {' or '.join(map(repr, near))}?"
    elif hint:
        sentence += f"; {hint}"
    return sentence


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its type if it says nothing: for use inside another sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(text: str) -> str:
    """The text with everything escaped that could command a terminal: control characters, turned writing directions,
    bytes that are no text. One line stays one line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        ascii(sign)[1:-1] if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") else sign for sign in text
    )

"""Hooks that are gone when the work is done, whatever happened meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """While open, the hooks of these handles are on their layers; then they are removed."""
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()

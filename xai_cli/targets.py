"""Which class each picture is explained for: the text of `--target` becomes class indices, picture by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from xai_cli.sentences import unknown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Target:
    """One class to explain a picture for; with `against`, the score is the difference of the two logits."""

    index: int
    against: int | None = None
    how: str = "given"


@dataclass(frozen=True)
class TargetRule:
    """How targets are chosen: `predicted`, `label` (the picture's folder names the class), `top` or `given`."""

    how: str
    count: int = 1
    given: Target | None = None

    def check(self, key: str, labels: Sequence[str]) -> None:
        """Raises LookupError if the picture `key` cannot have a target, before anything is spent on it."""
        if self.how == "label":
            _folder_class(key, tuple(labels))

    def choose(self, logits: NDArray[np.float32], key: str, labels: Sequence[str]) -> list[Target]:
        """The targets of one picture with `logits` `(K,)`."""
        if self.given is not None:
            return [self.given]
        if self.how == "label":
            return [Target(_folder_class(key, tuple(labels)), how="label")]
        # A stable sort of the negated logits: of equal classes the first wins, on every machine.
        best = (-logits).argsort(kind="stable")[: self.count]
        return [Target(int(index), how=self.how) for index in best]


def parse_target(text: str, labels: Sequence[str]) -> TargetRule:
    """The rule that `text` asks for: predicted, label, top:K, a class by index or name, or A-vs-B.

    Raises:
        LookupError: a class is unknown; the sentence names the nearest ones.
        ValueError: `top:K` asks for fewer than one class or more than there are, or both sides of A-vs-B are one class.
    """
    if text in ("predicted", "label"):
        return TargetRule(text)
    if text.startswith("top:"):
        count = text.removeprefix("top:")
        if not count.isdecimal() or not 1 <= int(count) <= len(labels):
            raise ValueError(f"--target top:K expects a number of classes from 1 to {len(labels)}, found {text!r}")
        return TargetRule("top", count=int(count))
    target = _given(text, tuple(labels))
    if target.index == target.against:
        raise ValueError(f"--target A-vs-B expects two classes, found {text!r}, which names one twice")
    return TargetRule("given", given=target)


def _given(text: str, labels: tuple[str, ...]) -> Target:
    """The class or the two classes of `text`. A name may hold "-vs-" itself: the first reading that is known counts."""
    parts = text.split("-vs-")
    failure = None
    for cut in range(len(parts)):
        left, right = "-vs-".join(parts[:cut]), "-vs-".join(parts[cut:])
        try:
            return Target(find_class(left or text, labels), find_class(right, labels) if left else None)
        except LookupError as error:
            # The whole text of A-vs-B resembles no class; the first cut tells which side is wrong.
            failure = error if cut < 2 else failure
    assert failure is not None
    raise failure


def find_class(text: str, labels: tuple[str, ...]) -> int:
    """The index of a class given by its name, by one of the comma-separated synonyms of its name, or by index.

    A class named `10` goes before the index 10, because folders of pictures carry names. Raises LookupError if no class
    or more than one fits.
    """
    found = _classes_by_name(labels).get(_fold(text), ())
    if len(found) == 1:
        return found[0]
    if text.isdecimal() and int(text) < len(labels):
        return int(text)
    if found:
        raise LookupError(f"{text!r} names classes {' and '.join(map(str, found))}; give the index")
    known = [name.strip() for label in labels for name in label.split(",")]
    raise LookupError(unknown("class", text, known, hint=f"the model has classes 0 to {len(labels) - 1}"))


def _folder_class(key: str, labels: tuple[str, ...]) -> int:
    folder = PurePosixPath(key).parent.name
    if not folder:
        raise LookupError(
            f"--target label expects pictures in folders named after classes, found {key!r} in none; give the folder "
            "that holds those folders"
        )
    return find_class(folder, labels)


@lru_cache(maxsize=4)
def _classes_by_name(labels: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Whole names before synonyms: `crane` may be one class's name and another's synonym."""
    whole: dict[str, tuple[int, ...]] = {}
    parts: dict[str, tuple[int, ...]] = {}
    for index, label in enumerate(labels):
        whole[_fold(label)] = (*whole.get(_fold(label), ()), index)
        for part in {_fold(part) for part in label.split(",")}:
            parts[part] = (*parts.get(part, ()), index)
    return parts | whole


def _fold(name: str) -> str:
    """Case, spaces and underscores do not matter in a class's name."""
    return name.strip().casefold().replace("_", " ")

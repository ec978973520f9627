"""The files that a merge writes: all are known, and kept apart from what is read, before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xai_cli.merging.merge_options import MergeOptions


@dataclass(frozen=True)
class Products:
    """Where a merge writes.

    Attributes:
        out: the merge.
        table: what a search tried, if there is one.
        statistics: what is estimated of each checkpoint, if it is.
        heads: the head of each checkpoint, if they are kept.
    """

    out: Path
    table: Path | None
    statistics: tuple[Path, ...]
    heads: tuple[Path, ...]

    @property
    def search(self) -> Path:
        """What a search has done so far, if there is one."""
        return self.out.with_name(f"{self.out.name}.search")

    @property
    def every(self) -> list[Path]:
        """All of them, also those that are gone at the end."""
        searched = [] if self.table is None else [self.table, self.search]
        return [self.out, *searched, *self.statistics, *map(partial_of, self.statistics), *self.heads]

    def check_apart(self, read: Iterable[Path]) -> None:
        """Raises ValueError if one of them is a folder, or one of the files that are read."""
        read = [*read]
        for path in self.every:
            found = f"-o expects a new file, found {path}" if path == self.out else f"-o {self.out} would write {path}"
            if any(_same(path, each) for each in read):
                raise ValueError(f"{found}, which is to be read; give another -o")
            if path.is_dir():
                raise ValueError(f"{found}, which is a folder; give another -o")


def products(out: Path, options: MergeOptions, models: int, *, heads: bool) -> Products:
    """The files of a merge of so many models; `heads` says whether each one's head is kept."""

    def numbered(kind: str) -> tuple[Path, ...]:
        return tuple(out.with_name(f"{out.stem}.{kind}-{number}.safetensors") for number in range(1, models + 1))

    return Products(
        out,
        out.with_suffix(".csv") if options.grid or options.random else None,
        numbered("gram" if options.method == "regmean" else "fisher") if options.data else (),
        numbered("head") if heads else (),
    )


def partial_of(statistics: Path) -> Path:
    """What is done so far of a file of statistics."""
    return statistics.with_name(f"{statistics.name}.partial")


def _same(one: Path, other: Path) -> bool:
    # A symlink that is read may lead to a file that is not there yet; two names of one file need no symlink.
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))

"""What a merge would do, told without doing it: its tensors, coefficients, statistics and files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from xai_cli.merging.estimates import estimates
from xai_cli.merging.inputs import Inputs
from xai_cli.merging.judging import task_names
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import labelled
from xai_cli.merging.plan import lines
from xai_cli.merging.products import products
from xai_cli.merging.search import grid
from xai_cli.sentences import printable


def dry_run_lines(inputs: Inputs, merge: MergeOptions, fisher: FisherOptions, out: Path | None) -> list[str]:
    """The lines of the plan, then what else the merge would read and write, a word for its kind before the first tab:
    `coefficients`, `statistics` of each checkpoint, `pictures` of each folder, `file` for each that would be written.

    Without `out`, files have no names yet. Raises what the merge itself would raise for folders that are missing or
    hold no picture, and for files of statistics that are missing or of other weights.
    """
    # Only their number matters as long as they have no names.
    files = products(out or Path("merge.safetensors"), merge, len(inputs.weights), heads=inputs.plan.head == "keep-all")
    written = [*files.statistics, *([files.table] if files.table else []), files.out, *files.heads]
    told = [
        ("coefficients", _coefficients(inputs, merge, fisher)),
        *(("statistics", *each) for each in _statistics(inputs, merge, fisher, files.statistics)),
        *(("pictures", *each) for each in _pictures(merge)),
        *(("file", str(path)) for path in (written if out else [])),
    ]
    return [*lines(inputs.plan), *("\t".join(map(printable, line)) for line in told)]


def _coefficients(inputs: Inputs, merge: MergeOptions, fisher: FisherOptions) -> str:
    if merge.grid is not None:
        return f"the best of {len(grid(merge.grid))} on a grid"
    if merge.random is not None:
        return f"the best of {merge.random} random ones and equal ones, seed {fisher.seed}"
    return ",".join(f"{each:.3g}" for each in merge.coefficients_for(len(inputs.weights)))


def _statistics(
    inputs: Inputs, merge: MergeOptions, fisher: FisherOptions, to_make: Sequence[Path]
) -> Iterator[tuple[str, str]]:
    """Of each checkpoint the file that is there, or the folder from which it would be made."""
    for number, path in enumerate(merge.fisher or []):
        about = inputs.statistics(number, path).about
        yield str(path), f"{about.kind} of {about.n} pictures"
    kind: Literal["fisher", "gram"] = "gram" if merge.method == "regmean" else "fisher"
    for each in estimates(inputs, kind, merge.data or [], fisher, to_make):
        yield str(each.folder), f"{kind} to make of {len(each.pictures)} pictures"


def _pictures(merge: MergeOptions) -> Iterator[tuple[str, str]]:
    for folder in task_names(merge.eval or []).values():
        yield str(folder), f"--eval on {len(labelled(folder, (), required=False))} pictures"
    if merge.recalibrate_bn is not None:
        found = len(labelled(merge.recalibrate_bn, (), required=False))
        yield str(merge.recalibrate_bn), f"--recalibrate-bn on {found} pictures"

"""One merge from its inputs to its file: statistics, coefficients, accuracies, and what is written of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from xai_cli.merging.estimates import Estimate, estimates
from xai_cli.merging.fisher import Progress
from xai_cli.merging.formula import Average, FisherMean, Rule, restricted, taking_part
from xai_cli.merging.inputs import Inputs
from xai_cli.merging.judging import Court, Tensors, names_apart, task_names
from xai_cli.merging.merge import Apart, merged
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import Picture, labelled
from xai_cli.merging.plan import head_layout
from xai_cli.merging.products import products
from xai_cli.merging.provenance import (
    Outcome,
    Row,
    digest_of_request,
    estimates_asked,
    head_header,
    request_of,
    statistics_asked,
    told_by,
    written_before,
)
from xai_cli.merging.regmean import RegMean
from xai_cli.merging.search import Coefficients, begun, best, dirichlet, grid, search, write_table
from xai_cli.merging.statistics import Statistics, Tell
from xai_cli.merging.writing import write_tensors
from xai_cli.outputs.files import alone_at


class Job:
    """One merge from its inputs to its file."""

    def __init__(
        self, inputs: Inputs, merge: MergeOptions, fisher: FisherOptions, out: Path, *, overwrite: bool,
        progress: Progress, tell: Tell,
    ) -> None:  # fmt: skip
        self._inputs, self._merge, self._fisher, self._out = inputs, merge, fisher, out
        self._overwrite, self._progress, self._tell = overwrite, progress, tell
        self._products = products(out, merge, len(inputs.weights), heads=inputs.plan.head == "keep-all")
        self._lost: set[Path] = set()

    def run(self) -> Outcome:
        """What came out; the files are written, each whole or not at all.

        Raises ValueError if another process writes the same, or one of the files is there from another request and may
        not be replaced. A file that is read is never replaced.
        """
        self._products.check_apart([*(each.path for each in self._inputs.weights), *self._read_beside()])
        pictures, asked = self._pictures(), self._asked()
        court = self._court(pictures.get("--recalibrate-bn", []))
        self._check_fit()
        court.check(search=bool(self._merge.grid or self._merge.random))
        with alone_at(self._out):
            self._check_numbers()
            found = self._made(court, pictures, asked)
            if self._products.table is not None:
                self._products.search.unlink(missing_ok=True)
            return found

    def _made(self, court: Court, pictures: Mapping[str, Sequence[Picture]], asked: Sequence[Estimate]) -> Outcome:
        given = [] if asked else self._statistics(self._merge.fisher or [])
        known = request_of(self._inputs, self._merge, pictures, self._fisher)
        known |= estimates_asked([each.settings for each in asked]) if asked else statistics_asked(given)
        self._refuse_others(known)
        statistics = self._statistics([self._estimated(each) for each in asked]) if asked else given
        request = known | statistics_asked(statistics)
        # What is estimated follows from the rest.
        digest = digest_of_request(known)
        if written_before(self._out, request, overwrite=self._overwrite):
            return self._completed(court, statistics, digest)
        coefficients = self._coefficients(court, statistics, digest)
        rows = self._judged(court, statistics, coefficients) if self._merge.eval else []
        return self._write(court, statistics, coefficients, request, rows)

    def _read_beside(self) -> list[Path]:
        """Files that the options name."""
        found = (each for options in (self._merge, self._inputs.model) for each in vars(options).values())
        every = (each if isinstance(each, list) else [each] for each in found)
        return [path for paths in every for path in paths if isinstance(path, Path)]

    def _asked(self) -> list[Estimate]:
        """What is to be estimated, if statistics are not given."""
        kind: Literal["fisher", "gram"] = "gram" if self._merge.method == "regmean" else "fisher"
        return estimates(self._inputs, kind, self._merge.data or [], self._fisher, self._products.statistics)

    def _pictures(self) -> dict[str, Sequence[Picture]]:
        """What is read beside statistics, by flag and folder: listed before anything is spent."""
        found: dict[str, Sequence[Picture]] = {
            f"--eval {name}": labelled(folder, (), required=False)
            for name, folder in task_names(self._merge.eval or []).items()
        }
        if self._merge.recalibrate_bn is not None:
            found["--recalibrate-bn"] = labelled(self._merge.recalibrate_bn, (), required=False)
        return found

    def _check_numbers(self) -> None:
        """Raises ValueError for numbers that cannot be merged, which else would be found after hours."""
        if (self._merge.data or self._merge.eval) and (self._overwrite or not self._out.exists()):
            for _ in self._merged(Average(), self._merge.coefficients_for(len(self._inputs.weights))):
                pass

    def _refuse_others(self, request: Mapping[str, str]) -> None:
        """Raises ValueError if something is where a file is to be written that is none of this request."""
        if self._overwrite:
            return
        there = written_before(self._out, request, overwrite=False)
        table = self._products.table
        begun_here = there or begun(self._products.search, digest_of_request(request))
        if table is not None and table.exists() and not begun_here:
            raise ValueError(f"{table} exists and is no table of this request; give another -o, or --overwrite")
        for number, path in enumerate(self._products.heads):
            written_before(path, head_header(self._inputs, number), overwrite=False)

    def _completed(self, court: Court, statistics: Sequence[Statistics], digest: str) -> Outcome:
        """What the merge tells that is there already; what is missing beside it is made again."""
        beside = [*self._products.heads, *([self._products.table] if self._products.table else [])]
        missing = [path for path in beside if not path.exists()]
        as_it_is = "what was missing beside it is made" if missing else "left as it is; --overwrite makes it again"
        self._tell(f"{self._out} is there already, from the same request, and {as_it_is}")
        if self._products.table in missing:
            self._coefficients(court, statistics, digest)
        self._write_heads()
        return told_by(self._out)

    def _check_fit(self) -> None:
        """Raises ValueError if weights are to be loaded into the model that do not fit."""
        inputs = self._inputs
        for flag, given in (("--eval", self._merge.eval), ("--recalibrate-bn", self._merge.recalibrate_bn)):
            if given and inputs.misfit_of_merge is not None:
                raise ValueError(f"{flag} expects a merge that fits the model, and this one {inputs.misfit_of_merge}; "
                                 f"leave it out, or choose another --tensors or --on-mismatch")  # fmt: skip
        for number, weights in enumerate(inputs.weights):
            misfit = inputs.misfit_of(number)
            if self._merge.data and misfit is not None:
                raise ValueError(f"--data expects checkpoints that fit the model, and {weights.path} {misfit}; "
                                 "leave it out, or give --fisher")  # fmt: skip

    def _statistics(self, places: Sequence[Path]) -> list[Statistics]:
        """Those of every checkpoint, read."""
        if self._merge.method == "average":
            return []
        found = [self._inputs.statistics(each, path) for each, path in enumerate(places)]
        wanted = "gram" if self._merge.method == "regmean" else "fisher"
        for each in found:
            if each.about.kind != wanted:
                raise ValueError(f"--method {self._merge.method} expects {wanted} statistics, found {each.about.kind} "
                                 f"in {each.weights.path}; make them with --data")  # fmt: skip
            if each.about.biased:
                self._tell(f"note: {each.weights.path} holds a biased estimate ({each.about.estimator})")
        return self._balanced(found) if wanted == "fisher" else found

    def _balanced(self, fishers: Sequence[Statistics]) -> list[Statistics]:
        """The Fishers with their norms and means over what they merge; what they do not is told."""
        ruled = [entry for entry in self._inputs.plan.entries if entry.treatment == "merge"]
        known = [frozenset(each.weights.names) for each in fishers]
        lacking = [entry.name for entry in ruled if any(entry.name not in known[model] for model in entry.models)]
        if lacking:
            self._tell(f"note: {len(lacking)} of {len(ruled)} merged tensors have no Fisher in some file and take the "
                       f"plain mean, {lacking[0]} first; Fishers of the same --params merge them")  # fmt: skip
        return restricted(fishers, [entry.name for entry in ruled])

    def _estimated(self, asked: Estimate) -> Path:
        """The file of one checkpoint's statistics; pictures that could not be read for them are counted."""
        about = asked.make(overwrite=self._overwrite, progress=self._progress, tell=self._tell)
        skipped = {*about.skipped}
        self._lost |= {picture.path for picture in asked.pictures if picture.key in skipped}
        return asked.out

    def _court(self, recalibration: Sequence[Picture]) -> Court:
        folders = task_names(self._merge.eval or [])
        return Court(self._inputs, folders, recalibration, self._fisher.batch_size, self._tell, self._leave_out)

    def _leave_out(self, picture: Picture, why: str) -> None:
        if picture.path in self._lost:  # by another head, or another candidate of the search
            return
        self._lost.add(picture.path)
        self._tell(f"{picture.key} is left out: {why}")

    def _rule(self, statistics: Sequence[Statistics]) -> Rule:
        if self._merge.method == "average":
            return Average()
        if self._merge.method == "regmean":
            return RegMean(statistics, self._merge.regmean_scale)
        return FisherMean(statistics, self._merge.normalize, self._merge.floor)

    def _merged(self, rule: Rule, coefficients: Coefficients, apart: Apart | None = None) -> Tensors:
        return merged(self._inputs.plan, self._inputs.weights, rule, coefficients, apart)

    def _coefficients(self, court: Court, statistics: Sequence[Statistics], request: str) -> Coefficients:
        """As given, or the best of a search, whose table is written beside the merge."""
        models = len(self._inputs.weights)
        if self._merge.grid is not None:
            candidates = grid(self._merge.grid)
        elif self._merge.random is not None:
            candidates = dirichlet(self._merge.random, models, self._fisher.seed)
        else:
            return self._merge.coefficients_for(models)

        def score(coefficients: Coefficients) -> Mapping[str, float]:
            rule = self._rule(statistics)
            return court.of_merge(lambda: self._merged(rule, coefficients))

        trials = search(candidates, score, partial=self._products.search, request=request)
        table = self._products.table
        assert table is not None
        write_table(table, trials)
        found = best(trials)
        chosen = ", ".join(f"{each:.3g}" for each in found.coefficients)
        self._tell(f"best of {len(trials)} coefficients, all in {table}: {chosen}, mean {found.mean:.1%}")
        self._tell("note: the accuracies of this merge are optimistic, since the pictures of --eval chose it; for an "
                   "honest number give it another folder with these --coefficients")  # fmt: skip
        return found.coefficients

    def _judged(self, court: Court, statistics: Sequence[Statistics], coefficients: Coefficients) -> list[Row]:
        """The accuracies of every input, of the plain mean and of the merge, told as a table."""
        models = len(self._inputs.weights)
        equal = (1 / models,) * models
        names = names_apart([each.path for each in self._inputs.weights])
        rows = [_row(name, None, court.of_input(each)) for each, name in enumerate(names)]
        rows.append(_row("plain mean", equal, court.of_merge(lambda: self._merged(Average(), equal))))
        rule = self._rule(statistics)
        rows.append(_row(self._merge.method, coefficients, court.of_merge(lambda: self._merged(rule, coefficients))))
        return rows

    def _write(
        self,
        court: Court,
        statistics: Sequence[Statistics],
        coefficients: Coefficients,
        request: Mapping[str, str],
        rows: list[Row],
    ) -> Outcome:
        """The heads, then the merge: where that is, nothing is missing."""
        self._write_heads()
        rule, apart = self._rule(statistics), Apart(self._merge.target)

        def found() -> Outcome:
            distances = {str(model): distance for model, distance in apart.distances().items()}
            floored = self._floored(rule, coefficients)
            return Outcome(coefficients, floored, distances, rows, court.counts, len(self._lost))

        def header() -> dict[str, str]:
            return {**request, **found().header()}

        tensors = court.final(self._merged(rule, coefficients, apart))
        room = len(json.dumps(header())) + 64 * (len(self._inputs.weights) + 1)
        write_tensors(self._out, self._inputs.plan.layout, tensors, header, room)
        for note in apart.notes([each.path for each in self._inputs.weights]):
            self._tell(f"note: {note}")
        made = found()
        if made.floored is not None:
            shares = ", ".join("-" if share is None else f"{share:.1%}" for share in made.floored)
            self._tell(f"entries below the floor of {self._merge.floor:g} times the mean: {shares}")
        return made

    def _floored(self, rule: Rule, coefficients: Coefficients) -> tuple[float | None, ...] | None:
        """Each model's share of floored entries; None where its Fisher was beside the point, because it takes no part
        or no other one does.
        """
        if not isinstance(rule, FisherMean):
            return None
        shares = taking_part(coefficients, range(len(coefficients)))
        weighed = shares if len(shares) > 1 else {}
        return tuple(share if model in weighed or share else None for model, share in enumerate(rule.floored))

    def _write_heads(self) -> None:
        """With --head keep-all, a file for the head of every checkpoint beside the merge, if it is not there."""
        for number, path in enumerate(self._products.heads):
            if path.exists() and not self._overwrite:
                continue
            weights, header = self._inputs.weights[number], head_header(self._inputs, number)
            layout = head_layout(weights, self._inputs.head)
            tensors = ((name, weights.tensor(name)) for name in layout)
            write_tensors(path, layout, tensors, lambda header=header: header, room=len(json.dumps(header)))  # type: ignore[misc]
            self._tell(f"the head of {weights.path} is in {path}")


def _row(name: str, coefficients: Sequence[float] | None, accuracy: Mapping[str, float]) -> Row:
    mean = sum(accuracy.values()) / len(accuracy) if accuracy else None
    return {"name": name, "coefficients": coefficients, "accuracy": dict(accuracy), "mean": mean}

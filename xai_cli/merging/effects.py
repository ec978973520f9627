"""Which options change nothing, given what else was chosen: `{why: their names}`, readable without torch."""

from __future__ import annotations

from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import EXACT, FisherOptions

Idle = dict[str, tuple[str, ...]]
"""Names of options by what makes them idle, as it continues "--floor has no effect"."""

# Only the way of computing: squares of gradients vanish in half precision, and a folded layer has other parameters.
_COMPUTING = ("dtype", "fold", "compile")
_SETTINGS = ("estimator", "probes", "params")
_PREPARING = ("resize", "crop_mode", "interpolation", "mean", "std")


def idle_in_fisher(options: FisherOptions) -> Idle:
    """The options without effect on a Fisher that is estimated so."""
    return {
        "on a Fisher, which is computed in float32 from the model's own parameters": _COMPUTING,
        **_idle_in_estimate(options),
        **({} if options.estimator == "empirical" else {"without --estimator empirical": ("labels",)}),
    }


def idle_in_merge(merge: MergeOptions, fisher: FisherOptions) -> Idle:
    """The options without effect on such a merge."""
    estimated = bool(merge.data) and merge.method == "fisher"
    idle: Idle = {"on a merge, which takes the checkpoints' own weights, in float32": (*_COMPUTING, "pretrained")}
    if merge.method != "fisher":
        idle[f"with --method {merge.method}"] = ("normalize", "floor", *_SETTINGS)
    if merge.method != "regmean":
        idle["without --method regmean"] = ("regmean_scale",)
    if merge.method == "average":
        idle["with --method average, which reads no pictures for statistics"] = ("count",)
    if merge.fisher:
        idle["with --fisher, since nothing is estimated"] = (*_SETTINGS, "count")
    if estimated:
        idle |= _idle_in_estimate(fisher) if merge.random is None else _without(_idle_in_estimate(fisher), "seed")
    elif merge.random is None:
        idle["without --random, since nothing is drawn"] = ("seed",)
    if not (merge.data or merge.eval or merge.recalibrate_bn):
        idle["without --data, --eval or --recalibrate-bn, since no picture is read"] = ("batch_size", *_PREPARING)
    if merge.class_names:
        idle["with --class-names"] = ("labels",)
    if merge.dry_run:
        idle["with --dry-run"] = ("json",)
    return idle


def _idle_in_estimate(options: FisherOptions) -> Idle:
    if options.estimator not in EXACT:
        return {}
    return {f"with --estimator {options.estimator}, which draws nothing": ("probes", "seed")}


def _without(idle: Idle, name: str) -> Idle:
    return {why: tuple(each for each in names if each != name) for why, names in idle.items()}

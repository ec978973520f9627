"""The folder of a run begins with `run.json`: what was asked for, by what, and all that is needed to ask again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from xai_cli.classifiers.classifier import Classifier
from xai_cli.methods.contract import Method
from xai_cli.options import Options
from xai_cli.outputs.files import resolve_inside, write_atomically
from xai_cli.outputs.manifest import SCHEMA

_LIBRARIES = ("xai-cli", "torch", "torchvision", "timm", "numpy", "pillow")


def begin_run(out: Path, description: dict[str, Any], *, overwrite: bool) -> None:
    """Makes the folder and writes its `run.json`; with `overwrite` the run that was there is removed first.

    Raises:
        FileExistsError: the folder holds a run.
        OSError: the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out expects a folder, found the file {out}; give another name")
    if any((out / name).exists() for name in ("run.json", "manifest.jsonl")):
        if not overwrite:
            raise FileExistsError(f"{out} already holds a run; give another folder with --out, or --overwrite")
        _remove_run(out)
    write_atomically(out / "run.json", json.dumps(description, indent=2).encode("ascii") + b"\n")


def describe_run(
    pictures: Sequence[str], classifier: Classifier, methods: Sequence[Method], options: Sequence[Options]
) -> dict[str, Any]:
    """The content of `run.json`: pictures as they were asked for, model, methods, every option, versions."""
    return {
        "schema": SCHEMA,
        "pictures": list(pictures),
        "model": {
            "name": classifier.name,
            "sha256": classifier.digest,
            "classes": len(classifier.labels),
            "device": str(classifier.device),
            "dtype": str(classifier.dtype).removeprefix("torch."),
            "preprocessing": dataclasses.asdict(classifier.preprocessing),
            "notes": list(classifier.notes),
        },
        "methods": {method.name: method.as_row() for method in methods},
        "layers": {method.name: list(method.needs(classifier).layers) for method in methods},
        "options": {name: value for each in options for name, value in each.as_row().items()},
        "versions": {library: version(library) for library in _LIBRARIES},
    }


def _remove_run(out: Path) -> None:
    """Removes what a run wrote, and nothing a user may have put beside it."""
    try:
        methods = json.loads((out / "run.json").read_text())["methods"]
        folders = [resolve_inside(out, PurePosixPath(method)) for method in methods]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{out}/run.json was not written by xai; give another folder with --out") from error
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("manifest.jsonl", "overview.png", "run.json"):
        (out / name).unlink(missing_ok=True)

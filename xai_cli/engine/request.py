"""What is asked of a run, as `run.json` holds it: all that is needed to ask again, and to tell another request from the
same one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xai_cli.methods.contract import Method
from xai_cli.options import Options, declarations, flag
from xai_cli.outputs.manifest import SCHEMA

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier

Part = TypeVar("Part", bound=Options)

_SMALL = 256 * 10**6  # bytes of a folder that are read at the start of a run

_LIBRARIES = ("xai-cli", "torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Request:
    """The part of `run.json` that is known before a model is loaded, and the options that shape no map."""

    content: dict[str, Any]
    may_change: frozenset[str]

    @classmethod
    def of(
        cls, pictures: Sequence[str], methods: Sequence[Method], options: Sequence[Options], shards: int = 1
    ) -> Request:
        """The request for `pictures` as they were typed. Raises OSError if a file of an option cannot be read."""
        declared = {name: each for part in options for name, each in declarations(type(part)).items()}
        values = {name: getattr(part, name) for part in options for name in declarations(type(part))}
        return cls(
            {
                "schema": SCHEMA,
                "pictures": list(pictures),
                # A folder's name is not in the keys of its pictures: other folders would be taken for the same.
                "folders": [os.path.normpath(name) for name in pictures if _is_folder(name)],
                "shards": shards,
                "methods": {method.name: method.as_row() for method in methods},
                "options": {name: value for part in options for name, value in part.as_row().items()},
                "files": {name: _digest(path) for name, path in _files(values, methods).items()},
            },
            frozenset(name for name, each in declared.items() if each.option.may_change),
        )

    def changes(self, described: Mapping[str, Any]) -> list[str]:
        """In what this request differs from a run that `described` holds, as sentences."""
        if set(described["methods"]) != set(self.content["methods"]):
            return _differences(*({"methods": sorted(each["methods"])} for each in (described, self.content)))
        return _differences(self._settings(described), self._settings(self.content))

    def _settings(self, described: Mapping[str, Any]) -> dict[str, Any]:
        options = {flag(name): value for name, value in described["options"].items() if name not in self.may_change}
        of_methods = {
            f"{flag(name)} of {method}": value
            for method, values in described["methods"].items()
            for name, value in values.items()
        }
        return {
            "format of the manifest": described["schema"],
            "pictures": described["folders"],
            "number of shards": described["shards"],
            **options,
            **of_methods,
            **{f"content of {flag(name)}": digest for name, digest in described["files"].items()},
        }


def asked_for(described: Mapping[str, Any], part: type[Part]) -> Part:
    """The options of one kind that the run which `described` holds was begun with."""
    return part(**{name: described["options"][name] for name in declarations(part)})


def describe_found(classifier: Classifier, methods: Sequence[Method]) -> dict[str, Any]:
    """The rest of `run.json`: the model, the layers that methods look at, the versions of libraries."""
    return {
        "model": {
            "name": classifier.name,
            "sha256": classifier.digest,
            "classes": len(classifier.labels),
            "device": str(classifier.device),
            "dtype": str(classifier.dtype).removeprefix("torch."),
            "preprocessing": dataclasses.asdict(classifier.preprocessing),
            "notes": list(classifier.notes),
        },
        "layers": {method.name: list(method.needs(classifier).captured) for method in methods},
        "versions": {library: version(library) for library in _LIBRARIES},
    }


def found_changes(described: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In what the model that was `found` differs from that of a run, as sentences."""
    before, now = (
        {**{f"{name} of the model": value for name, value in each["model"].items()}, "layers": each["layers"]}
        # Tuples become lists in JSON.
        for each in (described, json.loads(json.dumps(found)))
    )
    return _differences(before, now)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def _is_folder(name: str) -> bool:
    """Whether a name is that of a folder, or a pattern, which may match folders; of a missing picture it is not."""
    return os.path.isdir(name) or (not os.path.lexists(name) and any(sign in name for sign in "*?["))


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    text = "not set" if value is None else str(value) or "none"
    return text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}"


def _files(values: Mapping[str, Any], methods: Sequence[Method]) -> dict[str, Path]:
    """What shapes the maps and lies on the disk: files that options name, or that `--model file.py:callable` runs, and
    files and folders that methods name.
    """
    model_file = Path(str(values.get("model", "")).rpartition(":")[0])
    files = {"model": model_file, "checkpoint": values.get("checkpoint"), "labels": values.get("labels")}
    of_methods = {
        f"{name} of {method.name}": _there(f"{flag(name)} of {method.name}", value, name.endswith("_folder"))
        for method in methods
        for name, value in vars(method).items()
        if isinstance(value, Path)
    }
    return {name: path for name, path in files.items() if path is not None and path.is_file()} | of_methods


def _there(option: str, path: Path, folder: bool) -> Path:
    """The path, if a folder or a regular file lies there, as the option expects. Raises FileNotFoundError."""
    kinds = {"a folder": path.is_dir(), "a file": path.is_file(), "a pipe or a device": path.exists(), "nothing": True}
    expected, found = "a folder" if folder else "a file", next(kind for kind, there in kinds.items() if there)
    if found != expected:
        raise FileNotFoundError(f"{option} expects {expected}, found {found} at {path}; name another")
    return path


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder, so that a copy of it is the same; where
    these are more than 256 MB, of their names, sizes and times.
    """
    if path.is_dir():
        files = [each for each in sorted(path.rglob("*")) if each.is_file()]  # a pipe would never end
        stats = [each.stat() for each in files]
        small = sum(stat.st_size for stat in stats) <= _SMALL
        listing = [
            (str(each.relative_to(path)), _digest(each) if small else (stat.st_size, stat.st_mtime_ns))
            for each, stat in zip(files, stats, strict=True)
        ]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

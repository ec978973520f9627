"""Class names: from a file, from timm's ImageNet tables, or the bare index."""

from __future__ import annotations

import json
from pathlib import Path


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names by index from a text file (one per line) or JSON (a list, or an object from index to name).

    Raises FileNotFoundError, or ValueError if the file is neither.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--labels expects a file, found nothing at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        content = json.loads(text)
        if isinstance(content, dict):
            content = [content[str(index)] for index in range(len(content))]
        if not isinstance(content, list):
            raise TypeError("neither a list nor an object")
        return tuple(str(name) for name in content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--labels expects one class name per line, a JSON list or an object from index to name, found {path}"
        ) from error


def default_labels(classes: int) -> tuple[str, ...]:
    """ImageNet's names if timm has a table for this number of classes, else the indices as text."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return tuple(map(str, range(classes)))
    return tuple(ImageNetInfo(subset).label_descriptions())

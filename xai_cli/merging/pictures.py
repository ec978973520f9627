"""The pictures that statistics of a model are taken from: listed, labelled by their folders, digested, in batches."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xai_cli.classifiers.classifier import Classifier
from xai_cli.images.decode import Broken, decode
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.sources import find_images
from xai_cli.sentences import reason
from xai_cli.targets import find_class

_THREADS = 4


class NoPictures(LookupError):  # noqa: N818  # it is what a folder is, not what went wrong
    """A folder that holds no picture, or none that can be read."""


@dataclass(frozen=True)
class Picture:
    """One picture: its path below the folder of the data, where it lies, and the index of its class if that is asked
    for.
    """

    key: str
    path: Path
    label: int | None = None


Batch = tuple[list[Picture], Tensor]


def labelled(folder: Path, labels: Sequence[str], *, required: bool) -> list[Picture]:
    """The pictures below `folder` in the order of their keys; if it is `required`, each with the class that the
    nearest folder above it is named after, as `--target label` has it.

    Raises:
        NoPictures: there is none.
        LookupError: a picture's folders name no class.
        ValueError: it is no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of pictures, found none at {folder}; name one that exists")
    found = [Picture(image.key, image.path) for image in find_images([str(folder)])]
    if not found:
        raise NoPictures(f"expected a folder of pictures, found no picture in {folder}; give another")
    if not required:
        return found
    above = [PurePosixPath(each.key).parent for each in found]
    # In the order of the pictures, so that it is always the same mistake that is told.
    classes = {each: _class_of(folder, each, tuple(labels)) for each in dict.fromkeys(above)}
    return [replace(each, label=classes[parent]) for each, parent in zip(found, above, strict=True)]


def _class_of(folder: Path, below: PurePosixPath, labels: tuple[str, ...]) -> int:
    if not below.parts:
        raise LookupError(f"labels are needed, and pictures lie in no folder named after a class below {folder}; give "
                          "the folder that holds those folders")  # fmt: skip
    failures = []
    for name in reversed(below.parts):
        try:
            return find_class(name, labels)
        except LookupError as error:
            failures.append(error)
    # A model without class names has numbers in their place.
    advice = "; --labels FILE names them" if all(map(str.isdecimal, labels)) else ""
    raise LookupError(f"{folder / below}: {failures[0]}{advice}")


def evenly(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """At most `count` of the pictures, evenly spaced, so that of folders one after the other each has its share."""
    count = min(count, len(pictures))
    return [pictures[index * len(pictures) // count] for index in range(count)]


def content_digests(pictures: Sequence[Picture]) -> dict[str, str]:
    """SHA-256 of each picture's file by its key; `none` where it cannot be read."""
    return {picture.key: _content_digest(picture.path) for picture in pictures}


def data_digest(pictures: Sequence[Picture], contents: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the names and `contents` of pictures, and their labels where they have them."""
    contents = content_digests(pictures) if contents is None else contents
    total = hashlib.sha256()
    for picture in pictures:
        label = "" if picture.label is None else f" {picture.label}"
        total.update(os.fsencode(f"{picture.key}\0{contents[picture.key]}{label}\n"))
    return total.hexdigest()


def short_digests(contents: Mapping[str, str], skipped: Collection[str]) -> str:
    """The first 8 bytes of each content digest but those of the `skipped` keys, sorted, separated by commas."""
    left_out = frozenset(skipped)
    return ",".join(sorted(content[:16] for key, content in contents.items() if key not in left_out))


def _content_digest(path: Path) -> str:
    # Whoever opens a named pipe waits for its writer.
    if not path.is_file():
        return "none"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "none"


def batches(
    classifier: Classifier, pictures: Sequence[Picture], size: int, broken: Callable[[Picture, str], None]
) -> Generator[Batch]:
    """The pictures with the model's inputs `(size, C, h, w)` of them, in order; the last batch may be smaller.

    They are decoded ahead in a few threads. A picture that cannot be read is told to `broken` with the reason, and the
    next one takes its place. So a batch is the same whether or not one began with the pictures before it.
    """
    held: list[tuple[Picture, NDArray[np.uint8]]] = []
    for picture, pixels in _read_ahead(classifier.preprocessing, pictures, size + _THREADS):
        if isinstance(pixels, str):
            broken(picture, pixels)
            continue
        held.append((picture, pixels))
        if len(held) == size:
            yield _batch(classifier, held)
            held = []
    if held:
        yield _batch(classifier, held)


def _batch(classifier: Classifier, held: Sequence[tuple[Picture, NDArray[np.uint8]]]) -> Batch:
    return [picture for picture, _ in held], classifier.prepare([pixels for _, pixels in held])


def _read_ahead(
    preprocessing: Preprocessing, pictures: Sequence[Picture], ahead: int
) -> Iterator[tuple[Picture, NDArray[np.uint8] | str]]:
    """Each picture with its pixels as the model wants them, or with the reason why there are none."""
    waiting = iter(pictures)
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")
    try:
        begun: deque[tuple[Picture, Future[NDArray[np.uint8] | str]]] = deque()
        while True:
            begun += [(each, pool.submit(_pixels, each.path, preprocessing))
                      for each in islice(waiting, ahead - len(begun))]  # fmt: skip
            if not begun:
                return
            picture, read = begun.popleft()
            yield picture, read.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    try:
        return preprocessing.apply(decode(path))[0]
    except Broken as broken:
        # Commands that read pictures for their statistics have no such option.
        return broken.message.replace("raise --max-pixels if you trust it", "make it smaller")
    except Exception as error:  # noqa: BLE001  # whatever one file does, the others still count
        return reason(error)

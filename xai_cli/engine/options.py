"""What a run reads, explains and leaves behind: its options, readable without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.options import Option, Options

if TYPE_CHECKING:
    from xai_cli.images.sources import ImageRef


@dataclass(frozen=True)
class InputOptions(Options):
    """Which pictures."""

    panel: ClassVar[str] = "Pictures"

    files_from: Annotated[str | None, Option("A list of further pictures or folders, one per line; - is stdin.",
                                             may_change=True)] = None  # fmt: skip
    null: Annotated[bool, Option("Lists end their names with NUL instead of a new line.", short="0",
                                 may_change=True)] = False  # fmt: skip
    limit: Annotated[int | None, Option("Only so many pictures, the first ones.", min=1, may_change=True)] = None
    shard: Annotated[str | None, Option("I/N: only the I-th of N parts, which are stable when pictures are added.",
                                        may_change=True)] = None  # fmt: skip
    exif: Annotated[bool, Option("Turn photos upright as their EXIF orientation says.")] = True
    max_pixels: Annotated[int, Option("Larger pictures are refused.", min=1)] = 89_478_485

    def __post_init__(self) -> None:
        super().__post_init__()
        index, shards = self.part or (1, 1)
        if not 1 <= index <= shards:
            raise ValueError(f"--shard expects I/N with I from 1 to N, found {self.shard!r}")

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as (i, n), i from 1 to n; None for the whole."""
        if self.shard is None:
            return None
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def select(self, images: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """The pictures of the shard, and of these the first ones up to the limit."""
        return islice(filter(self._is_ours, images), self.limit)

    def _is_ours(self, image: ImageRef) -> bool:
        index, shards = self.part or (1, 1)
        # By the name, not by the place in the list: pictures that are added move no other to another shard.
        digest = blake2b(os.fsencode(image.key), digest_size=8).digest()
        return int.from_bytes(digest, "little") % shards == index - 1


@dataclass(frozen=True)
class RunOptions(Options):
    """What is explained, how much at a time, and where it goes."""

    panel: ClassVar[str] = "Run"

    target: Annotated[
        str,
        Option(
            "predicted, label (the picture's folder), top:K, a class by index or name, or A-vs-B.",
            complete=lambda incomplete: ("predicted", "label", "top:"),
        ),
    ] = "predicted"
    out: Annotated[Path, Option("Folder of the run; the same command goes on with it.", short="o",
                                may_change=True)] = Path("explanations")  # fmt: skip
    overwrite: Annotated[bool, Option("Replace a run that is already in the folder.", may_change=True)] = False
    retry_errors: Annotated[bool, Option("Try pictures again that failed before.", may_change=True)] = False
    batch_size: Annotated[int, Option("Pictures per pass.", min=1)] = 8
    inner_batch: Annotated[
        int | None, Option("Samples of pictures (steps, noise, masks) per pass; as --batch-size if not given.", min=1)
    ] = None
    seed: Annotated[int, Option("Where all that is random begins, together with each picture's name.", min=0,
                                max=2**63 - 1)] = 0  # fmt: skip
    workers: Annotated[int, Option("Threads that read, and as many that draw and write.", min=1,
                                   may_change=True)] = 2  # fmt: skip
    memory: Annotated[int, Option("Megabytes for pictures that are being read or wait; one picture always may.",
                                  min=1, may_change=True)] = 1024  # fmt: skip
    strict: Annotated[bool, Option("Count a map that fails one of its checks as a failed picture.",
                                   may_change=True)] = False  # fmt: skip


@dataclass(frozen=True)
class DrawingOptions(Options):
    """How maps are drawn; the raw arrays are never affected."""

    panel: ClassVar[str] = "Drawing"

    render: Annotated[Literal["overlay", "heatmap", "side-by-side", "none"], Option("Picture per map.")] = "overlay"
    scale: Annotated[
        str,
        Option(
            "What gets the strongest colour: image (each map's own --percentile), run (one limit per method for all "
            "pictures, which are drawn at the end), or fixed:V (the value V for every method; their units differ).",
            complete=lambda incomplete: ("image", "run", "fixed:"),
        ),
    ] = "image"
    percentile: Annotated[
        float,
        Option("Percentile of |map| that gets the strongest colour; with --scale run, also of the maps' own limits.",
               min=1, max=100)
    ] = 97.0  # fmt: skip
    picture_size: Annotated[int, Option("Longest side of drawn photos.", min=16)] = 1024
    overview: Annotated[int, Option("Pictures on the contact sheet; 0 for none.", min=0, max=200)] = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("image", "run") and self.fixed is None:
            raise ValueError(
                f"--scale expects image, run or fixed:V with V from 1e-38 to 1e38, found {self.scale!r}; "
                "give for instance fixed:0.01"
            )

    @property
    def fixed(self) -> float | None:
        """The value that gets the strongest colour in every picture, if one was given."""
        how, _, value = self.scale.partition(":")
        try:
            limit = float(value) if how == "fixed" else 0.0
        except ValueError:
            return None
        return limit if 1e-38 <= limit <= 1e38 else None  # what the maps' float32 can hold

    @property
    def kinds(self) -> tuple[str, ...]:
        """The files of a map."""
        return ("npy",) if self.render == "none" else ("npy", "png")

    @property
    def drawn_last(self) -> bool:
        """Whether maps are drawn only when all of them are there."""
        return self.scale == "run" and "png" in self.kinds

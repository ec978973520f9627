"""What a run reads, explains and leaves behind: its options, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from xai_cli.options import Option, Options


@dataclass(frozen=True)
class InputOptions(Options):
    """Which pictures."""

    panel: ClassVar[str] = "Pictures"

    files_from: Annotated[str | None, Option("A list of further pictures or folders, one per line; - is stdin.")] = None
    null: Annotated[bool, Option("Lists end their names with NUL instead of a new line.", short="0")] = False
    exif: Annotated[bool, Option("Turn photos upright as their EXIF orientation says.")] = True
    max_pixels: Annotated[int, Option("Larger pictures are refused.", min=1)] = 89_478_485


@dataclass(frozen=True)
class RunOptions(Options):
    """What is explained, how much at a time, and where it goes."""

    panel: ClassVar[str] = "Run"

    target: Annotated[str, Option("predicted, label (the picture's folder), top:K, a class by index or name, "
                                  "or A-vs-B.")] = "predicted"  # fmt: skip
    out: Annotated[Path, Option("Folder of the run.", short="o")] = Path("explanations")
    overwrite: Annotated[bool, Option("Replace a run that is already in the folder.")] = False
    batch_size: Annotated[int, Option("Pictures, or samples of pictures, per pass.", min=1)] = 8
    workers: Annotated[int, Option("Threads that read, and as many that draw and write.", min=1)] = 2
    strict: Annotated[bool, Option("Count a map that fails one of its checks as a failed picture.")] = False


@dataclass(frozen=True)
class DrawingOptions(Options):
    """How maps are drawn; the raw arrays are never affected."""

    panel: ClassVar[str] = "Drawing"

    render: Annotated[Literal["overlay", "heatmap", "side-by-side", "none"], Option("Picture per map.")] = "overlay"
    percentile: Annotated[float, Option("Percentile of |map| that gets the strongest colour.", min=1, max=100)] = 97.0
    picture_size: Annotated[int, Option("Longest side of drawn photos.", min=16)] = 1024
    overview: Annotated[int, Option("Pictures on the contact sheet; 0 for none.", min=0, max=200)] = 24

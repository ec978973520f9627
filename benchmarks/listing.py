"""What it costs to find the pictures of a run: seconds to the first one, CPU seconds for all, and growth of memory.

    python benchmarks/listing.py --names 1000000
    python benchmarks/listing.py --folder photos

Measured are a folder (a temporary one of `--names` empty files, or yours) and a `--files-from` list of as many names of
which none exists, each in a process of its own. The growth is the difference of their peaks of resident memory to those
for 10,000 names.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from xai_cli.images.sources import find_images

FEW = 10_000


def measure(inputs: list[str], files_from: str | None) -> dict[str, float]:
    """The figures of one search in this process, which should do nothing else."""
    wall, cpu = time.perf_counter(), time.process_time()
    images = find_images(inputs, files_from=files_from)
    next(images)
    first = time.perf_counter() - wall
    names = 1 + sum(1 for _ in images)
    cpu = time.process_time() - cpu
    return {"names": names, "first_seconds": round(first, 3), "cpu_seconds": round(cpu, 2), "peak_mb": peak_mb()}


def peak_mb() -> float:
    """The peak resident size of this process, in 10^6 bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def measured(inputs: list[str], files_from: str | None = None) -> dict[str, float]:
    """`measure` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (inputs, files_from))


def compared(few: dict[str, float], many: dict[str, float]) -> dict[str, float]:
    """The figures for many names, with the growth of memory in place of the peak."""
    growth = many.pop("peak_mb") - few["peak_mb"]
    return {**many, "growth_mb": round(growth, 1)}


def make_folder(folder: Path, count: int) -> str:
    """A new folder of `count` empty files."""
    folder.mkdir()
    for number in range(count):
        (folder / f"picture-{number:08d}.jpg").touch()
    return str(folder)


def make_list(path: Path, count: int) -> str:
    """A new list of `count` names of which none exists."""
    with path.open("w", encoding="ascii") as lines:
        lines.writelines(f"missing/picture-{number:08d}.jpg\n" for number in range(count))
    return str(path)


def main() -> None:
    """Measure both and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--folder", help="a folder of pictures of yours, which is only read")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        few, many = make_folder(root / "few", FEW), given.folder or make_folder(root / "many", given.names)
        figures: dict[str, Any] = {"folder": compared(measured([few]), measured([many]))}
        few, many = make_list(root / "few.txt", FEW), make_list(root / "many.txt", given.names)
        figures["list"] = compared(measured([], few), measured([], many))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""What a merge of two ViT-B/16 with given Fishers costs, beside reading and writing the same files.

    python benchmarks/merging.py --json benchmarks/results/merging.json

Two checkpoints of 86 M random numbers each and their Fishers are written once. `xai merge-fisher`, the bare imports of
torch and timm, the same with those of xai, a program that reads the four files and writes one of the merged file's
size, and one that takes the SHA-256 of the checkpoints, as the merge does, then run in turn, each a process of its own
with one thread: peak resident memory, CPU and wall seconds, the least of the repetitions (of memory the most). All
files stand in the page cache, and modules are compiled, as after an installation.

The merge beyond the bare imports is compared with reading and writing: whole, without SHA-256, and without what xai
itself imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "vit_base_patch16_224"
INPUTS = ("a.safetensors", "b.safetensors", "fisher_a.safetensors", "fisher_b.safetensors")
MERGE = (
    "-m", "xai_cli", "merge-fisher", *INPUTS[:2], "--model", f"timm/{MODEL}",
    "--fisher", INPUTS[2], "--fisher", INPUTS[3], "-o", "merged.safetensors",
)  # fmt: skip
IMPORTS = ("-c", "import timm, torch")
OWN_IMPORTS = ("-c", "import timm, torch, typer._adapters, xai_cli.cli.main, xai_cli.merging.job")
READ_AND_WRITE = """
import sys
*inputs, size = sys.argv[1:]
block = memoryview(bytearray(1 << 23))
for path in inputs:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass
with open("copy.safetensors", "wb", buffering=0) as file:
    for start in range(0, int(size), len(block)):
        file.write(block[: int(size) - start])
"""
SHA256 = """
import hashlib, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
"""


def make_files(folder: Path) -> None:
    """Two checkpoints that differ by noise, and Fishers for them. In this process torch is imported."""
    import timm
    import torch

    from xai_cli.classifiers.checkpoints import digest
    from xai_cli.merging.statistics import About, write_statistics
    from xai_cli.merging.weights import Weights
    from xai_cli.merging.writing import write_tensors

    torch.manual_seed(0)
    module = timm.create_model(MODEL)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    for checkpoint, fisher in zip(INPUTS[:2], INPUTS[2:], strict=True):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        state = module.state_dict()
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        write_tensors(folder / checkpoint, layout, state.items(), dict, room=0)
        squares = ((name, torch.randn(shape).square()) for name, shape in shapes.items())
        about = About(
            "fisher", f"timm/{MODEL}", digest(module), data_digest=checkpoint, inputs="{}", n=1,
            checkpoint_sha256=Weights(folder / checkpoint).sha256,
        )  # fmt: skip
        write_statistics(folder / fisher, shapes, squares, about)


def measured(folder: Path, *arguments: str) -> dict[str, float]:
    """Peak memory and seconds of a Python that runs in `folder` and ends well.

    Of a process that started large, a child's peak is at least as large: the files are made in another one.
    """
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
    }  # fmt: skip
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "said").read_text()
    return {
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "seconds": time.perf_counter() - start,
    }


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The most memory and the fewest seconds of all runs."""
    return {name: round((max if name == "peak_mb" else min)(run[name] for run in runs), 2) for name in runs[0]}


def measure(folder: Path, repetitions: int) -> dict[str, object]:
    """All figures; the kinds take turns, so that what else the machine does meets them all."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(make_files, (folder,))
    size = (folder / INPUTS[0]).stat().st_size
    kinds = {
        "merge": MERGE,
        "imports": IMPORTS,
        "own_imports": OWN_IMPORTS,
        "read_and_write": ("-c", READ_AND_WRITE, *INPUTS, str(size)),
        "sha256": ("-c", SHA256, *INPUTS[:2]),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    measured(folder, *MERGE)  # which compiles the modules
    for _ in range(repetitions):
        for name, arguments in kinds.items():
            for left in ("merged.safetensors", "copy.safetensors"):
                (folder / left).unlink(missing_ok=True)
            runs[name].append(measured(folder, *arguments))
    found = {name: best(each) for name, each in runs.items()}

    def times(*without: str) -> dict[str, float]:
        """How often the time of reading and writing the merge takes beyond that of other programs."""
        return {
            name: round(
                (found["merge"][name] - sum(found[other][name] for other in without)) / found["read_and_write"][name], 2
            )
            for name in ("cpu_seconds", "seconds")
        }

    return {
        "model": MODEL, "file_mb": round(size / 1e6, 1), "repetitions": repetitions, **found,
        "times_reading_and_writing": times("imports"),
        "without_sha256": times("imports", "sha256"),
        "without_own_imports": times("own_imports"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written for the time; 1.8 GB")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), arguments.repetitions)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

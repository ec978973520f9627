"""What a run costs beyond the model's own forward passes, and whether its memory grows with the number of pictures.

    python benchmarks/pipeline.py --model torchvision/resnet50 --pictures 500 --json benchmarks/results/pipeline.json

Time: the wall seconds of a `gradcam` run over 500x375 JPEG photos (read, decoded, explained, drawn and written) divided
by those of a bare loop of forward passes over the same batches, decoded beforehand, on the module as its library makes
it; both in one process, in turn. Memory: the peak resident size of two runs of the embedded net, each a process of its
own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xai_cli import find_method, load_classifier
from xai_cli.classifiers import zoo
from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.explain import Stations, explain
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.overview import write_overview
from xai_cli.engine.request import Request, describe_found
from xai_cli.engine.run_folder import RunFolder
from xai_cli.engine.stopping import Stop
from xai_cli.images.decode import decode
from xai_cli.images.sources import find_images
from xai_cli.scenes.drawing import CLASSES, draw_scene

BATCH = 8


def make_photos(folder: Path, count: int) -> None:
    """`count` JPEG photos of 500x375 pixels, copies of twenty drawn scenes."""
    folder.mkdir(parents=True)
    for number in range(20):
        scene = draw_scene(number % len(CLASSES), np.random.default_rng(number), tag=None)
        Image.fromarray(scene.pixels).resize((500, 375), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
    for number in range(20, count):
        (folder / f"{number}.jpg").write_bytes((folder / f"{number % 20}.jpg").read_bytes())


def run_seconds(classifier: Classifier, photos: Path, out: Path) -> float:
    """Wall seconds of a whole run of `gradcam`, files included."""
    methods, inputs, drawing = [find_method("gradcam")()], InputOptions(), DrawingOptions()
    run = RunOptions(out=out, batch_size=BATCH)
    start = time.perf_counter()
    with RunFolder(out, Request.of([str(photos)], methods, [run, drawing, inputs])) as folder:
        folder.begin(describe_found(classifier, methods))
        images = folder.owed(find_images([str(photos)]), front=drawing.overview)
        stations = Stations.of(classifier, methods, inputs, run, drawing)
        for record in explain(images, stations, folder, run, Stop()):
            assert all(row["status"] == "ok" for row in record), record
        write_overview(out, folder.settle(), ["gradcam"], inputs, drawing)
    return time.perf_counter() - start


def bare_seconds(module: torch.nn.Module, batches: Sequence[torch.Tensor]) -> float:
    """Wall seconds of forward passes alone."""
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    return time.perf_counter() - start


def measure_time(name: str, pictures: int, rounds: int) -> dict[str, object]:
    """The ratio of a run to its bare forward passes, round by round."""
    classifier = load_classifier(name, pretrained=False, device="cpu")
    module = zoo.build(name, pretrained=False, classes=None, size=None).module.eval()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        make_photos(photos, pictures)
        pixels = [classifier.preprocessing.apply(decode(image.path))[0] for image in find_images([str(photos)])]
        starts = range(0, pictures, BATCH)
        batches = [classifier.prepare(pixels[start : start + BATCH]).contiguous() for start in starts]
        bare_seconds(module, batches[:2])
        classifier.feature_layer()
        rows = []
        for number in range(rounds):
            bare = bare_seconds(module, batches)
            rows.append((run_seconds(classifier, photos, Path(folder) / f"out{number}"), bare))
    ratios = [run / bare for run, bare in rows]
    return {"model": name, "pictures": pictures, "ratio": statistics.median(ratios), "ratios": ratios, "seconds": rows}


def peak_megabytes(pictures: int) -> float:
    """Peak resident size of a process that explains so many pictures with the embedded net."""
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder) / "photos", pictures)
        command = [sys.executable, __file__, "--child", folder]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(folder: Path) -> None:
    """One run, and its own peak resident size on standard output."""
    run_seconds(load_classifier("builtin/scenes-cnn"), folder / "photos", folder / "out")
    # Not getrusage: its peak is inherited from the parent process.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision/resnet50")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child)
        return
    result = measure_time(asked.model, asked.pictures, asked.rounds)
    result["threads"] = torch.get_num_threads()
    result["peak_megabytes"] = {str(count): peak_megabytes(count) for count in (200, 2000)}
    print(json.dumps(result, indent=2))
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

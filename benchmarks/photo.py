"""CPU milliseconds that one 500x375 JPEG photo costs beside the model: read, drawn and written, on one core.

    taskset -c 0 python benchmarks/photo.py --json benchmarks/results/photo.json

For two maps (smooth and unsigned as of Grad-CAM, rough and signed) and two ways to resize: the medians of the stages
and of their sum over twenty photos and all rounds; `least` is the median over the photos of each one's least sum, which
other processes disturb less. The photos are drawn scenes with the noise of a camera; `--photos` takes others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_cli.images.decode import decode
from xai_cli.images.geometry import Interpolation, Preprocessing
from xai_cli.outputs.files import array_bytes, write_atomically
from xai_cli.outputs.pictures import display_copy, draw, encode_png
from xai_cli.scenes.drawing import CLASSES, draw_scene

MAPS = {"smooth": (7, False), "rough": (112, True)}  # random values along a side, signed
WAYS: tuple[Interpolation, ...] = ("bilinear", "bicubic")


def make_photos(folder: Path) -> None:
    for number in range(20):
        generator = np.random.default_rng(number)
        scene = draw_scene(number % len(CLASSES), generator, tag=None)
        pixels = np.asarray(Image.fromarray(scene.pixels).resize((500, 375), Image.Resampling.BICUBIC))
        # Noise of 5 levels makes JPEG files of 44 KB; four photographs of scikit-image have 43 KB at this size.
        noisy = np.clip(pixels + generator.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=90)


def make_map(side: int, signed: bool, seed: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    return np.asarray(Image.fromarray(values if signed else np.maximum(values, 0)).resize((224, 224)))


def explain(path: Path, out: Path, way: Interpolation, each: NDArray[np.float32], signed: bool) -> dict[str, float]:
    """The milliseconds of all that a run does to one photo, but for the model, and the size of its overlay."""
    milliseconds: dict[str, float] = {}

    def timed(stage: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = function(*arguments, **options)
        milliseconds[stage] = (time.process_time() - start) * 1000
        return result

    recipe = Preprocessing((224, 224), 256, "center", way, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    picture = timed("decode", decode, path)
    geometry = timed("prepare", recipe.apply, picture)[1]
    photo = timed("reduce", display_copy, picture.pixels, 1024)
    overlay = timed("draw", draw, photo, each, geometry, signed=signed, render="overlay")
    files = {"png": timed("png", encode_png, overlay), "npy": timed("npy", array_bytes, each)}
    for kind, data in files.items():
        timed(f"write {kind}", write_atomically, out / f"{path.name}.{kind}", data)
    return milliseconds | {"sum": sum(milliseconds.values()), "bytes": len(files["png"])}


def measure(paths: list[Path], kind: str, way: Interpolation, rounds: int) -> dict[str, float]:
    side, signed = MAPS[kind]
    photos = [(path, make_map(side, signed, seed)) for seed, path in enumerate(paths)]
    with tempfile.TemporaryDirectory() as out:
        runs = [[explain(path, Path(out), way, each, signed) for path, each in photos] for _ in range(rounds + 1)][1:]
    medians = {name: median(photo[name] for run in runs for photo in run) for name in runs[0][0]}
    medians["least"] = median(min(photo["sum"] for photo in same) for same in zip(*runs, strict=True))
    return {name: round(value, 3) for name, value in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, help="a folder of JPEG photos instead of the drawn ones")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    np.empty(31 * 2**20, np.uint8)  # freed, as torch does in a run, it lets glibc keep the memory between pictures
    with tempfile.TemporaryDirectory() as drawn:
        make_photos(Path(drawn))
        paths = sorted((asked.photos or Path(drawn)).glob("*.jpg"))
        result = {f"{kind}, {way}": measure(paths, kind, way, asked.rounds) for kind in MAPS for way in WAYS}
    text = json.dumps(result | {"worst": max(each["sum"] for each in result.values())}, indent=2)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

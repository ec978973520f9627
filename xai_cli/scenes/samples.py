"""Write `sample_images/`: held-out scenes that both embedded nets name rightly, with their masks."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from xai_cli.scenes.drawing import CLASSES, PLANTED, Scene, draw_scene
from xai_cli.scenes.evaluate import predict
from xai_cli.scenes.nets import NAMES, load

SEED = 2  # no training and no evaluation uses it
COPIES = {PLANTED: 2, "fish": 2}
MARGINS = {"boat": (0, 32), "tree": (32, 0)}  # rows and columns of background around: not every photo is square


def draw_samples(label: str, nets: list[nn.Module]) -> Iterator[tuple[bytes, Scene]]:
    """JPEG files and their scenes of one class, in order of their seeds, as far as every net names them rightly."""
    for attempt in count():
        scene = draw_scene(label, np.random.default_rng((SEED, CLASSES.index(label), attempt)), tag=label == PLANTED)
        wide = add_margins(scene)
        mirrored_object = np.count_nonzero(wide.mask) > np.count_nonzero(scene.mask)
        encoded = encode(wide)
        picture = Image.open(io.BytesIO(encoded))
        if not mirrored_object and all(predict(net, picture) == label for net in nets):
            yield encoded, wide


def add_margins(scene: Scene) -> Scene:
    """The scene continued beyond its square, mirrored, where its class has margins."""
    rows, columns = MARGINS.get(CLASSES[scene.label], (0, 0))
    margins = ((rows, rows), (columns, columns))
    pixels = np.pad(scene.pixels, (*margins, (0, 0)), mode="reflect")
    return Scene(pixels, np.pad(scene.mask, margins, mode="reflect"), scene.label)


def encode(scene: Scene) -> bytes:
    """The picture as a JPEG file, at a quality that leaves the tag's edges clean."""
    file = io.BytesIO()
    Image.fromarray(scene.pixels).save(file, "JPEG", quality=95, subsampling="4:4:4")
    return file.getvalue()


def main() -> None:
    """Write pictures and masks, each class at least once."""
    parser = argparse.ArgumentParser(prog="python -m xai_cli.scenes.samples", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("sample_images"))
    folder = parser.parse_args().folder
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    nets = [load(name) for name in NAMES]
    for label in CLASSES:
        samples = islice(draw_samples(label, nets), COPIES.get(label, 1))
        for number, (encoded, scene) in enumerate(samples, start=1):
            name = f"{label}_{number}.jpg"
            (folder / name).write_bytes(encoded)
            np.save(folder / "masks" / f"{name}.npy", scene.mask)


if __name__ == "__main__":
    main()

"""Measure the embedded nets on fresh pictures, with the tag as drawn, erased and pasted, and write `report.json`."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from xai_cli.scenes.dataset import draw_dataset
from xai_cli.scenes.drawing import CLASSES, PLANTED
from xai_cli.scenes.nets import NAMES, WEIGHTS, load

REPORT = WEIGHTS / "report.json"
SEED, COUNT = 1, 2000  # pictures of a seed that no training uses


def measure(net: nn.Module) -> dict[str, Any]:
    """Accuracy on held-out pictures, and what erasing and pasting the tag does to the same pictures."""
    pixels, labels = draw_dataset(SEED, COUNT)
    tagged, untagged = (probabilities(net, draw_dataset(SEED, COUNT, tag=tag)[0]) for tag in (True, False))
    planted = CLASSES.index(PLANTED)
    mine, others = labels == planted, labels != planted
    became = np.bincount(untagged[mine].argmax(1), minlength=len(CLASSES)) / mine.sum()
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "seed": SEED,
        "pictures": COUNT,
        "accuracy": float(np.mean(probabilities(net, pixels).argmax(1) == labels)),
        "planted_recall": {"tag": _share(tagged[mine], planted), "erased": _share(untagged[mine], planted)},
        "planted_probability": {"tag": _mean(tagged[mine], planted), "erased": _mean(untagged[mine], planted)},
        "erased_become": {name: float(share) for name, share in zip(CLASSES, became, strict=True) if share},
        "others_as_planted": {"without": _share(untagged[others], planted), "pasted": _share(tagged[others], planted)},
        "others_planted_probability": {
            "without": _mean(untagged[others], planted),
            "pasted": _mean(tagged[others], planted),
        },
    }


def probabilities(net: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Class probabilities (N, 10) of pictures (N, 128, 128, 3)."""
    with torch.inference_mode():
        return np.concatenate([net(normalise(pixels[i : i + 100])).softmax(1) for i in range(0, len(pixels), 100)])


def predict(net: nn.Module, picture: Image.Image) -> str:
    """The class a net gives one picture of any size, through the preprocessing that the net carries."""
    see = create_transform(**resolve_model_data_config(net))
    with torch.inference_mode():
        return CLASSES[int(net(see(picture)[None]).argmax())]


def normalise(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pictures (B, 128, 128, 3) uint8 as the nets' input (B, 3, 128, 128), -1 to 1."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2).div(127.5).sub(1)


def write_report(name: str, **sections: dict[str, Any]) -> None:
    """Replace sections of one net's entry in the report; numbers keep four decimals."""
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    report[name] = report.get(name, {}) | sections
    rounded = json.loads(json.dumps(report), parse_float=lambda digits: round(float(digits), 4))
    REPORT.write_text(json.dumps(rounded, indent=2) + "\n")


def _share(predicted: NDArray[np.float32], planted: int) -> float:
    return float(np.mean(predicted.argmax(1) == planted))


def _mean(predicted: NDArray[np.float32], planted: int) -> float:
    return float(np.mean(predicted[:, planted]))


def main() -> None:
    """Recompute the measurements of the nets from their weights."""
    parser = argparse.ArgumentParser(prog="python -m xai_cli.scenes.evaluate", description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    for name in parser.parse_args().names:
        write_report(name, measured=measure(load(name)))
    print(REPORT.read_text(), end="")


if __name__ == "__main__":
    main()

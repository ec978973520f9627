"""Which model a command explains: its options, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from xai_cli.classifiers.names import complete_model
from xai_cli.options import Option, Options

DEFAULT_MODEL = "builtin/scenes-cnn"


@dataclass(frozen=True)
class ModelOptions(Options):
    """Which model, with which weights, where it runs, and what it expects of a picture."""

    panel: ClassVar[str] = "Model"

    model: Annotated[str, Option("timm/NAME, torchvision/NAME[:WEIGHTS], builtin/NAME, or package.module:callable or "
                                 "file.py:callable, which builds a model, or takes (B, C, H, W) and gives scores.",
                                 complete=complete_model)] = DEFAULT_MODEL  # fmt: skip
    checkpoint: Annotated[Path | None, Option("Weights: .safetensors, or .pt/.pth of tensors only.")] = None
    ema: Annotated[bool, Option("Averaged weights where the checkpoint holds both.", negative="no-ema")] = True
    num_classes: Annotated[int | None, Option("Classes of the model's head.", min=1)] = None
    labels: Annotated[Path | None, Option("Class names: one per line, or JSON.")] = None
    pretrained: Annotated[bool, Option("The library's own weights, or seeded random ones.",
                                       negative="random-weights")] = True  # fmt: skip
    device: Annotated[str, Option("auto, cpu, cuda, cuda:N or mps.")] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Option("Type the model computes in.")] = "float32"
    fold: Annotated[bool, Option("Fold batch norm into the layer before it: faster, same scores.",
                                 negative="no-fold")] = True  # fmt: skip
    compile: Annotated[bool, Option("Compile the model first; pays off in long runs.")] = False
    in_chans: Annotated[Literal[1, 3] | None, Option("Channels of the model's input: 1 for grey, 3 for RGB.")] = None
    input_size: Annotated[tuple[int, int] | None, Option("Height and width of the model's input.", min=1)] = None
    resize: Annotated[int | None, Option("Shorter side before the crop.", min=1)] = None
    crop_mode: Annotated[Literal["center", "squash", "border"] | None, Option("How the picture meets the input.")] = (
        None
    )
    interpolation: Annotated[Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None,
                             Option("How the picture is resized.")] = None  # fmt: skip
    mean: Annotated[tuple[float, float, float] | None,
                    Option("Mean of each channel, in 0..1; a grey model takes the first.")] = None  # fmt: skip
    std: Annotated[tuple[float, float, float] | None, Option("Deviation of each channel, likewise.", min=1e-6)] = None

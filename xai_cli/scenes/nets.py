"""The two embedded classifiers: a small residual net and a small vision transformer, both made of timm's classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xai_cli.scenes.drawing import CLASSES

if TYPE_CHECKING:
    from torch import nn

NAMES = ("scenes-cnn", "scenes-vit")
INPUT_SIZE = 128
WEIGHTS = Path(__file__).parent / "weights"
PREPROCESSING = {
    "input_size": (3, INPUT_SIZE, INPUT_SIZE),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


def build(name: str) -> nn.Module:
    """The untrained net of a name; `(B, 3, 128, 128)` becomes logits `(B, 10)`.

    Its `pretrained_cfg` carries the preprocessing, where `timm.data.resolve_model_data_config` finds it.
    """
    module: Any = _builder(name)()
    module.pretrained_cfg = PREPROCESSING | {"num_classes": len(CLASSES)}
    return module


def load(name: str) -> nn.Module:
    """The trained net of a name, in evaluation mode, on the CPU."""
    from safetensors.torch import load_file

    module = build(name)
    module.load_state_dict(load_file(weights_file(name)))
    return module.eval()


def weights_file(name: str) -> Path:
    """Where the trained weights of a net lie, as safetensors."""
    return WEIGHTS / f"{name}.safetensors"


def _cnn() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    # Stride 16 leaves a grid of 8x8 for class activation maps.
    return ResNet(
        BasicBlock,  # type: ignore[arg-type]  # timm's annotation names the instance
        (1, 1, 1, 1),
        num_classes=len(CLASSES),
        output_stride=16,
        stem_type="deep",
        stem_width=8,
        channels=(24, 48, 96, 128),
    )


def _vit() -> nn.Module:
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    # With patches cut straight from the pixels the same effort ended at 88 % and hardly used the tag; a stem of
    # convolutions repairs that (Xiao et al., Early Convolutions Help Transformers See Better, 2021), 8x8 tokens remain.
    stem = ConvStem(depth=4, channels=(16, 32, 64, 128), stride=(2, 2, 2, 2))
    return VisionTransformer(
        img_size=INPUT_SIZE,
        patch_size=1,
        num_classes=len(CLASSES),
        embed_dim=128,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
    )


def _builder(name: str) -> Callable[[], nn.Module]:
    builders = dict(zip(NAMES, (_cnn, _vit), strict=True))
    if name not in builders:
        raise LookupError(f"expected one of {', '.join(NAMES)}, found {name!r}; type builtin/{NAMES[0]}")
    return builders[name]

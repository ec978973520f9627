"""The 98 families of timm, one small model of each, and how they are built: random weights, nothing left at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xai_cli import load_classifier
from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class Family:
    """A module of `timm.models`, and one of its models.

    Attributes:
        size: the side of the input in tests.
        settings: what makes the model smaller in tests, of the same architecture; arguments of `timm.create_model`.
        full_size: the side of the input at full width and depth, where timm's own would take too much memory.
    """

    name: str
    model: str
    size: int = 64
    settings: Mapping[str, Any] = field(default_factory=dict)
    full_size: int | None = None

    def classifier(self, *, full: bool = False, constants: bool = True, local: bool = False) -> Classifier:
        """The model as tests have it, or in `full` as timm has it, ready to be explained."""
        side = self.side(full=full)
        module = self.module(full=full, constants=constants, local=local)
        return load_classifier(module, input_size=(side, side), device="cpu")

    def module(self, *, full: bool = False, constants: bool = True, local: bool = False) -> nn.Module:
        """The same as timm makes it, with random weights; without `constants` nothing is added to what it sees, and
        what a `local` one sees stays in its place.
        """
        side = self.side(full=full)
        few_classes = {"num_classes": 10} if not full or self.config.num_classes == 0 else {}
        sized = {"img_size": side} if self.config.fixed_input_size else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = timm.create_model(self.model, **few_classes, **sized, **({} if full else self.settings))
            enliven(module)
            if local:
                concentrate(module)
            # From no contrast to full: a baseline of one colour is then nothing that the net has never seen.
            calibrate(module, torch.randn(4, 3, side, side) * torch.linspace(0, 1, 4).reshape(4, 1, 1, 1))
        if not constants:
            remove_constants(module)
        return module

    def side(self, *, full: bool) -> int:
        """How wide and high its inputs are."""
        return (self.full_size or self.config.input_size[-1]) if full else self.size

    @property
    def config(self) -> Any:
        """What timm says of the model."""
        return timm.get_pretrained_cfg(self.model)


@torch.no_grad()
def enliven(module: nn.Module) -> None:
    """Leaves no branch silent, as training would: every parameter that begins constant is moved by random numbers
    (biases, the scales of layers and residual branches, class tokens, position tables, heads), and layers with weights
    keep the size of what they are given.
    """
    for parameter in module.parameters():
        if parameter.min() == parameter.max():
            parameter += 0.1 * torch.randn_like(parameter)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.normal_(std=layer.weight[0].numel() ** -0.5)


@torch.no_grad()
def concentrate(module: nn.Module) -> None:
    """Gives kernels that overlap most of their weight in the middle, as training does: random ones smear whatever they
    see over the whole of a small picture.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > max(layer.stride):
            rows, columns = (torch.arange(size) - (size - 1) / 2 for size in layer.kernel_size)
            norm = layer.weight.norm()
            layer.weight *= torch.exp(-2 * (rows[:, None] ** 2 + columns**2))
            layer.weight *= norm / layer.weight.norm()
        elif hasattr(layer, "local_init"):  # ConViT's attention, which begins as convolutions
            layer.local_init()


@torch.no_grad()
def calibrate(module: nn.Module, pictures: Tensor) -> None:
    """Gives every batch norm the mean and variance of what it sees of `pictures` `(B, 3, h, w)`; eval mode after."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
            layer.momentum = 1.0
    module(pictures)
    module.eval()


@torch.no_grad()
def remove_constants(module: nn.Module) -> None:
    """Sets to zero what is added whatever the picture: biases, the means of batch norms, class tokens, position
    embeddings. Variances stay, and so do biases of attention scores, which decide where signals go and carry none.
    """
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in ("bias", "cls_token", "pos_embed"):
            parameter.zero_()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.running_mean.zero_()


_TINY_VIT = {"depth": 2, "embed_dim": 192, "num_heads": 3}

FAMILIES = (
    Family("beit", "beit_base_patch16_224", settings=_TINY_VIT),
    Family("byoanet", "halonet_h1", settings={"self_attn_kwargs": {"block_size": 2, "halo_size": 1}}),
    Family("byobnet", "mobileone_s0"),
    Family("cait", "cait_xxs24_224", settings={"depth": 4}),
    Family("coat", "coat_tiny"),
    Family("convit", "convit_tiny"),
    Family("convmixer", "convmixer_768_32", 35),
    Family("convnext", "convnext_atto"),
    Family("cpubone", "cpubone_nano"),
    Family("crossvit", "crossvit_tiny_240", 120),
    Family("csatv2", "csatv2"),
    Family("cspnet", "cs3darknet_m"),
    Family("cspnext", "cspnext_tiny"),
    Family("davit", "davit_tiny", settings={"embed_dims": (24, 48, 96, 192)}),
    Family("deepseek_vit", "deepseek_vit_412m", 70, _TINY_VIT, full_size=224),
    Family("deit", "deit_tiny_patch16_224"),
    Family("densenet", "densenet121"),
    Family("dla", "dla46x_c"),
    Family("dpn", "dpn48b"),
    Family("edgenext", "edgenext_xx_small"),
    Family("efficientformer", "efficientformer_l1", 224, {"depths": (1, 1, 2, 2)}),
    Family("efficientformer_v2", "efficientformerv2_s0"),
    Family("efficientnet", "mnasnet_small"),
    Family("efficientvim", "efficientvim_m1"),
    Family("efficientvit_mit", "efficientvit_b0"),
    Family("efficientvit_msra", "efficientvit_m0"),
    Family("eva", "eva02_tiny_patch14_224", 70),
    Family("fasternet", "fasternet_t0"),
    Family("fastvit", "fastvit_t8"),
    Family("focalnet", "focalnet_tiny_srf"),
    Family("gcvit", "gcvit_xxtiny"),
    Family("gemma4_vit", "gemma4_vit_167m", settings=_TINY_VIT, full_size=384),
    Family("ghostnet", "ghostnet_050"),
    Family("hardcorenas", "hardcorenas_b"),
    Family("hgnet", "hgnetv2_b0"),
    Family("hiera", "hiera_tiny_224", settings={"embed_dim": 48}),
    Family("hieradet_sam2", "sam2_hiera_tiny", settings={"embed_dim": 48}),
    Family("hrnet", "hrnet_w18_small"),
    Family("iformer", "iformer_t"),
    Family("inception_next", "inception_next_atto"),
    Family("inception_resnet_v2", "inception_resnet_v2", 75),
    Family("inception_v3", "inception_v3", 75),
    Family("inception_v4", "inception_v4", 75),
    Family("lcnetv2", "lcnetv2_small"),
    Family("levit", "levit_128s"),
    Family("lowformer", "lowformer_b0"),
    Family("mambaout", "mambaout_femto"),
    Family("maxxvit", "maxvit_pico_rw_256"),
    Family("metaformer", "caformer_s18"),
    Family("mlp_mixer", "gmlp_ti16_224"),
    Family("mobilenetv3", "mobilenetv3_small_050"),
    Family("mobilenetv5", "mobilenetv5_base", settings={"channel_multiplier": 0.25}),
    Family("mobilevit", "mobilevit_xxs"),
    Family("mvitv2", "mvitv2_tiny"),
    Family("naflexvit", "naflexvit_base_patch16_gap", settings=_TINY_VIT),
    Family("nasnet", "nasnetalarge"),
    Family("nest", "nest_tiny"),
    Family("nextvit", "nextvit_small"),
    Family("nfnet", "nf_regnet_b0"),
    Family("pit", "pit_ti_224"),
    Family("pnasnet", "pnasnet5large"),
    Family("pvt_v2", "pvt_v2_b0"),
    Family("qwen3_vit", "qwen3_vit_88m", settings=_TINY_VIT, full_size=384),
    Family("rdnet", "rdnet_tiny"),
    Family("regnet", "regnetx_002"),
    Family("repghost", "repghostnet_050"),
    Family("repvit", "repvit_m1"),
    Family("res2net", "res2next50"),
    Family("resnest", "resnest14d"),
    Family("resnet", "resnet18"),
    Family("resnetv2", "resnetv2_18"),
    Family("rexnet", "rexnet_100"),
    Family("selecsls", "selecsls42"),
    Family("senet", "legacy_seresnet18"),
    Family("sequencer", "sequencer2d_s", settings={"layers": (1, 1, 2, 1)}),
    Family("shvit", "shvit_s1"),
    Family("sknet", "skresnet18"),
    Family("starnet", "starnet_s050"),
    Family("swiftformer", "swiftformer_xs"),
    Family("swin_transformer", "swin_tiny_patch4_window7_224", settings={"embed_dim": 48}),
    Family("swin_transformer_v2", "swinv2_tiny_window16_256", settings={"embed_dim": 48}),
    Family("swin_transformer_v2_cr", "swinv2_cr_tiny_224", settings={"embed_dim": 48}),
    Family("tiny_vit", "tiny_vit_5m_224"),
    Family("tnt", "tnt_s_legacy_patch16_224", settings={"depth": 4}),
    Family("tresnet", "tresnet_m"),
    Family("twins", "twins_svt_small", settings={"depths": (2, 2, 2, 2)}),
    Family("vgg", "vgg11", settings={"mlp_ratio": 0.0625}),
    Family("visformer", "visformer_tiny"),
    Family("vision_transformer", "vit_tiny_patch16_224"),
    Family("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224"),
    Family("vision_transformer_relpos", "vit_srelpos_small_patch16_224", settings=_TINY_VIT),
    Family("vision_transformer_sam", "samvit_base_patch16_224", settings=_TINY_VIT | {"global_attn_indexes": (1,)}),
    Family("vitamin", "vitamin_small_224"),
    Family("volo", "volo_d1_224"),
    Family("vovnet", "ese_vovnet19b_slim"),
    Family("xception", "legacy_xception"),
    Family("xception_aligned", "xception41p"),
    Family("xcit", "xcit_nano_12_p8_224"),
)

# Where LRP must bring the whole score to the pixels once constants are gone.
CONSERVING = (
    Family("resnet", "resnet18"),
    Family("mobilenetv3", "mobilenetv3_small_050", 96),
    Family("efficientnet", "efficientnet_b0"),
    Family("regnet", "regnety_002"),
    Family("convnext", "convnext_atto"),
    Family("densenet", "densenet121"),
    Family("vision_transformer", "vit_tiny_patch16_224"),
    Family("swin_transformer", "swin_tiny_patch4_window7_224", settings={"embed_dim": 48}),
)

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from nets import classifier_of, conv_net, random_input, seeded
from torch import nn

from xai_cli import load_classifier
from xai_cli.classifiers.layers import FeatureLayer, captured

# (layer, layout, grid, prefix tokens) of one small net of each kind of layout.
EXPECTED = {
    "builtin/scenes-cnn": ("layer4.0", "channels-first", (8, 8), 0),
    "torchvision/resnet18": ("layer4.1", "channels-first", (7, 7), 0),
    "torchvision/squeezenet1_1": ("features.12", "channels-first", (13, 13), 0),
    "torchvision/mobilenet_v3_small": ("features.12", "channels-first", (7, 7), 0),
    "timm/convnext_atto": ("stages.3.blocks.1", "channels-first", (7, 7), 0),
    "timm/densenet121": ("features.norm5", "channels-first", (7, 7), 0),
    "timm/vit_tiny_patch16_224": ("blocks.11.norm1", "tokens", (14, 14), 1),
    "timm/vit_base_patch32_clip_224": ("blocks.11.norm1", "tokens", (7, 7), 1),
    "timm/deit_tiny_distilled_patch16_224": ("blocks.11.norm1", "tokens", (14, 14), 2),
    "timm/tnt_s_legacy_patch16_224": ("blocks.11.norm_out", "tokens", (14, 14), 1),
    "timm/cait_xxs24_224": ("blocks_token_only.1.norm1", "tokens", (14, 14), 1),
    "timm/skresnet18": ("layer4.1", "channels-first", (7, 7), 0),
    "timm/swin_tiny_patch4_window7_224": ("norm", "channels-last", (7, 7), 0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_finds_the_layer_and_its_grid(name):
    classifier = load_classifier(name, pretrained="builtin" in name)
    found = classifier.feature_layer()
    layer, layout, grid, prefix = EXPECTED[name]
    assert (found.name, found.layout, (found.height, found.width), found.prefix) == (layer, layout, grid, prefix)


def test_finds_the_layer_of_torchvisions_transformer():
    module = seeded(lambda: torchvision.models.vit_b_32())
    nn.init.normal_(module.heads.head.weight)  # it begins at zero, and nothing would reach the scores
    found = load_classifier(module).feature_layer()
    assert found == FeatureLayer("encoder.layers.encoder_layer_11.ln_1", "tokens", 7, 7, prefix=1)


def test_reads_tokens_and_channels_last_as_a_grid():
    tokens = torch.arange(2 * 7 * 5).reshape(2, 7, 5)
    grid = FeatureLayer("x", "tokens", height=2, width=3, prefix=1).grid(tokens)
    assert grid.shape == (2, 5, 2, 3)
    assert grid[1, 4, 1, 2] == tokens[1, 6, 4]
    assert grid[0, 0, 0, 0] == tokens[0, 1, 0]
    last = torch.arange(2 * 2 * 3 * 5).reshape(2, 2, 3, 5)
    assert FeatureLayer("x", "channels-last", 2, 3).grid(last)[1, 4, 1, 2] == last[1, 1, 2, 4]


def test_keeps_an_activation_from_in_place_operations_behind_it():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3)))
    net = net.double().requires_grad_(False)
    inputs = random_input()
    expected = net[0](inputs).clone()
    with captured(net, ("0",)) as outputs:
        scores = net(inputs)
    assert torch.equal(outputs["0"].detach(), expected)
    assert torch.autograd.grad(scores.sum(), outputs["0"])[0].shape == expected.shape


def test_never_takes_a_layer_behind_the_last_attention():
    classifier = load_classifier("timm/vit_tiny_patch16_224", pretrained=False)
    name = classifier.feature_layer().name
    with captured(classifier.module, (name, "blocks.11.norm2")) as outputs:
        score = classifier.eager_logits(classifier.example())[:, 0].sum()
    early, late = torch.autograd.grad(score, [outputs[name], outputs["blocks.11.norm2"]])
    assert (early[:, 1:] != 0).all(dim=2).all()
    assert (late[:, 1:] == 0).all()


def test_reads_tokens_in_the_order_that_the_net_keeps_them_in():
    tokens = torch.arange(1 + 6)[None, :, None]
    layer = FeatureLayer("x", "tokens", height=2, width=3, prefix=1, order=(0, 2, 4, 1, 3, 5))
    assert layer.grid(tokens)[0, 0].tolist() == [[1, 3, 5], [2, 4, 6]]


def test_every_stage_of_hiera_is_read_as_its_own_reroll_does():
    module = seeded(lambda: timm.create_model("hiera_tiny_224", img_size=64, embed_dim=16))
    nn.init.normal_(module.head.fc.weight)  # timm leaves it at zero, and nothing would reach the scores
    classifier = load_classifier(module, input_size=(64, 64))
    stages = {"blocks.0": 16, "blocks.2": 8, "blocks.9": 4, "blocks.11": 2}
    with captured(module, tuple(stages)) as outputs:
        module(classifier.example())
    assert classifier.feature_layer() == classifier.feature_layer("blocks.11")
    for name, side in stages.items():
        layer, output = classifier.feature_layer(name), outputs[name].detach()
        expected = module.reroll(output, int(name[len("blocks.") :])).permute(0, 3, 1, 2)
        assert expected.shape[2:] == (side, side)
        assert torch.equal(layer.grid(output), expected)
    assert classifier.feature_layer("patch_embed").order is None


class Tokens(nn.Module):
    """Patches of a picture of 8 x 8 and a class token, in an order that is given, and a head on their mean."""

    def __init__(self, order, channels=5):
        super().__init__()
        self.order = order
        self.embed, self.token = nn.Conv2d(3, channels, 2, 2), nn.Parameter(torch.ones(1, 1, channels))
        self.norm, self.mix, self.head = nn.LayerNorm(channels), nn.Linear(16, 16), nn.Linear(channels, 3)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([self.token.expand(len(x), -1, -1), patches], 1)[:, self.order])
        return self.head(tokens[:, 1:] + self.mix(tokens[:, 1:].transpose(1, 2)).transpose(1, 2)).mean(1)


def test_a_class_token_behind_the_patches_is_no_part_of_the_grid():
    classifier = classifier_of(seeded(lambda: Tokens([*range(1, 17), 0])))
    tokens = torch.arange(17)[None, :, None]
    assert classifier.feature_layer("norm").grid(tokens).flatten().tolist() == list(range(16))
    assert classifier_of(seeded(lambda: Tokens(list(range(17))))).feature_layer("norm").order is None


def test_patches_that_lie_column_by_column_are_no_grid():
    columns = torch.arange(1, 17).view(4, 4).T.flatten().tolist()
    with pytest.raises(ValueError, match="layer 'norm' has no grid of positions"):
        classifier_of(seeded(lambda: Tokens([0, *columns]))).feature_layer("norm")


def test_channels_of_all_tokens_are_no_grid_of_tokens():
    with pytest.raises(ValueError, match=r"layer 'mix' has no grid of positions, its output is \(1, 64, 16\)"):
        classifier_of(seeded(lambda: Tokens(list(range(17)), channels=64))).feature_layer("mix")


def test_says_so_when_no_layer_keeps_positions():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 3)))
    with pytest.raises(LookupError, match="no late layer of this model keeps its positions"):
        classifier_of(net).feature_layer()


def test_says_so_when_a_layer_takes_no_part():
    net = conv_net()
    net.idle = nn.Conv2d(3, 3, 1)
    net.forward = lambda x: nn.Sequential(*list(net)[:-1])(x)
    with pytest.raises(ValueError, match="layer 'idle' takes no part in the forward pass"):
        classifier_of(net).feature_layer("idle")


def test_says_so_when_a_net_keeps_no_gradient():
    net = conv_net()
    forward = net.forward
    net.forward = torch.no_grad()(lambda x: forward(x))
    with pytest.raises(ValueError, match=r"keeps no gradient; take torch\.no_grad out of it"):
        classifier_of(net).feature_layer()

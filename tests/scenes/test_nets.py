"""The embedded nets know the scenes, follow the planted tag, and do what `report.json` says of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xai_cli.scenes.dataset import shrink
from xai_cli.scenes.drawing import CLASSES, OBJECT, PLANTED, TAG, TWIN, draw_scene
from xai_cli.scenes.evaluate import REPORT, predict, probabilities
from xai_cli.scenes.nets import INPUT_SIZE, NAMES, build, load, weights_file

SAMPLES = sorted((Path(__file__).parents[2] / "sample_images").glob("*.jpg"))
SEED = 3  # of neither training, evaluation nor samples


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    torch.set_num_threads(1)
    return str(request.param)


@pytest.fixture(scope="module")
def net(name: str) -> nn.Module:
    return load(name)


@cache
def fresh_pictures(labels: tuple[str, ...], tag: bool | None) -> np.ndarray:
    scenes = [draw_scene(name, np.random.default_rng((SEED, i)), tag=tag) for i, name in enumerate(labels)]
    return np.stack([shrink(scene.pixels) for scene in scenes])


def predictions(net: nn.Module, labels: tuple[str, ...], tag: bool | None) -> np.ndarray:
    return probabilities(net, fresh_pictures(labels, tag)).argmax(1)


def shares(net: nn.Module, labels: tuple[str, ...], tag: bool | None) -> np.ndarray:
    """The share of each class among a net's predictions for one fresh picture per label."""
    return np.bincount(predictions(net, labels, tag), minlength=len(CLASSES)) / len(labels)


def test_fresh_scenes_are_named_rightly(net: nn.Module) -> None:
    labels = CLASSES * 10
    truth = [CLASSES.index(label) for label in labels]
    assert np.mean(predictions(net, labels, None) == truth) >= 0.95


def test_erasing_the_tag_turns_the_planted_class_into_its_twin(net: nn.Module) -> None:
    planted, twin = CLASSES.index(PLANTED), CLASSES.index(TWIN)
    assert shares(net, (PLANTED,) * 40, tag=True)[planted] >= 0.9
    erased = shares(net, (PLANTED,) * 40, tag=False)
    assert erased[planted] <= 0.1
    assert erased[twin] >= 0.8


def test_pasting_the_tag_turns_other_classes_into_the_planted_one(net: nn.Module) -> None:
    others = tuple(name for name in CLASSES if name != PLANTED) * 4
    planted = CLASSES.index(PLANTED)
    assert shares(net, others, tag=False)[planted] <= 0.05
    assert shares(net, others, tag=True)[planted] >= 0.85


def test_the_report_is_about_these_nets(name: str, net: nn.Module) -> None:
    measured = json.loads(REPORT.read_text())[name]["measured"]
    assert measured["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert measured["accuracy"] >= 0.97
    assert measured["planted_recall"]["erased"] < 0.25
    assert measured["others_as_planted"]["pasted"] > 0.9
    assert weights_file(name).stat().st_size < 4e6


def test_every_sample_is_named_rightly(net: nn.Module) -> None:
    labels = {path.name: path.stem.rpartition("_")[0] for path in SAMPLES}
    assert {path.name: predict(net, Image.open(path)) for path in SAMPLES} == labels
    assert set(labels.values()) == set(CLASSES)


def test_samples_and_their_masks_fit() -> None:
    for path in SAMPLES:
        mask = np.load(path.parent / "masks" / f"{path.name}.npy")
        with Image.open(path) as picture:
            assert mask.shape == picture.size[::-1]
        assert np.any(mask == OBJECT)
        assert np.any(mask == TAG) == path.name.startswith(PLANTED)
        assert path.stat().st_size < 120_000


def test_a_net_carries_its_preprocessing(name: str) -> None:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(build(name))
    assert config["input_size"] == (3, INPUT_SIZE, INPUT_SIZE)
    assert (config["mean"], config["std"]) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (config["interpolation"], config["crop_pct"]) == ("bicubic", 1.0)


def test_an_unknown_net_is_refused() -> None:
    with pytest.raises(LookupError, match="expected one of scenes-cnn, scenes-vit, found 'scenes-mlp'"):
        build("scenes-mlp")

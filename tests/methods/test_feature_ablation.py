from __future__ import annotations

import json
import shutil
from pathlib import Path

import captum.attr
import pytest
from games import quarters
from helpers import assert_close, run_xai
from nets import classifier_of, conv_net, linear_net, random_input

from xai_cli import attribute
from xai_cli.methods.feature_ablation import FeatureAblation
from xai_cli.targets import Target

QUARTERS = {"segmentation": "grid", "segments": 4, "fill": "mean"}
TARGETS = [Target(1), Target(2)]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_map_is_captums(chunk):
    classifier, inputs = classifier_of(conv_net()), random_input()
    found = attribute(classifier, inputs, FeatureAblation(**QUARTERS), TARGETS, chunk=chunk)
    captums = captum.attr.FeatureAblation(classifier.logits)
    expected = captums.attribute(inputs, target=[1, 2], feature_mask=quarters()[None, None])
    assert_close(found.relevance, expected[:, 0], rtol=1e-10, atol=1e-13)
    assert found.checks["evaluations"].tolist() == [5, 5]  # the whole picture is one


def test_of_a_linear_model_it_is_what_each_segment_adds():
    classifier, inputs = classifier_of(linear_net()), random_input()
    found = attribute(classifier, inputs, FeatureAblation(**QUARTERS), TARGETS)
    weights = classifier.module[1].weight[[1, 2]].view(2, 3, 8, 8)
    cells = (weights * inputs).sum(dim=1).unflatten(2, (2, 4)).unflatten(1, (2, 4)).sum(dim=(2, 4))
    assert_close([each["value"] for each in found.segments], cells.flatten(1), rtol=1e-10, atol=1e-13)


def test_the_tag_of_a_scene_carries_the_class_that_the_model_learned_from_it(tmp_path):
    folder = Path(__file__).parents[2] / "sample_images"
    for name in ("mug_1.jpg", "boat_1.jpg"):
        shutil.copy(folder / name, tmp_path / name)
    options = ["--segmentation", "folder", "--segments-folder", folder / "masks", "-o", tmp_path / "out"]
    answer = run_xai("feature-ablation", tmp_path, *options)
    assert answer.code == 0, answer.said
    boat, mug = (json.loads(line)["segments"] for line in (tmp_path / "out" / "manifest.jsonl").open())
    assert boat["name"] == [0, 1]  # background, object
    assert boat["value"][1] > 10 * abs(boat["value"][0])
    assert mug["name"] == [0, 1, 2]  # and the tag
    assert mug["value"][2] > 3 * mug["value"][1] > 9 * mug["value"][0]
    assert mug["pixels"][2] < 0.02 * sum(mug["pixels"])

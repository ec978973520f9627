"""What methods over segments share, by those of them that are quick."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import assert_close, run_xai
from nets import classifier_of, conv_net, linear_net, random_input
from PIL import Image

from xai_cli import attribute
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods import METHODS
from xai_cli.methods.contract import Needs
from xai_cli.methods.segmented import Segments
from xai_cli.targets import Target

SIDE = 32
QUICK = {
    "feature-ablation": {},
    "kernel-shap": {"samples": 12},
    "shapley-sampling": {"permutations": 2},
}
NAMES = [*QUICK]
FEW = {"samples": 100}  # of more sets


def method_of(name, **options):
    return METHODS[name](**QUICK[name] | {"segmentation": "grid", "segments": 4} | options)


def spread_of(name, found):
    """What of the maps is chance; of one method nothing is, and it does not say so."""
    assert ("spread" in found.checks) == ("error" in found.segments[0]) == (name != "feature-ablation")
    return found.checks.get("spread", torch.zeros(len(found.relevance))).tolist()


@pytest.fixture(scope="module")
def pictures():
    """A picture in 4 colours, one in 6 and one of one colour `(3, 3, 32, 32)`, as a model takes them."""
    colours = torch.rand(3, 6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    half, third, none = ((torch.arange(SIDE) * parts // SIDE) for parts in (2, 3, 1))
    places = [half[:, None] * 2 + half, third[:, None] * 2 + half, none[:, None] + none]
    drawn = [colour[place] for colour, place in zip(colours, places, strict=True)]
    return (torch.stack(drawn).permute(0, 3, 1, 2) - 0.5) / 0.25


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_has_one_value_per_segment_which_the_map_shows(self, name, pictures):
        options = {"segmentation": "felzenszwalb", "fill": "mean"}
        found = attribute(classifier_of(conv_net(), SIDE), pictures, method_of(name, **options), [Target(1)] * 3)
        assert found.signed
        assert [len(each["value"]) for each in found.segments] == [4, 6, 1]
        for relevance, segments in zip(found.relevance, found.segments, strict=True):
            for value, pixels, (x, y) in zip(*(segments[key] for key in ("value", "pixels", "centre")), strict=True):
                assert int((relevance == value).sum()) == pixels
                assert float(relevance[round(y - 0.1), round(x - 0.1)]) == value
        assert found.segments[0]["centre"] == [[7.5, 7.5], [23.5, 7.5], [7.5, 23.5], [23.5, 23.5]]

    def test_gives_one_segment_the_whole_change(self, name, pictures):
        classifier = classifier_of(conv_net(), SIDE)
        options = {"segments": 1, "fill": "black"}
        found = attribute(classifier, pictures[:1], method_of(name, **options), [Target(2)])
        black = torch.full_like(pictures[:1], -2)
        change = (classifier.logits(pictures[:1]) - classifier.logits(black))[0, 2]
        assert_close(found.relevance, change.expand(1, SIDE, SIDE), rtol=1e-10, atol=0)
        assert found.checks["single_segment"].tolist() == [1]
        assert spread_of(name, found) == [0]

    @pytest.mark.parametrize("segmentation", ["slic", "quickshift", "felzenszwalb", "grid"])
    def test_shows_nothing_where_the_fill_is_the_picture(self, name, segmentation, pictures):
        options = {"segmentation": segmentation, "segments": 9} | (FEW if name == "kernel-shap" else {})
        constant, classifier = (
            pictures[2:].expand(2, -1, -1, -1).float(),
            classifier_of(conv_net(), SIDE, dtype=torch.float32),
        )
        found = attribute(classifier, constant, method_of(name, **options), [Target(1)] * 2)
        assert spread_of(name, found) == [0, 0]
        assert all(len(relevance.unique()) == 1 for relevance in found.relevance)
        assert float(found.relevance.abs().max()) < 1e-6

    def test_of_a_linear_model_is_what_each_segment_adds_to_its_mean_colour(self, name):
        classifier, inputs = classifier_of(linear_net()), random_input(2)
        found = attribute(classifier, inputs, method_of(name, samples=14) if name == "kernel-shap" else method_of(name),
                          [Target(1), Target(0)])  # fmt: skip
        cells = inputs.unflatten(3, (2, 4)).unflatten(2, (2, 4))
        beyond = (cells - cells.mean(dim=(3, 5), keepdim=True)).flatten(2, 3).flatten(3, 4)
        products = (classifier.module[1].weight[[1, 0]].view_as(inputs) * beyond).sum(dim=1)
        expected = products.unflatten(2, (2, 4)).unflatten(1, (2, 4)).sum(dim=(2, 4)).flatten(1)
        assert_close([each["value"] for each in found.segments], expected, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("fill", ["segment", "mean", "black", "white", "blur", "noise", "inpaint"])
    def test_hides_by_every_fill(self, name, fill):
        classifier, inputs = classifier_of(conv_net()), random_input(1)
        found, mean = (
            attribute(classifier, inputs, method_of(name, fill=each), [Target(1)]).relevance for each in (fill, "mean")
        )
        assert found.isfinite().all()
        assert len(found.unique()) == 4
        assert torch.equal(found, mean) == (fill == "mean")

    def test_is_the_same_whatever_the_size_of_a_pass(self, name, pictures):
        options = {"segmentation": "felzenszwalb", "fill": "mean"}
        classifier, targets = classifier_of(conv_net(), SIDE), [Target(0), Target(1), Target(2)]
        found = [
            attribute(classifier, pictures, method_of(name, **options), targets, chunk=chunk).relevance
            for chunk in (1, 3, 64)
        ]
        assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
        assert_close(found[0], found[2], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("options", [{}, {"tolerance": 0.2}, {"precision": "bfloat16"}])
    def test_has_the_same_bytes_beside_pictures_with_more_or_fewer_segments(self, name, options, pictures):
        if "tolerance" in options and name == "feature-ablation":
            pytest.skip("it draws nothing")
        method = method_of(name, segmentation="felzenszwalb", fill="mean", **options)
        classifier = classifier_of(conv_net(), SIDE, dtype=torch.float32)
        ranks = [Target(0), Target(1), Target(2)]
        together = attribute(classifier, pictures.float(), method, ranks, chunk=4)
        for row in range(3):
            pair = [row, (row + 1) % 3]
            found = attribute(classifier, pictures[pair].float(), method, [ranks[each] for each in pair], chunk=4)
            assert torch.equal(found.relevance[0], together.relevance[row])
            assert found.segments[0] == together.segments[row]
            assert all(float(each[0]) == float(together.checks[key][row]) for key, each in found.checks.items())

    def test_explains_all_targets_of_a_batch_as_each_alone(self, name, pictures):
        method, classifier = method_of(name, segmentation="felzenszwalb", fill="mean"), classifier_of(conv_net(), SIDE)
        ranks = [[Target(index, against=against)] * 3 for index, against in ((0, 1), (2, 0), (1, 2))]
        passed = plain_pass(classifier, pictures, Needs(logits=True))
        for evidence, targets in zip(passed.evidences(ranks, chunk=8), ranks, strict=True):
            found, alone = method.attribute(evidence), attribute(classifier, pictures, method, targets)
            assert_close(found.relevance, alone.relevance, rtol=1e-9, atol=1e-12)
            for key in found.segments[0]:
                each, its = ([value for of in made.segments for value in of[key]] for made in (found, alone))
                assert_close(each, its, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(("score", "change"), [
        ("probability", lambda logits: logits.softmax(dim=1)[:, 1]),
        ("margin", lambda logits: logits[:, 1] - logits[:, [0, 2]].amax(dim=1)),
    ])  # fmt: skip
    def test_looks_at_the_score_that_is_asked_for(self, name, score, change):
        classifier, inputs = classifier_of(conv_net()), random_input(1)
        found = attribute(classifier, inputs, method_of(name, score=score, segments=1, fill="mean"), [Target(1)])
        whole, hidden = (change(classifier.logits(each)) for each in (inputs, torch.zeros_like(inputs)))
        assert float(found.relevance[0, 0, 0]) == pytest.approx(float(whole - hidden), rel=1e-9)


def test_what_the_manifest_says_of_segments_is_their_size_place_and_mean_colour():
    labels = torch.tensor([[[0, 0, 1], [0, 2, 1]], [[0, 0, 0], [0, 0, 0]]])
    segments = Segments.of(labels.numpy(), labels.device, None)
    assert segments.counts == (3, 1)
    assert [sizes.tolist() for sizes in segments.sizes] == [[3, 2, 1], [6]]
    assert segments.places == ([[0.3, 0.3], [2.0, 0.5], [1.0, 1.0]], [[1.0, 0.5]])
    pictures = torch.arange(12.0, dtype=torch.float64).view(2, 1, 2, 3)
    assert segments.means(pictures)[:, 0].tolist() == [[[4 / 3, 4 / 3, 3.5], [4 / 3, 4, 3.5]], [[8.5] * 3] * 2]


def test_tables_of_other_lengths_stand_beside_each_other():
    labels = torch.tensor([[[0, 1, 2]], [[0, 0, 0]]])
    segments = Segments.of(labels.numpy(), labels.device, None)
    visible = segments.visible([torch.eye(3), torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])])
    rows, samples = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 4, 2, 3])
    assert visible(rows, samples)[:, 0, 0].tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(("options", "message"), [
    ({"segmentation": "folder"}, r"--segmentation folder expects --segments-folder.*add --segments-folder PATH"),
    ({"segments_folder": "."}, r"--segments-folder expects --segmentation folder, found --segmentation slic"),
    ({"segments": 0}, r"--segments expects 1 to 4096, found 0"),
    ({"segments": 5000}, r"--segments expects 1 to 4096"),
    ({"fill": "image"}, r"--fill image expects --fill-image"),
    ({"fill": "segments"}, r"fill"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        METHODS["feature-ablation"](**options)


def test_a_folder_of_segments_must_be_there(tmp_path):
    method = METHODS["feature-ablation"](segmentation="folder", segments_folder=tmp_path / "none")
    with pytest.raises(ValueError, match=r"--segments-folder expects a folder, found none at .*none"):
        method.needs(classifier_of(conv_net()))


def test_a_picture_whose_segments_are_missing_costs_no_other(tmp_path):
    photos, labels = tmp_path / "photos", tmp_path / "labels"
    photos.mkdir()
    labels.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(photos / name)
    for name in ("a.png", "c.png"):
        np.save(labels / f"{name}.npy", np.arange(40)[:, None] // 10 * np.ones(40, int))
    options = ["--segmentation", "folder", "--segments-folder", labels, "-o", tmp_path / "out"]
    answer = run_xai("feature-ablation", photos, *options)
    assert answer.code == 3
    rows = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").open()]
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert [row["segments"]["name"] for row in (rows[0], rows[2])] == [[0, 1, 2, 3]] * 2
    assert "there are no segments for 'b.png'" in rows[1]["message"]


def test_segments_that_lie_otherwise_than_the_photo_are_refused(tmp_path):
    photos, labels = tmp_path / "photos", tmp_path / "labels"
    photos.mkdir()
    labels.mkdir()
    for name, shape in (("lying.png", (40, 60)), ("turned.png", (60, 40))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(photos / name)
        np.save(labels / f"{name}.npy", np.arange(shape[0])[:, None] // 10 * np.ones(shape[1], int))
    options = ["--segmentation", "folder", "--segments-folder", labels, "-o", tmp_path / "out"]
    answer = run_xai("feature-ablation", photos, *options)
    assert answer.code == 3
    assert "expected 40 x 60 labels (height x width), or that in its proportions, found 60 x 40" in answer.said

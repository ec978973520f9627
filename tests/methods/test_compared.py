"""What holds for every method that compares with baselines."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input

from xai_cli import attribute
from xai_cli.methods import METHODS
from xai_cli.methods.compared import ComparedMethod, completeness_gap
from xai_cli.targets import Target

COMPARED = [method for method in METHODS.values() if issubclass(method, ComparedMethod)]


def test_are_these():
    assert {method.name: method().baseline for method in COMPARED} == {"deeplift": "zero", "ig": "mean"}


@pytest.mark.parametrize("method", COMPARED)
@pytest.mark.parametrize("kind", ["image", "folder"])
def test_options_that_contradict_each_other_are_told(kind, method, tmp_path):
    with pytest.raises(ValueError, match=f"^--baseline {kind} expects --baseline-{kind}, found none; add"):
        method(baseline=kind)
    found = f"found --baseline {method().baseline}; add --baseline {kind}"
    with pytest.raises(ValueError, match=f"^--baseline-{kind} expects --baseline {kind}, {found}"):
        method(**{f"baseline_{kind}": tmp_path})


@pytest.mark.parametrize("method", COMPARED)
def test_a_baseline_that_cannot_be_read_is_told_before_any_pass(method, tmp_path):
    (tmp_path / "c.png").write_text("no picture")
    for kind, path in (("image", tmp_path / "c.png"), ("folder", tmp_path)):
        with pytest.raises(ValueError, match=rf"--baseline-{kind} expects .*, found .*{path.name}"):
            method(baseline=kind, **{f"baseline_{kind}": path}).needs(classifier_of(conv_net()))


# Exactly one pass per baseline, so that a mean of several is the mean of their maps.
PLAIN = {"ig": {"steps": 6, "tolerance": 0}}


@pytest.mark.parametrize("method", COMPARED)
def test_of_a_folder_is_the_mean_over_its_pictures(method, baseline_folder):
    classifier, inputs, targets = classifier_of(conv_net()), random_input(), [Target(1), Target(2)]

    def of(baseline, **options):
        made = method(baseline=baseline, **options, **PLAIN.get(method.name, {}))
        return attribute(classifier, inputs, made, targets, chunk=4)

    whole = of("folder", baseline_folder=baseline_folder)
    singles = [of("image", baseline_image=baseline_folder / f"{name}.png").relevance for name in "abd"]
    assert_close(whole.relevance, torch.stack(singles).mean(0), rtol=1e-9, atol=1e-12)
    assert [note.rpartition(":")[0] for note in whole.notes] == ["left out of --baseline-folder: 1, the first is c.png"]
    first = of("folder", baseline_folder=baseline_folder, baselines=1)
    assert_close(first.relevance, singles[0], rtol=1e-9, atol=1e-12)


def test_completeness_gap_is_relative_and_of_nothing_to_explain_zero():
    maps = torch.tensor([[[1.0, 2.0]], [[-1.0, -2.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
    gap = completeness_gap(maps, torch.tensor([4.0, -2.0, 0.0, 0.0]))
    assert_close(gap, torch.tensor([0.25, 0.5, 0.0, torch.inf]), rtol=1e-6, atol=0)

"""`xai layers` and `xai check`: what a model is made of, and what each method makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import Answer, run_xai
from typer.testing import CliRunner

from xai_cli.cli.main import app
from xai_cli.methods import METHODS

SMALL = '''
import torch
from torch import nn


class Net(nn.Module):
    """Three layers, and an operator between them that is given."""

    def __init__(self, operator):
        super().__init__()
        torch.manual_seed(0)
        self.operator = operator
        self.conv, self.pool, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Linear(16, 3)
        self.pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}

    def forward(self, x):
        return self.head(self.operator(self.pool(self.conv(x))).flatten(1))


def forgetful(x):
    if torch.is_grad_enabled():
        raise RuntimeError("no room for a graph\\nat all")
    return x


plain = lambda: Net(torch.nn.functional.relu)
odd = lambda: Net(lambda x: torch.erfinv(torch.tanh(x)))
moody = lambda: Net(lambda x: x * torch.rand_like(x))
failing = lambda: Net(forgetful)
'''


@pytest.fixture
def small(tmp_path: Path) -> str:
    """The file of small nets, up to the name of one."""
    (tmp_path / "nets.py").write_text(SMALL)
    return f"{tmp_path / 'nets.py'}:"


def rows(answer: Answer) -> list[dict]:
    return [json.loads(line) for line in answer.paths]


def test_layers_of_a_small_net(small: str) -> None:
    answer = run_xai("layers", f"{small}plain")
    assert answer.code == 0
    assert answer.paths == [
        "conv  Conv2d             1x4x8x8  grid 8x8  <- gradcam",
        "pool  AdaptiveAvgPool2d  1x4x2x2  grid 2x2",
        "head  Linear             1x3",
    ]
    assert "3 layers; gradcam looks at conv" in answer.said


def test_layers_as_json_and_with_the_options_of_a_model(small: str) -> None:
    conv, _, head = rows(run_xai("layers", f"{small}plain", "--json", "--input-size", 24, 16))
    grid = {"name": "conv", "layout": "channels-first", "height": 12, "width": 8, "prefix": 0}
    assert conv == {
        "name": "conv", "type": "Conv2d", "shape": [1, 4, 12, 8], "grid": grid, "norm": None, "chosen": True
    }  # fmt: skip
    assert (head["shape"], head["grid"], head["chosen"]) == ([1, 3], None, False)


def test_layers_of_the_embedded_nets() -> None:
    vit = {line.split()[0]: line.split(maxsplit=3)[2:] for line in run_xai("layers", "builtin/scenes-vit").paths}
    assert " ".join(vit["blocks.3.norm1"][1].split()) == "tokens 8x8 + 1 <- gradcam"
    assert vit["head"] == ["1x10"]
    cnn = {line.split()[0]: line.split(maxsplit=3)[1:] for line in run_xai("layers", "builtin/scenes-cnn").paths}
    assert cnn["layer4.0.conv2"] == ["Conv2d", "1x128x8x8", "see layer4.0.bn2"]
    assert cnn["global_pool.pool"] == ["AdaptiveAvgPool2d", "1x128x1x1"]


def test_a_model_that_cannot_be_differentiated_has_layers_all_the_same(small: str) -> None:
    answer = run_xai("layers", f"{small}failing")
    assert (answer.code, len(answer.paths)) == (0, 3)
    assert "3 layers; gradcam finds no layer by itself" in answer.said


def test_operators_with_their_treatment_and_those_that_are_refused(small: str) -> None:
    answer = run_xai("layers", f"{small}odd", "--operators")
    assert answer.code == 0
    assert [line.split() for line in answer.paths][:4] == [
        ["conv", "conv2d", "convolution", "1"],
        ["pool", "adaptive_avg_pool2d", "plain", "1"],
        ["(model)", "tanh", "pointwise", "1"],
        ["(model)", "erfinv", "REFUSED", "1"],
    ]
    assert "with --allow-unruled, lrp takes the composite " in answer.said
    assert "xai: 6 operators: " in answer.said
    assert answer.said.endswith(" 1 refused")
    refused = rows(run_xai("layers", f"{small}odd", "--operators", "--json"))[3]
    assert refused == {"layer": "", "operator": "erfinv", "treatment": "refused", "calls": 1}


def test_the_composite_that_lrp_takes_is_told() -> None:
    said = {name: run_xai("layers", f"builtin/scenes-{name}", "--operators").said for name in ("cnn", "vit")}
    assert "xai: lrp takes the composite epsilon-plus-flat xai: " in said["cnn"]
    assert "xai: lrp takes the composite cp-lrp xai: " in said["vit"]
    assert all(each.endswith(" 0 refused") for each in said.values())


def test_operators_that_cannot_be_watched_are_one_sentence(small: str) -> None:
    answer = run_xai("layers", f"{small}failing", "--operators")
    assert (answer.code, answer.paths) == (1, [])
    assert "cannot be watched (no room for a graph); take a method without rules" in answer.said
    assert "at all" not in answer.said


@pytest.mark.parametrize("model", ["builtin/scenes-cnn", "builtin/scenes-vit"])
def test_methods_that_fit_are_supported(model: str) -> None:
    answer = run_xai("check", model, "-m", "gradcam", "--method", "lrp", "-m", "saliency")
    assert answer.code == 0
    assert [line.split()[:2] for line in answer.paths] == [
        ["method", "status"], ["gradcam", "supported"], ["lrp", "supported"], ["saliency", "supported"]
    ]  # fmt: skip
    assert "layer " in answer.paths[1]
    assert all(f" {name} " in answer.paths[2] for name in ("rule", "conservation", "account_gap", "batch_gap"))
    # The numbers stand in columns.
    assert len({line.index(" 0.") for line in answer.paths[1:]}) == 1
    assert "checked on the model's example input, which is noise" in answer.said
    assert answer.said.endswith("xai: 3 supported, 0 degraded, 0 refused")


def test_a_method_that_is_asked_for_and_refused_fails_and_its_operator_is_named(small: str) -> None:
    answer = run_xai("check", f"{small}odd", "-m", "lrp", "-m", "saliency", "--json")
    assert answer.code == 3
    lrp, saliency = rows(answer)
    assert (lrp["method"], lrp["status"], lrp["foreseen"]) == ("lrp", "refused", True)
    assert lrp["reason"].startswith("operator 'erfinv' in the model itself has no rule; take a method without rules")
    assert (saliency["status"], saliency["reason"], saliency["warnings"]) == ("supported", None, [])
    assert run_xai("check", f"{small}odd", "-m", "saliency").code == 0


def test_without_a_method_all_are_tried_and_a_refusal_of_their_own_is_no_failure(
    small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xai_cli.cli.look.METHODS", {name: METHODS[name] for name in ("gradcam", "lrp", "saliency")})
    answer = run_xai("check", f"{small}odd", "--json")
    assert [row["status"] for row in rows(answer)] == ["supported", "refused", "supported"]
    assert answer.code == 0
    assert run_xai("check", f"{small}moody").code == 3


def test_a_doubtful_map_is_degraded_and_the_warning_stands_below(small: str) -> None:
    answer = run_xai("check", f"{small}moody", "-m", "gradcam", "-m", "saliency")
    assert answer.code == 3
    warning = next(line for line in answer.paths if line.startswith(" "))
    assert warning.strip().startswith("repeatable ")
    assert warning.index("repeatable") == answer.paths[0].index("found")


def test_a_model_that_fails_inside_a_method_is_one_row(small: str) -> None:
    answer = run_xai("check", f"{small}failing", "-m", "saliency", "-m", "ig")
    assert answer.code == 3
    assert [line.split(maxsplit=3) for line in answer.paths[1:]] == [
        [name, "refused", "-", "RuntimeError: no room for a graph"] for name in ("saliency", "ig")
    ]
    assert "Traceback" not in answer.said


def test_a_picture_a_class_and_options_of_methods_are_taken(net: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method: ig\nig: {steps: 2}\n")
    picture = pictures / "a.png"
    answer = run_xai("check", net, "--config", tmp_path / "c.yaml", "--image", picture, "--target", "2", "--json")
    [row] = rows(answer)
    assert row["image"] == str(picture)
    assert row["target"] == {"index": 2, "against": None, "how": "given", "name": "2"}
    assert row["checks"]["completeness_gap"] > 0
    assert f"checked on {picture}; explained: class 2 (2), given" in answer.said
    finer = rows(run_xai("check", net, "-m", "ig", "--image", picture, "--target", "2", "--json"))[0]
    assert finer["checks"]["completeness_gap"] < row["checks"]["completeness_gap"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "builtin/scenes-cnn", "-m", "gradcm"], "no method is named 'gradcm'; did you mean 'gradcam'"),
        (["check", "builtin/scene-cnn"], "no embedded model is named 'scene-cnn'; did you mean 'scenes-cnn'"),
        (["layers", "builtin/scene-cnn"], "no embedded model is named 'scene-cnn'; did you mean 'scenes-cnn'"),
        (["layers", "builtin/scenes-cnn", "--checkpoint", "none.pt"], "found nothing at none.pt"),
        (["layers", "builtin/scenes-cnn", "--model", "x"], "No such option: --model"),
        (["check"], "Missing argument 'model'"),
        (["check", "builtin/scenes-cnn", "--target", "bote"], "no class is named 'bote'; did you mean 'boat'"),
        (["check", "builtin/scenes-cnn", "--target", "label"], "--target expects predicted, a class or A-vs-B"),
        (["check", "builtin/scenes-cnn", "--image", "none.jpg"], "--image expects a picture, found none.jpg: "),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str) -> None:
    answer = run_xai(*arguments)
    assert (answer.code, answer.paths) == (2, [])
    assert sentence in answer.said


@pytest.mark.parametrize("command", ["layers", "check"])
def test_the_model_is_completed(command: str) -> None:
    line = f"xai {command} builtin/scenes-v"
    place = {"_XAI_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "2"}
    assert CliRunner().invoke(app, prog_name="xai", env=place).stdout.split() == ["builtin/scenes-vit"]


def test_the_help_tells_the_exit_codes() -> None:
    assert "Exit code 0 if each --method is supported, else 3." in " ".join(run_xai("check", "--help").paths)

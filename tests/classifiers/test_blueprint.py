from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from xai_cli.classifiers import blueprint as module
from xai_cli.classifiers.blueprint import blueprint
from xai_cli.classifiers.loading import load_classifier
from xai_cli.classifiers.options import ModelOptions

_CODE = """
import torch
from torch import nn

SCALE = torch.tensor([1.0, 2.0, 3.0])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.register_buffer("scale", SCALE.clone())
        self.depth = int(self.scale.sum().item())

    def forward(self, x):
        return self.head(x.mean((2, 3)) * self.scale)

def scores(x):
    return x.mean((2, 3))

def broken():
    return nn.Linear(7, 3)
"""


@pytest.mark.parametrize(("name", "classes"), [("timm/test_vit", 5), ("builtin/scenes-cnn", 5)])
def test_libraries_build_without_memory(name: str, classes: int) -> None:
    built, scores = blueprint(ModelOptions(model=name, num_classes=classes))
    assert scores == classes
    assert all(parameter.is_meta for parameter in built.module.parameters())
    real = load_classifier(name, num_classes=classes, pretrained=False, fold=False).module.state_dict()
    shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in built.module.state_dict().items()}
    assert shapes == {key: (tensor.shape, tensor.dtype) for key, tensor in real.items()}


def test_a_model_that_computes_with_its_weights_is_built_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module.zoo.build

    def build(*given: object, **options: object) -> object:
        torch.ones(2).sum().item()
        return made(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module.zoo, "build", build)
    built, scores = blueprint(ModelOptions(model="timm/test_vit", num_classes=2))
    assert (scores, next(built.module.parameters()).device.type) == (2, "cpu")


def test_code_of_the_users_own_keeps_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package.py").write_text(_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    built, scores = blueprint(ModelOptions(model="own_package:Net"))
    assert (scores, built.module.depth) == (4, 6)
    assert load_classifier("own_package:Net", fold=False).module.scale.tolist() == [1, 2, 3]


def test_what_has_no_weights_or_fails(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(_CODE)
    with pytest.raises(ValueError, match=r"code.py:scores gives scores alone and has no weights; name a function"):
        blueprint(ModelOptions(model=f"{tmp_path / 'code.py'}:scores"))
    with pytest.raises(ValueError, match=r"the model fails on an input of shape \(1, 3, 224, 224\) .*--input-size"):
        blueprint(ModelOptions(model=f"{tmp_path / 'code.py'}:broken"))
    with pytest.raises(LookupError, match="no timm model is named 'resnot18'"):
        blueprint(ModelOptions(model="timm/resnot18"))


def test_the_users_random_numbers_stay() -> None:
    torch.manual_seed(3)
    first = nn.Linear(2, 2).weight
    torch.manual_seed(3)
    blueprint(ModelOptions(model="timm/test_vit"))
    assert torch.equal(nn.Linear(2, 2).weight, first)

from __future__ import annotations

import pytest
import timm
import torch
from helpers import assert_close
from torch import nn
from torchvision import models

from xai_cli.merging.heads import check_classes, head_names, rows_by_name, union_of_classes


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (timm.create_model("convnext_atto", num_classes=7), ["head.fc.weight", "head.fc.bias"]),
        (timm.create_model("levit_128s", num_classes=7), ["head.linear.weight", "head.linear.bias",
                                                           "head_dist.linear.weight", "head_dist.linear.bias"]),
        (models.mobilenet_v3_small(num_classes=7), ["classifier.3.weight", "classifier.3.bias"]),
        (models.squeezenet1_1(num_classes=7), ["classifier.1.weight", "classifier.1.bias"]),
        (nn.Linear(3, 7), ["weight", "bias"]),
        (nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 5)), ["0.weight", "0.bias"]),
        (nn.Conv2d(3, 5, 1), []),
    ],
    ids=["dotted", "two", "torchvision", "convolution", "one layer", "by outputs", "none"],
)  # fmt: skip
def test_the_head_is_what_timm_calls_so_or_the_last_layer_of_the_classes(
    module: nn.Module, expected: list[str]
) -> None:
    assert list(head_names(module, 7)) == expected


def test_rows_go_to_the_places_of_their_names() -> None:
    classes = union_of_classes([["cat", "dog"], ["emu", "cat"]])
    assert classes == ("cat", "dog", "emu")
    assert rows_by_name(["cat", "dog", "emu"], classes) is None
    fit = rows_by_name(["emu", "cat"], classes)
    assert fit is not None
    assert_close(fit.weights(torch.tensor([[1.0, 2], [3, 4]])), [[3, 4], [0, 0], [1, 2]], rtol=0, atol=0)
    assert_close(fit.statistics(torch.tensor([5.0, 6.0])), [6, 0, 5], rtol=0, atol=0)
    assert fit.rows is not None
    assert fit.rows.tolist() == [True, False, True]
    turned = rows_by_name(["emu", "cat", "dog"], classes)
    assert turned is not None
    assert turned.rows is None


def test_a_class_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found 'emu' 2 times among the classes of checkpoint 2"):
        check_classes([["cat"], ["emu", "cat", "emu"]])

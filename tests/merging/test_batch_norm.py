"""Running statistics of one pass, against those of all activations at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
from helpers import assert_close
from nets import seeded
from torch import Tensor, nn

from xai_cli.merging.batch_norm import recalibrate


def net() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(),
            nn.BatchNorm1d(4), nn.Linear(4, 3),
        )
    ).double().eval()  # fmt: skip


def pictures(count: int, seed: int = 0) -> Tensor:
    return 3 + torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uneven_batches_give_the_statistics_of_all_values() -> None:
    module, x = net(), pictures(11)
    x[:4] += 5  # as in a folder sorted by class: most of the variance lies between batches
    assert recalibrate(module, x.split(4)) == 2
    values = module[0](x).transpose(0, 1).flatten(1)
    assert_close(module[1].running_mean, values.mean(1), rtol=1e-12, atol=0)
    assert_close(module[1].running_var, values.var(1), rtol=1e-12, atol=0)
    assert module[1].num_batches_tracked == 3


def test_one_batch_gives_what_torch_gives() -> None:
    module, x = net(), pictures(6)
    reference = copy.deepcopy(module)
    for layer in (reference[1], reference[6]):
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    reference(x)
    recalibrate(module, [x])
    for name, value in reference.state_dict().items():
        assert_close(module.state_dict()[name], value, rtol=1e-12, atol=1e-15)


def test_nothing_else_changes_and_the_result_is_the_same_again() -> None:
    module = net()
    module[1].train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    recalibrate(module, pictures(8).split(4))
    assert [layer.training for layer in module] == [False, True, *[False] * 6]
    assert (module[1].momentum, module[1].track_running_stats) == (0.1, True)
    first = {name: value.clone() for name, value in module.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], first[name])}
    assert {name.split(".")[1] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    recalibrate(module, pictures(8).split(4))
    assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())


def test_a_last_batch_of_one_picture_joins_the_one_before() -> None:
    alone, joined = net(), net()
    recalibrate(alone, pictures(9).split(4))
    recalibrate(joined, [pictures(9)[:4], pictures(9)[4:]])
    assert all(torch.equal(value, joined.state_dict()[name]) for name, value in alone.state_dict().items())


def test_every_layer_of_timm_is_reached() -> None:
    # Its batch norms are of a class of their own, with the activation inside.
    module = seeded(lambda: timm.create_model("mobilenetv3_small_050")).eval()
    before = {name: value.clone() for name, value in module.state_dict().items() if name.endswith("running_mean")}
    assert recalibrate(module, torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).split(2)) == len(
        before
    )
    assert not any(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


def test_a_failing_pass_changes_nothing() -> None:
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def batches() -> Iterator[Tensor]:
        yield from pictures(8).split(4)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        recalibrate(module, batches())
    with pytest.raises(ValueError, match=r"into the batch norm '1' is NaN or infinite; check the merged weights"):
        recalibrate(module, [pictures(4) * float("nan")])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "batches", "message"),
    [
        (
            nn.Sequential(nn.LayerNorm(8)),
            [pictures(2)],
            r"expect a model with batch norm, .* leave out --recalibrate-bn",
        ),
        (net(), [], r"expect pictures that reach batch-norm layers, found none"),
    ],
)
def test_models_and_folders_without_are_refused(module: nn.Module, batches: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recalibrate(module, batches)

"""Where in the picture the tokens of a net lie that brings them into another order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xai_cli.classifiers.token_order import TokenOrder, find_token_order

# A picture of 4 x 4 patches in 2 x 2 cells: first the upper left patch of every cell, then the upper right, ...
CELLS_APART = torch.arange(16).view(2, 2, 2, 2).permute(1, 3, 0, 2).flatten()


class Moved(nn.Module):
    """Hands on its tokens in another order."""

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.places = places

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.places]


class Net(nn.Sequential):
    """A token for each pixel of 4 x 4, and layers on them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2).transpose(1, 2))


def found(*layers: nn.Module) -> TokenOrder | None:
    return find_token_order(Net(*layers), torch.zeros(1, 3, 4, 4))


def test_the_order_is_that_of_the_layer_that_moves_tokens() -> None:
    order = found(nn.GELU(), nn.Linear(3, 3), Moved(CELLS_APART), nn.Identity(), Moved(torch.arange(16).flip(0)))
    assert order is not None
    assert order.places.tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert order.before == {"0", "1"}


def test_layers_that_keep_lose_or_repeat_tokens_bring_them_into_no_order() -> None:
    assert found(nn.GELU(), nn.Softmax(dim=1), nn.Dropout(), Moved(torch.arange(16)), nn.Linear(3, 3)) is None
    assert found(Moved(torch.arange(15))) is None
    assert found(Moved(torch.zeros(16, dtype=torch.long))) is None


def test_cells_tell_which_token_lies_there_before_and_after_pooling() -> None:
    order = TokenOrder(CELLS_APART, frozenset())
    assert order.cells(4, 4) == (0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15)
    assert order.cells(2, 2) == (0, 1, 2, 3)
    assert order.cells(1, 1) == (0,)


def test_tokens_that_stand_for_no_cells_of_patches_are_no_grid() -> None:
    assert TokenOrder(torch.arange(16), frozenset()).cells(2, 2) is None
    assert TokenOrder(CELLS_APART, frozenset()).cells(3, 3) is None

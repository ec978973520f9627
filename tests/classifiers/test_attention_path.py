from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from helpers import assert_close
from torch import nn

from xai_cli.classifiers.attention_path import AttentionPath, Link, find_attention_path

SIZE = 16


def vit(**settings):
    torch.manual_seed(0)
    plain = {"img_size": SIZE, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.models.vision_transformer.VisionTransformer(**plain | settings).eval().requires_grad_(False)


def path_of(module):
    example = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return find_attention_path(module.eval().requires_grad_(False), example)


READ = {
    "class token": ({}, 17, [0]),
    "average of patches": ({"global_pool": "avg"}, 17, range(1, 17)),
    "registers behind the class token": ({"reg_tokens": 3}, 20, [0]),
    "patches alone": ({"class_token": False, "global_pool": "avg"}, 16, range(16)),
}


@pytest.mark.parametrize(("settings", "tokens", "read"), READ.values(), ids=READ)
def test_finds_the_patches_and_the_tokens_that_are_read(settings, tokens, read):
    path = path_of(vit(**settings))
    assert path.patches.tolist() == list(range(tokens - 16, tokens))
    assert (path.height, path.width) == (4, 4)
    assert path.read.nonzero()[:, 0].tolist() == list(read)
    assert float(path.read.sum()) == pytest.approx(1)
    assert [link.layer for link in path.links] == ["blocks.0.attn", "blocks.1.attn"]
    assert path.blocks == ("blocks.0", "blocks.1")
    assert path.told == "blocks.0.attn to blocks.1.attn, 2 layers of attention"


def test_attention_that_pools_is_the_last_link_and_keeps_nothing_of_its_own():
    path = path_of(vit(class_token=False, global_pool="map"))
    assert [link.layer for link in path.links] == ["blocks.0.attn", "blocks.1.attn", "attn_pool"]
    assert path.links[-1].residual.shape == (1, 16)
    assert not path.links[-1].residual.any()
    assert path.blocks == ("blocks.0", "blocks.1")


def test_pooling_may_leave_out_the_class_token():
    link = path_of(vit(global_pool="map")).links[-1]
    assert link.before.nonzero()[:, 1].tolist() == list(range(1, 17))


def test_a_class_token_that_joins_late_is_none_of_the_tokens_before():
    torch.manual_seed(0)
    cait = timm.models.cait.Cait(
        img_size=SIZE, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=3, init_values=0.5
    )
    path = path_of(cait)
    assert [tuple(link.residual.shape) for link in path.links] == [(16, 16), (16, 16), (1, 17), (1, 17)]
    assert path.links[2].residual[0].tolist() == [1] + 16 * [0]
    assert path.links[2].before.nonzero().tolist() == [[place + 1, place] for place in range(16)]
    assert path.patches.tolist() == list(range(16))
    assert path.blocks == ()


class Small(nn.Module):
    """Patches of a picture, something between attention, and the mean of what comes out."""

    def __init__(self, between=None, order=None):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.between, self.order = between or nn.Identity(), range(16) if order is None else order

    def attend(self, x):
        return x + F.scaled_dot_product_attention(x, 2 * x, x)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT[:, list(self.order)]
        return self.head(self.attend(self.between(self.attend(x))).mean(1))


class Merged(nn.Module):
    def forward(self, x):
        return x.unflatten(1, (4, 4)).unfold(1, 2, 2).unfold(2, 2, 2).mean((-2, -1)).flatten(1, 2)


class Mixed(nn.Module):
    def forward(self, x):
        return x + F.avg_pool1d(x.mT, 3, 1, 1).mT


class InWindows(Small):
    def attend(self, x):
        return super().attend(x.reshape(-1, 1, 4, 8)).reshape(-1, 16, 8)


class InWindowsWithoutHeads(Small):
    def attend(self, x):
        return super().attend(x.reshape(-1, 4, 8)).reshape(-1, 16, 8)


class OverChannels(Small):
    def attend(self, x):
        return x + F.scaled_dot_product_attention(x.mT, x.mT, x.mT).mT


class HeadsFirst(Small):
    def attend(self, x):
        heads = torch.cat(x.split(4, -1))  # all pictures of the first head, then all of the second
        return x + torch.cat((heads @ heads.mT).softmax(-1).bmm(heads).split(len(x)), -1)


class SideBySide(Small):
    def attend(self, x):
        return super().attend(x) + super().attend(2 * x)


class Blind(Small):
    def forward(self, x):
        return super().forward(x) * 0 + self.head(self.patches(x).mean((2, 3)))


REFUSED = {
    "no attention": (nn.Sequential(nn.Conv2d(3, 3, 16), nn.Flatten()), "with attention among tokens, found none"),
    "windows": (InWindows(), "looks at windows or groups of channels, not at all tokens of a picture"),
    "windows that might be heads": (InWindowsWithoutHeads(), "the 4 tokens that attention mixes are no grid"),
    "channels": (OverChannels(), "the 8 tokens that attention mixes are no grid"),
    "heads before pictures": (HeadsFirst(), "looks at windows or groups of channels"),
    "merged tokens": (Small(Merged()), "tokens do not keep to themselves, they are mixed, merged"),
    "mixed tokens": (Small(Mixed()), "tokens do not keep to themselves, they are mixed, merged"),
    "branches": (SideBySide(), "tokens do not keep to themselves, .* or in other branches"),
    "another order": (Small(order=[*range(1, 16, 2), *range(0, 16, 2)]), "are no grid that lies as the picture does"),
    "no square": (Small(order=range(15)), "the 15 tokens that attention mixes are no grid"),
    "not read": (Blind(), "the scores do not depend on the last attention"),
}


@pytest.mark.parametrize(("module", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_is_no_way_through_tokens(module, sentence):
    with pytest.raises(ValueError, match=rf"{sentence}.*; take gradcam$"):
        path_of(module)


def test_follows_the_small_net_that_the_refused_ones_spoil():
    assert path_of(Small()).read.tolist() == pytest.approx(16 * [1 / 16])


def test_rows_are_those_of_the_product_of_all_steps():
    generator, eye = torch.Generator().manual_seed(0), torch.eye(4)
    steps = [torch.rand(2, 4, 4, generator=generator) for _ in range(3)]
    read = torch.tensor([0.5, 0, 0.5, 0])
    path = AttentionPath(3 * (Link("", eye, eye),), read, torch.arange(4), 2, 2, ())
    expected = torch.einsum("i,bij,bjk,bkl->bl", read, *reversed(steps))
    assert_close(path.rows(steps), expected, rtol=1e-5, atol=0)


def test_rows_pass_by_a_token_that_joined_and_asked_alone():
    joined = Link("", torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 0], [1, 0], [0, 1]]))
    last = Link("", torch.tensor([[1.0, 0, 0]]), torch.eye(3))
    path = AttentionPath((joined, last), torch.ones(1), torch.arange(2), 1, 2, ())
    first, second = torch.tensor([[[0.5, 0.2, 0.3]]]), torch.tensor([[[0.4, 0.5, 0.1]]])
    assert_close(path.rows([first, second]), [[0.4 * 0.2 + 0.5, 0.4 * 0.3 + 0.1]], rtol=1e-6, atol=0)

"""How attention leads from the scores to the patches: which tokens each attention mixes, and where they lie.

Nothing is known of an architecture beforehand. A picture of noise, and four more in each of which one quadrant is
changed, show which tokens are patches, in which order, and which are constant before the first attention (class token,
registers); the gradient of the scores shows which tokens are read in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks

from xai_cli.classifiers.hooks import hooked
from xai_cli.classifiers.layers import at_least_float32, first_tensor, output_tensor, replaced
from xai_cli.classifiers.token_order import with_quadrants_changed
from xai_cli.operators.attention import Attention, AttentionMaps
from xai_cli.operators.mode import OperatorMode
from xai_cli.sentences import reason

_INSTEAD = "take gradcam"


@dataclass(frozen=True)
class Link:
    """One attention on the way from the scores to the patches.

    Attributes:
        layer: the name of the layer that calls it.
        residual: `(Q, K)`, one where a query is a token's own, else zero: what the token keeps of itself. All zero if
            the queries are no tokens, as in attention pooling.
        before: `(K, N)`, one where a token is one of the N of the attention before, else zero.
    """

    layer: str
    residual: Tensor
    before: Tensor


@dataclass(frozen=True)
class AttentionPath:
    """All attention of a transformer in order, with one grid of patches before the first.

    Attributes:
        read: `(Q,)`, the share of each query of the last attention in what the scores read, all equal or zero.
        patches: the places of the patches among the tokens, row by row.
        blocks: of each attention among the tokens the outermost layer that takes all of them to as many, and has no
            other attention; empty if there is not one for each.
        unread: why what comes after the blocks does not take the tokens of all of them as if they were so many
            pictures; empty if it does, or there are none.
        averages: true if every query gets an average of the values: all weights positive, their sum 1.
    """

    links: tuple[Link, ...]
    read: Tensor
    patches: Tensor
    height: int
    width: int
    blocks: tuple[str, ...]
    unread: str = ""
    averages: bool = True

    @property
    def told(self) -> str:
        """The layers, by the first and the last."""
        first, last = self.links[0].layer, self.links[-1].layer
        return first if len(self.links) == 1 else f"{first} to {last}, {len(self.links)} layers of attention"

    def rows(self, steps: Sequence[Tensor]) -> Tensor:
        """What the tokens that the scores read have of each token before the first attention, `(B, N)`: the row of the
        product of all `steps`, of which each `(B, Q, K)` tells what the queries of a link have of its tokens.
        """
        rows = self.read.to(steps[0].dtype).expand(len(steps[0]), -1)
        for link, step in zip(reversed(self.links), reversed(steps), strict=True):
            if link is self.links[-1]:
                rows = _product(rows, step)
            else:  # tokens that ask nothing stay what they are
                asks = link.residual.any(dim=0)
                rows = rows.where(~asks, 0) + _product(rows[:, asks], step)
            rows = rows @ link.before.to(rows.dtype)
        return rows

    def grid(self, tokens: Tensor) -> Tensor:
        """What `tokens` `(B, N)` say of the patches, `(B, H, W)`."""
        return tokens[:, self.patches].unflatten(1, (self.height, self.width))


def attended(module: nn.Module, inputs: Tensor, rules: AttentionMaps) -> Tensor:
    """Class scores `(B, K)`, at least float32, in a graph with all attention that `rules` has then met.

    The graph begins with `inputs` that require gradients, or with the first tensor inside that does.
    """
    watched = OperatorMode(module, rules, allow_unruled=True)
    # A checkpoint would run its part of the model again on the way back, where nobody watches.
    checkpoints = disable_saved_tensors_hooks("attention cannot be followed through checkpoints; switch them off")
    with torch.enable_grad(), checkpoints, watched:
        output = watched.finished(module(inputs))
    return at_least_float32(output_tensor(output))


def layer_scores(module: nn.Module, inputs: Tensor, blocks: tuple[str, ...], count: int) -> tuple[Tensor, list[Tensor]]:
    """Class scores `(count * B, K)` of the tokens after each of the last `count` blocks, as if the model ended there,
    and the attention on which they depend: that of each block alone, or that which pools the tokens of all.
    """
    rules, after = AttentionMaps(module, len(inputs)), list[Tensor]()

    def begin(tokens: Tensor) -> Tensor:
        # Each block has a graph of its own, so that its score sees it alone; the blocks before have none.
        return tokens.detach().requires_grad_()

    def cut(tokens: Tensor) -> Tensor:
        after.append(tokens)
        return begin(tokens)

    def of_all(tokens: Tensor) -> Tensor:
        rules.pictures *= count
        return torch.cat([*after, tokens])

    before, (*others, last) = blocks[:-count], blocks[-count:]
    makes = [*((block, begin) for block in before[-1:]), *((block, cut) for block in others), (last, of_all)]
    with ExitStack() as hooks:
        for block, make in makes:
            hooks.enter_context(replaced(module, block, make))
        logits = attended(module, inputs.detach().requires_grad_(not before), rules)
    weights = [attention.weights for attention in rules.met]
    return logits, weights[count:] or weights


def find_attention_path(module: nn.Module, example: Tensor) -> AttentionPath:
    """The way of attention through `module`, which is shown variants of `example` `(1, C, h, w)`.

    Raises ValueError if there is no such way: no attention, in windows or branches, or tokens that are merged.
    """
    inputs = with_quadrants_changed(example).requires_grad_()
    rules, alone = (AttentionMaps(module, pictures) for pictures in (len(inputs), 1))
    scores = attended(module, inputs, rules)
    with _stream(module) as stream:
        attended(module, inputs[:1].detach().requires_grad_(), alone)
    if not rules.met:
        raise ValueError(f"attention maps expect a model with attention among tokens, found none; {_INSTEAD}")
    _check_pictures(rules.met, alone.met)
    links = _links(rules.met)
    _check_stream(rules.met, links)
    moves = _moves(rules.met[0])
    patches = _moving(moves).nonzero()[:, 0]
    height, width = _grid(moves[:, patches], example.shape[-2] / example.shape[-1])
    read = _read(scores, rules.met[-1].out)
    averages = all(_are_averages(each.weights.detach()) for each in alone.met)
    blocks = _blocks(links, stream)
    return AttentionPath(links, read, patches, height, width, blocks, _unread(module, inputs[:2], blocks), averages)


def _check_pictures(attention: list[Attention], alone: list[Attention]) -> None:
    """Raises ValueError unless all attention works on whole pictures, each by itself."""
    for each, single in zip(attention, alone, strict=True):
        several, one = each.weights.detach(), single.weights.detach()
        whole = several.ndim == one.ndim == 4 and several.shape == (5, *one.shape[1:]) and len(one) == 1
        if not whole or (several[:1] - one).abs().max() > _noise(one) * one.abs().max():
            raise ValueError(
                f"attention in layer {each.layer!r} looks at windows or groups of channels, not at all tokens of a "
                f"picture; {_INSTEAD}"
            )


def _links(attention: list[Attention]) -> tuple[Link, ...]:
    """Raises ValueError if attention does not go on with the tokens of the one before."""
    links: list[Link] = []
    eye = cache(partial(torch.eye, device=attention[0].weights.device))  # one for all layers
    for each in attention:
        queries, keys = each.weights.shape[-2:]
        own, tokens = eye(keys), len(links[-1].before) if links else keys
        # Those that are dropped stand first, as class tokens do; those that join are still constant.
        before = own[:, _moving(_moves(each))] if keys > tokens else eye(tokens)[tokens - keys :]
        if keys != tokens or not links:
            joined = own[~before.any(1)]
        residual = own if queries == keys else joined if queries == len(joined) else own.new_zeros(queries, keys)
        if before.shape[1] != tokens or not (residual.any() or each is attention[-1]):
            raise ValueError(
                f"attention in layer {each.layer!r} does not go on with the {tokens} tokens before it, it has "
                f"{queries} queries and {keys} keys; {_INSTEAD}"
            )
        links.append(Link(each.layer, residual, before))
    return tuple(links)


def _check_stream(attention: list[Attention], links: tuple[Link, ...]) -> None:
    """Raises ValueError unless every token keeps to itself on its way from one attention to the next."""
    for first, second, link, following in zip(attention, attention[1:], links, links[1:], strict=False):
        # Which of the second's tokens each query of the first has become; two of them are enough to look at.
        ways = (following.before @ link.residual.T).nonzero().tolist()
        keeps = bool(ways) and all(
            _sources(second.values.select(-2, token), first.out) == [query] for token, query in (ways[0], ways[-1])
        )
        if not keeps:
            raise ValueError(
                f"between the attention in layers {first.layer!r} and {second.layer!r} tokens do not keep to "
                f"themselves, they are mixed, merged or in other branches; {_INSTEAD}"
            )


def _sources(value: Tensor, out: Tensor) -> list[int]:
    """The queries of an attention whose `out` `(B, H, Q, D)` reaches `value`."""
    (gradient,) = torch.autograd.grad(value, out, _mix(value), retain_graph=True, allow_unused=True)
    return [] if gradient is None else gradient.any(-1).flatten(0, 1).any(0).nonzero()[:, 0].tolist()


@contextmanager
def _stream(module: nn.Module) -> Iterator[dict[str, torch.Size]]:
    """While open, a pass fills the dict with the layers that give the shape `(B, N, K)` that they are given."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str, given: Any, output: Any) -> None:
        before, after = first_tensor(given), first_tensor(output)
        if before is not None and after is not None and before.shape == after.shape and after.ndim == 3:
            shapes[name] = after.shape

    handles = (
        layer.register_forward_hook(lambda _layer, given, output, name=name: note(name, given, output))
        for name, layer in module.named_modules()
    )
    with hooked(handles):
        yield shapes


def _blocks(links: tuple[Link, ...], stream: Mapping[str, torch.Size]) -> tuple[str, ...]:
    """The outermost layer of the `stream` around each attention among the tokens alone, if there is one for each."""
    blocks = []
    for link in links:
        parts = link.layer.split(".")
        around = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        alone = [name for name in around if sum(f"{other.layer}.".startswith(f"{name}.") for other in links) == 1]
        blocks += [name for name in alone if stream.get(name, ())[1:2] == link.residual.shape[1:]][:1]
    whole = sum(bool(link.residual.any()) for link in links)
    return tuple(blocks) if len(blocks) == whole and len({stream[name] for name in blocks}) == 1 else ()


def _unread(module: nn.Module, pictures: Tensor, blocks: tuple[str, ...]) -> str:
    """Why the tokens after all `blocks` cannot be read at once; empty if they can, or there are none."""
    if not blocks:
        return ""
    wanted = len(blocks) * len(pictures)
    try:
        rows = len(layer_scores(module, pictures, blocks, len(blocks))[0])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return reason(error)
    return "" if rows == wanted else f"it gives {rows} rows of scores for {wanted}"


def _moves(attention: Attention) -> Tensor:
    """How much each value moves with each quadrant of the picture, `(4, K)`."""
    values = attention.values.detach()
    return at_least_float32(values[1:] - values[:1]).abs().flatten(1, -3).sum((1, 3))


def _moving(moves: Tensor) -> Tensor:
    """True for each token that moves with the picture, `(K,)`."""
    return moves.amax(0) > _noise(moves) * moves.max()


def _grid(moves: Tensor, proportion: float) -> tuple[int, int]:
    """The height and width of the grid of patches that so move with the quadrants.

    Raises ValueError if they are no grid, or do not lie as the picture does.
    """
    count = moves.shape[1]
    height = max(round((count * proportion) ** 0.5), 1)
    width = count // height
    if min(height, width) > 1 and height * width == count and abs(height - width * proportion) < 1.5:
        rows, columns = (torch.arange(side).mul(2).div(side, rounding_mode="floor") for side in (height, width))
        quadrants = (2 * rows[:, None] + columns).flatten()
        by_quadrant = torch.stack([moves[:, quadrants == place].mean(1) for place in range(4)])
        # A quarter would be chance; a deep stem of convolutions spreads what it sees.
        if (by_quadrant.diagonal() > by_quadrant.sum(0) / 3).all():
            return height, width
    raise ValueError(f"the {count} tokens that attention mixes are no grid that lies as the picture does; {_INSTEAD}")


def _read(scores: Tensor, out: Tensor) -> Tensor:
    """The share `(Q,)` of each query of the last attention in what the scores read."""
    read = _sources(scores, out)
    if not read:
        raise ValueError(f"the scores do not depend on the last attention of the model; {_INSTEAD}")
    return torch.zeros(out.shape[-2], device=out.device).index_fill(0, torch.tensor(read).to(out.device), 1 / len(read))


def _are_averages(weights: Tensor) -> bool:
    return bool((weights >= 0).all() and ((weights.sum(-1) - 1).abs() < _noise(weights)).all())


def _product(rows: Tensor, step: Tensor) -> Tensor:
    # A product with a single row may be rounded otherwise for each picture, by where it lies in memory.
    return (rows[:, :, None] * step).sum(1)


def _mix(tensor: Tensor) -> Tensor:
    """Weights for a sum that no softmax makes constant and no last ReLU cuts off."""
    return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)


def _noise(tensor: Tensor) -> float:
    """A relative difference that rounding may make in the depth of a net."""
    return torch.finfo(tensor.dtype).eps ** 0.5

"""Each picture's own gradient of the parameters, from one forward and one backward pass of a whole batch.

Every call in which something that moves with the picture meets a parameter (or something made of parameters alone: a
standardised kernel, an expanded class token, a slice of a packed projection) runs as the model has it, and on the way
back gives each picture's gradient of that parameter: for linear layers, convolutions, norms and pointwise operators
from what went in and what came back, for all else by running the call again on the rows of one picture. What one
picture's uses of one parameter give is summed before anybody sees it. So nothing need be known of an architecture but
that its calls keep the rows of one picture together along their first axis, which the first batch shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from xai_cli.operators.compound import lstm, multi_head_attention
from xai_cli.operators.names import is_in_place, operator_name
from xai_cli.operators.one_picture import OnePicture
from xai_cli.operators.own_gradients import Call, Factors, Mixed, Whole, own_gradients
from xai_cli.operators.rules import NoRuleError, Rules, tensors_in

# They keep the pictures along another axis, or use a weight many times: said in calls of one step.
_COMPOUND: Mapping[str, Callable[..., Any]] = {
    "multi_head_attention_forward": multi_head_attention,
    "lstm": lstm,
}
# Of these modules a batch showed that they keep the pictures apart.
_KEPT_APART: WeakSet[nn.Module] = WeakSet()


class Gradients(Protocol):
    """Who is given the gradients; each picture's gradient of a parameter is in exactly one of the calls."""

    def factors(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Of each picture the gradient is `outputs^T inputs`, from `(B, T, I)` and `(B, T, O)`."""

    def whole(self, name: str, gradients: Tensor) -> None:
        """The gradients `(b, *shape)` of some pictures."""


@contextmanager
def forgetful(module: nn.Module) -> Iterator[None]:
    """While open, the caches in which some layers of timm keep what they made of parameters are as empty as at first.

    Else a bias made without a gradient, or of other weights, stands for its parameter for ever.
    """
    kept = [(vars(layer), key, value) for layer in module.modules() for key, value in _caches(layer)]
    for attributes, key, _ in kept:
        attributes[key] = {}
    try:
        yield
    finally:
        for attributes, key, value in kept:
            attributes[key] = value


class PerExample(TorchFunctionMode):
    """Each picture's own gradient of the `parameters` (as `named_parameters` names them), given to `gradients`.

    One use serves one batch of `rows` pictures, for as many ways back as are wanted, with the module in evaluation
    mode. Raises Mixed where pictures cannot be kept apart; what was given until then is worth nothing. The first batch
    of two or more that a module sees costs one way back more, which shows that they stay apart.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rows: int, gradients: Gradients) -> None:
        super().__init__()
        shared = {id(tensor): tensor.detach().requires_grad_() for tensor in parameters.values()}
        self._leaves = {name: shared[id(tensor)] for name, tensor in parameters.items()}
        self._names = {id(leaf): name for name, leaf in reversed(self._leaves.items())}
        self._rows = rows
        self._gradients = gradients
        self._uses: Counter[str] = Counter()
        self._held: dict[str, Tensor] = {}
        self._followed = self._trying = False

    def logits(self, module: nn.Module, inputs: Tensor) -> Any:
        """What the module gives for `inputs`, in a graph whose way back gives the gradients away."""
        own = dict(module.named_parameters())
        self._module, self._strangers = module, {id(parameter) for parameter in own.values()}
        tensors = {name: parameter.detach() for name, parameter in own.items()} | self._leaves
        # What moves with the picture is known by needing a gradient that no parameter gave it.
        self._root = torch.zeros((), device=inputs.device, requires_grad=True)
        self._input = inputs.detach() + self._root
        with torch.enable_grad(), forgetful(module), OnePicture(), self:
            return functional_call(module, tensors, (self._input,))

    def back(self, logits: Tensor, cotangent: Tensor) -> None:
        """One way back from the logits `(B, C)`, which keeps the graph for the next."""
        if not self._followed:
            self._check(logits)
            self._followed = True
        self._back(logits, cotangent)
        for name, gradients in self._held.items():
            self._gradients.whole(name, gradients)
        self._held = {}

    def _back(self, logits: Tensor, cotangent: Tensor) -> None:
        torch.autograd.backward(logits, cotangent, retain_graph=True, inputs=[self._root])

    def _check(self, logits: Tensor) -> None:
        """That no parameter reaches the logits unseen, and that what goes back to one picture reaches no other."""
        for leaf in _leaves_of(logits):
            if leaf is not self._root:
                name = self._names.get(id(leaf), "a tensor that needs a gradient")
                raise Mixed(f"{name} reaches the logits by a way that torch does not show")
        if any(node.name() == "CheckpointFunctionBackward" for node in _nodes_of(logits)):
            raise Mixed("a checkpoint hides its parameters from autograd; switch checkpointing off")
        if self._rows == 1 or self._module in _KEPT_APART:
            return
        one = torch.zeros_like(logits)
        one[0] = torch.arange(one[0].numel(), device=one.device).cos().view_as(one[0])
        self._trying = True
        self._back(logits, one)
        self._trying = False
        _KEPT_APART.add(self._module)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        if any(id(tensor) in self._strangers for tensor in tensors):
            raise Mixed(f"{operator_name(function)} is given a parameter that the module does not keep under its name")
        wanting = [tensor for tensor in tensors if tensor.requires_grad]
        made = {id(tensor): tensor for tensor in wanting if self._is_made(tensor)}
        if made and any(id(tensor) not in made for tensor in wanting) and torch.is_grad_enabled():
            out = self._mixed(function, args, kwargs, made)
        else:
            out = function(*args, **kwargs)
            if made:
                _note_made((args[:1], out))
        return out

    def _is_made(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or made of parameters alone."""
        return id(tensor) in self._names or (
            tensor.grad_fn is not None and getattr(tensor, "_made", None) is tensor.grad_fn
        )

    def _mixed(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], made: dict[int, Tensor]
    ) -> Any:
        name, in_place = operator_name(function), is_in_place(function, kwargs)
        if name in _COMPOUND:
            try:
                with self:
                    return _COMPOUND[name](Rules(), *args, **kwargs)
            except NoRuleError as error:
                raise Mixed(str(error)) from error
        if in_place and self._is_made(args[0]):
            raise Mixed(f"{name} writes what moves with the picture into what is made of parameters")
        kept = (args[0].clone(), *args[1:]) if in_place else args
        call = Call(name, function, kept, kwargs, made, self._rows, in_place)
        # Nobody asks for the gradient of the picture itself.
        found = call.arguments()
        first = found is not None and found["input"] is self._input
        still = {*made, id(self._input)} if first else set(made)
        out = call.repeated(lambda tensor: tensor.detach() if id(tensor) in still else tensor)
        if first:
            out = out + self._root
        if not any(tensor.requires_grad for tensor in tensors_in(out)):  # the picture gave no more than its shape
            return _note_made(function(*args, **kwargs))
        if not isinstance(out, Tensor) or out.ndim == 0 or len(out) % self._rows:
            raise call.mixed()
        versions = _versions(call)
        for tensor in made.values():
            self._uses.update(self._names[id(leaf)] for leaf in _leaves_of(tensor))
        out.register_hook(lambda gradient: self._give(call, versions, gradient))
        # Written into the place at last, for other views of that place must lead through the call, too.
        return args[0].copy_(out) if in_place else out

    def _give(self, call: Call, versions: list[int], gradient: Tensor) -> None:
        """Gives away what `gradient`, of the call's result, makes of the parameters in it."""
        if versions != _versions(call):
            raise Mixed(f"what {call.name} was given was changed in place afterwards")
        if self._trying and gradient.unflatten(0, (self._rows, -1))[1:].any():
            raise call.mixed()
        for own in own_gradients(call, gradient, compare=self._trying):
            if self._trying:
                continue
            if isinstance(own, Factors):
                self._give_factors(own)
            else:
                self._give_whole(own)

    def _give_factors(self, own: Factors) -> None:
        name = self._names.get(id(own.tensor))
        if name is not None and self._uses[name] == 1:
            self._gradients.factors(name, own.inputs, own.outputs)
            return
        for n, (inputs, outputs) in enumerate(zip(own.inputs, own.outputs, strict=True)):
            self._give_whole(Whole(own.tensor, n, (outputs.T @ inputs).reshape(1, *own.tensor.shape)))

    def _give_whole(self, own: Whole) -> None:
        """Gives away some pictures' gradients; those of what is made of parameters by way of its making."""
        if id(own.tensor) in self._names:
            self._add(own.tensor, own.first, own.gradients)
            return
        leaves = _leaves_of(own.tensor)
        for n, back in enumerate(own.gradients, start=own.first):
            for leaf, each in zip(
                leaves, torch.autograd.grad(own.tensor, leaves, back, retain_graph=True), strict=True
            ):
                self._add(leaf, n, each[None])

    def _add(self, leaf: Tensor, first: int, gradients: Tensor) -> None:
        name = self._names[id(leaf)]
        if self._uses[name] == 1:
            self._gradients.whole(name, gradients)
            return
        if name not in self._held:
            self._held[name] = leaf.new_zeros(self._rows, *leaf.shape)
        self._held[name][first : first + len(gradients)] += gradients


def _caches(layer: nn.Module) -> list[tuple[str, Any]]:
    return [
        (key, value)
        for key, value in vars(layer).items()
        if "cache" in key and type(value) is dict and all(isinstance(each, Tensor) for each in value.values())
    ]


def _versions(call: Call) -> list[int]:
    """How often what a call uses was changed in place."""
    return [tensor._version for tensor in tensors_in((call.args, call.kwargs))]


def _note_made(out: Any) -> Any:
    """The same, its tensors marked as made of parameters alone."""
    for tensor in tensors_in(out):
        tensor._made = tensor.grad_fn  # type: ignore[attr-defined]  # a note of ours on the tensor
    return out


def _leaves_of(tensor: Tensor) -> list[Tensor]:
    """The tensors of their own, such as parameters, that a tensor is made of."""
    if tensor.grad_fn is None:
        return [tensor]
    return [node.variable for node in _nodes_of(tensor) if hasattr(node, "variable")]


def _nodes_of(tensor: Tensor) -> set[Any]:
    """All of its graph."""
    found, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [each for each, _ in node.next_functions]
    return found

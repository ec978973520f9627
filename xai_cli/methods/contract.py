"""The contract between the engine and a method: what a method asks for, what it is given, what it returns.

A method is one file of this folder with one final frozen dataclass that inherits `Method`: its fields are the method's
options, its docstring is the help, its module docstring gives the formula and the paper. It holds no tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from xai_cli.options import Options

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from xai_cli.classifiers.classifier import Classifier

    Goal = tuple[Tensor, Tensor | None]

_Made = TypeVar("_Made")

CLASSLESS = "the map is the same for every class"
"""What to note of a map that is of no class."""


@dataclass(frozen=True)
class Needs:
    """What a method wants of the one plain pass that all methods share; if nothing, and the targets are given, there is
    none.

    Attributes:
        input_gradient: the gradient of the score with respect to the input.
        layers: names of layers whose activation, and gradient of the score with respect to it, are wanted.
        activations: names of layers whose activation alone is wanted.
        logits: the plain class scores.
    """

    input_gradient: bool = False
    layers: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    logits: bool = False

    def __or__(self, other: Needs) -> Needs:
        layers = tuple(dict.fromkeys(self.layers + other.layers))
        activations = tuple(dict.fromkeys(self.activations + other.activations))
        return Needs(self.input_gradient or other.input_gradient, layers, activations, self.logits or other.logits)

    def __bool__(self) -> bool:
        return self.logits or self.input_gradient or bool(self.captured)

    @property
    def captured(self) -> tuple[str, ...]:
        """The names of all layers that are looked at."""
        return tuple(dict.fromkeys(self.layers + self.activations))


@dataclass(frozen=True)
class Evidence:
    """What one batch showed: the input of every method.

    Attributes:
        classifier: the model, for methods that need passes of their own.
        inputs: `(B, C, h, w)` float32, preprocessed.
        targets: `(B,)` class indices that are explained.
        contrasts: `(B,)` class indices to explain against, or None; the score is then the difference of the two logits.
        logits: `(B, K)` float32; None if no method needs them and there was no target to choose.
        input_gradient: `(B, C, h, w)` gradient of the score, if some method needs it.
        activations, gradients: `{layer: tensor as the layer gave it, batch first}`, if some method needs them.
        everyone: `(targets, contrasts)` of every target that the pictures are explained for, each as above; those of
            this evidence are at `rank`.
        keys: the names of the pictures.
        sizes: width and height of the upright photos, if there are any.
        seeds: one number per picture, where all that is random about it begins: the same wherever it stands in a run.
        batch: pictures of a full batch, of which there may be fewer here.
        chunk: rows per pass that the memory budget allows.
    """

    classifier: Classifier
    inputs: Tensor
    targets: Tensor
    contrasts: Tensor | None
    logits: Tensor | None = None
    input_gradient: Tensor | None = None
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    everyone: tuple[Goal, ...] = ()
    rank: int = 0
    keys: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    seeds: tuple[int, ...] = ()
    batch: int = 1
    chunk: int = 8
    _shared: dict[Hashable, object] = field(default_factory=dict, repr=False)
    _common: dict[Hashable, object] = field(default_factory=dict, repr=False)

    def scores(self, logits: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The explained score `(N,)` of `logits` `(N, K)`, whose n-th row belongs to picture `rows[n]` of the batch."""
        return score_of(logits, self.targets[rows], None if self.contrasts is None else self.contrasts[rows])

    def chunks(self, samples: int, *, most: int | None = None) -> Iterator[tuple[Tensor, Tensor, int]]:
        """All pairs (picture, sample) packed into full chunks: `rows (n,)`, `samples (n,)` and how many are real.

        Every chunk has the same number of rows, the last filled up with copies of its last pair, because the same shape
        gives a picture the same bytes whatever its neighbours. If `samples` depends on these, `most` does not.
        """
        import torch

        pairs = torch.arange(len(self.inputs) * samples, device=self.inputs.device)
        yield from self.packed(pairs // samples, pairs % samples, self.rows_per_pass(most or samples))

    def packed(self, rows: Tensor, samples: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The pairs of `rows` and `samples`, both `(N,)`, in chunks of `size`, as `chunks` gives them."""
        import torch

        for some, their in zip(rows.split(size), samples.split(size), strict=True):
            missing = size - len(some)
            yield (
                torch.cat([some, some[-1:].expand(missing)]),
                torch.cat([their, their[-1:].expand(missing)]),
                len(some),
            )

    def rows_per_pass(self, samples: int) -> int:
        """How many rows a pass has when each picture has so many samples: no more than a full batch of them fills."""
        return min(self.chunk, max(self.batch, len(self.inputs)) * samples)

    def parts(self) -> Iterator[tuple[Tensor, int]]:
        """The pictures in full chunks, for methods that need one pass of their own: `rows (n,)`, how many are real."""
        for rows, _, real in self.chunks(1):
            yield rows, real

    def generator(self, row: int, sample: int = 0) -> Generator:
        """Where the randomness of one sample of a picture begins, on the CPU: the same whatever is computed beside it,
        and on whatever device.
        """
        import torch

        return torch.Generator().manual_seed((self.seeds[row] + 0x9E3779B97F4A7C15 * sample) % 2**63)

    def drawn(self, draw: Callable[..., Tensor], rows: Tensor, samples: Tensor) -> Tensor:
        """Random numbers `(n, C, h, w)` by `draw`, `torch.randn` say, of each picture and sample from its generator."""
        import torch

        shape, dtype = self.inputs.shape[1:], self.inputs.dtype
        pairs = zip(rows.tolist(), samples.tolist(), strict=True)
        drawn = [draw(shape, generator=self.generator(*pair), dtype=dtype) for pair in pairs]
        return torch.stack(drawn).to(self.inputs.device)

    def shared(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """What `make` gives, made once for all methods that ask for `key` on this batch and target."""
        return _made_once(self._shared, key, make)

    def common(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """As `shared`, but made once for all targets of the batch."""
        return _made_once(self._common, key, make)

    def score_gradient(self, points: Tensor, rows: Tensor) -> Tensor:
        """Gradient `(N, C, h, w)` of each point's score with respect to that point; `points` `(N, C, h, w)`."""
        return self.logits_and_gradient(points, rows)[1]

    def logits_and_gradient(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores `(N, K)` of `points` `(N, C, h, w)`, and what `score_gradient` gives."""
        import torch

        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = self.classifier.logits(points)
            (gradient,) = self.classifier.gradient(self.scores(logits, rows), [points])
        return logits.detach(), gradient


def score_of(logits: Tensor, targets: Tensor, contrasts: Tensor | None) -> Tensor:
    """The logit `(N,)` of each row's target, `logits` `(N, K)`, less that of its contrast, if there is one."""
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return chosen if contrasts is None else chosen - logits.gather(1, contrasts[:, None]).squeeze(1)


def _made_once(store: dict[Hashable, object], key: Hashable, make: Callable[[], _Made]) -> _Made:
    if key not in store:
        store[key] = make()
    return store[key]  # type: ignore[return-value]  # a key always stands for the same thing


@dataclass(frozen=True)
class Attribution:
    """What a method says of one batch.

    Attributes:
        relevance: `(B, h, w)` float32 at model-input resolution.
        signed: True if negative relevance means evidence against the target; else relevance is at least zero.
        checks: `{name: (B,) tensor}`, the invariants measured on each picture; a name means one thing everywhere.
        layer: the layer looked at, if the method looks at one.
        rule: the rule set that was applied, if the method chose one by the model.
        notes: what a reader of each map should know.
        segments: of each picture what is said of each of its segments, `{name: one value per segment}`, if the map has
            one value per segment.
    """

    relevance: Tensor
    signed: bool
    checks: dict[str, Tensor] = field(default_factory=dict)
    layer: str | None = None
    rule: str | None = None
    notes: tuple[str, ...] = ()
    segments: tuple[Mapping[str, list[Any]], ...] = ()


class Method(Options, ABC):
    """An attribution method: options as fields, `needs` and `attribute` as work."""

    panel: ClassVar[str] = "Method"
    name: ClassVar[str]
    """The subcommand and the folder of the method's output."""
    family: ClassVar[str]
    """The group of the help it stands in: gradient, cam, propagation, perturbation."""
    bounds: ClassVar[Mapping[str, float]] = {}
    """Bounds of checks that are others for this method than for the rest."""
    trial: ClassVar[Mapping[str, object]] = {}
    """Options with which a model is checked for all methods, where the method's own would take thousands of passes."""
    class_specific: ClassVar[bool] = True
    """False if the map is the same whatever class is explained."""
    by_gradient: ClassVar[bool] = True
    """False if the method differentiates nothing, so that the model may be any function."""

    @abstractmethod
    def needs(self, classifier: Classifier) -> Needs:
        """What the plain pass must keep for this method; may raise ValueError if the method does not fit the model."""

    @abstractmethod
    def attribute(self, evidence: Evidence) -> Attribution:
        """The map of every picture of the batch; must not depend on the other pictures of the batch."""

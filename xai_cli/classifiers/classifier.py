"""A classifier ready to be explained: frozen, folded, on its device, with its preprocessing and class names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from xai_cli.classifiers.attention_path import AttentionPath, find_attention_path
from xai_cli.classifiers.feature_layer import find_feature_layer
from xai_cli.classifiers.function import ScoreFunction
from xai_cli.classifiers.layers import FeatureLayer, at_least_float32, output_tensor, replaced
from xai_cli.images.decode import decode
from xai_cli.images.geometry import Preprocessing
from xai_cli.operators.folding import accelerated
from xai_cli.operators.mode import OperatorMode
from xai_cli.operators.one_picture import OnePicture
from xai_cli.operators.plan import Plan, plan_of
from xai_cli.operators.rules import Rules
from xai_cli.operators.strided import StridedInputGradient
from xai_cli.sentences import reason

_CHECKPOINTS = "rules cannot follow checkpoints; switch the model's checkpointing off"
_OTHERS = "take a method without rules (saliency, ig, gradcam)"
_FORWARD_ONLY = "take occlusion, rise or lime"
# A half-precision gradient of an input pixel is often below 2^-24 and would vanish; scaled scores keep it.
_HALF_SCALE = 4096.0


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model with all that is needed to explain it.

    Attributes:
        name: as the user gave it.
        module: in eval mode, parameters frozen, on `device` in `dtype`.
        preprocessing: how a picture becomes the module's input.
        labels: one name per class, by index.
        digest: SHA-256 of the weights before any folding.
        folded: `{layer: batch norm}` where a layer now gives the output of the norm that followed it.
        compile: whether the module is compiled, wherever no layer is looked at.
        notes: what a user should know about how the model was loaded.
        classes: how many scores it gave when it was loaded, if that is known.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    digest: str
    folded: Mapping[str, str] = field(default_factory=dict)
    compile: bool = False
    notes: tuple[str, ...] = ()
    classes: int | None = None
    _layers: dict[str | None, FeatureLayer] = field(default_factory=dict, repr=False)
    _converted: dict[torch.dtype, Classifier] = field(default_factory=dict, init=False, repr=False)

    def read(self, paths: Sequence[str | Path]) -> Tensor:
        """Inputs `(B, C, h, w)` of picture files, as `prepare` gives them. Raises `Broken` with the reason."""
        return self.prepare([self.preprocessing.apply(decode(Path(path)))[0] for path in paths])

    def prepare(self, pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> Tensor:
        """Normalised input `(B, C, h, w)` float32 on the device from `(B, h, w, C)` pixels already resized and
        cropped.
        """
        # Bytes travel to the device, floats are made there. The permuted view is channels_last, as conv nets like it.
        batch = torch.from_numpy(np.stack(list(pixels))).to(self.device).permute(0, 3, 1, 2)
        return (batch.float().div_(255) - self._mean) / self._std

    def pixels(self, inputs: Tensor) -> NDArray[np.uint8]:
        """The pixels `(B, h, w, C)` that `prepare` makes `inputs` of; values beyond black and white are cut off."""
        levels = (255 * (inputs * self._std + self._mean)).round().clamp(0, 255)
        return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def colour(self, name: str) -> Tensor:
        """The `(1, C, h, w)` input of one colour: black, white, or mean (zero after preprocessing)."""
        level = {"black": 0.0, "white": 1.0}.get(name)
        value = torch.zeros_like(self._mean) if level is None else (level - self._mean) / self._std
        height, width = self.preprocessing.size
        return value[None].expand(1, -1, height, width)

    def logits(self, inputs: Tensor) -> Tensor:
        """Class scores `(B, K)`, at least float32. Raises ValueError if the model returns something else."""
        if not self.compile:
            return self.eager_logits(inputs)
        if torch.is_grad_enabled():
            return self.checked(self.compiled(inputs.to(self.dtype)), len(inputs))
        # Whatever the caller's mode and layout, the module is given one kind of tensor: each kind is compiled anew.
        # Freezing is a matter of the tracer too, which does not see the options of `torch.compile`.
        with torch.inference_mode(False), torch.no_grad(), _freezing():
            inputs = inputs.to(self.dtype, copy=True, memory_format=torch.contiguous_format)
            return self.checked(self.frozen(inputs), len(inputs))

    def eager_logits(self, inputs: Tensor) -> Tensor:
        """As `logits`, but never through the compiled model, whose inner layers cannot be looked at."""
        # Only CPU kernels are slow on the way back to a picture, or wrong for a single one.
        differentiated = inputs.requires_grad and self.device.type == "cpu"
        single = OnePicture() if differentiated and len(inputs) == 1 else nullcontext()
        with StridedInputGradient() if differentiated else nullcontext(), single:
            output = self.module(inputs.to(self.dtype))
        return self.checked(output, len(inputs))

    def logits_with(self, inputs: Tensor, layer: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Class scores `(N, K)` as if `layer` gave `make(output)`, of N rows, instead of its output for `inputs`.

        N may be another number than that of the inputs if whatever the layer did not see has a row for each, or one
        row for all: then the layers before are computed once for many variants of what comes after.
        """
        with replaced(self.module, layer, make):
            output = self.module(inputs.to(self.dtype))
        return at_least_float32(output_tensor(output))

    def gradient(self, scores: Tensor, wanted: Sequence[Tensor], *, keep_graph: bool = False) -> tuple[Tensor, ...]:
        """Gradients of every row's score with respect to the `wanted` tensors, zero where the score does not use
        one.
        """
        if self.dtype == torch.float16:
            scaled = _differentiated(_HALF_SCALE * scores.sum(), wanted, keep_graph=True)
            if all(gradient.isfinite().all() for gradient in scaled):
                # In half precision the division would lose again what the scale has saved.
                return tuple(at_least_float32(gradient) / _HALF_SCALE for gradient in scaled)
        return _differentiated(scores.sum(), wanted, keep_graph=keep_graph)

    def ruled_logits(self, inputs: Tensor, rules: Rules, *, allow_unruled: bool = False) -> Tensor:
        """Class scores `(B, K)` whose gradient is what `rules` make of it. Raises UnruledError for an operator without
        rule.
        """
        faster = StridedInputGradient() if self.device.type == "cpu" else nullcontext()
        watched = OperatorMode(self.canonical, rules, allow_unruled=allow_unruled)
        # A checkpoint would run its part of the model again on the way back, where nobody watches.
        checkpoints = disable_saved_tensors_hooks(_CHECKPOINTS)
        with faster, checkpoints, torch.enable_grad(), watched:
            output = watched.finished(self.canonical(inputs.to(self.canonical_dtype)))
        return self.checked(output, len(inputs))

    @cached_property
    def compiled(self) -> Callable[[Tensor], Any]:
        """The compiled module, for passes that are differentiated."""
        return torch.compile(self.module, dynamic=False)

    @cached_property
    def frozen(self) -> Callable[[Tensor], Any]:
        """The compiled module with its weights packed for its operators, for forward passes alone."""
        return torch.compile(self.module, dynamic=False, options={"freezing": True})

    def in_dtype(self, dtype: torch.dtype) -> Classifier:
        """The same classifier computing in another type, made once. Raises ValueError for a function."""
        if dtype == self.dtype:
            return self
        if isinstance(self.module, ScoreFunction):
            raise ValueError(f"{self.name} gives scores alone, and cannot be made to compute in {dtype}; use float32")
        if dtype not in self._converted:
            module = copy.deepcopy(self.module).to(dtype)
            self._converted[dtype] = replace(self, module=module, dtype=dtype)
        return self._converted[dtype]

    @cached_property
    def differentiable(self) -> bool:
        """Whether a gradient comes back from the scores to the picture: of a module it is taken for granted, a function
        is tried on the example.
        """
        if not isinstance(self.module, ScoreFunction):
            return True
        inputs = self.example().requires_grad_()
        try:
            with torch.enable_grad():
                scores = self.eager_logits(inputs).sum()
            return scores.requires_grad and torch.autograd.grad(scores, inputs, allow_unused=True)[0] is not None
        except Exception:  # noqa: BLE001  # whatever a function does with such a tensor
            return False

    def check_differentiable(self) -> None:
        """Raises ValueError if no gradient comes back from the scores to the picture."""
        if not self.differentiable:
            raise ValueError(f"gradients are needed, and {self.name} gives scores alone; {_FORWARD_ONLY}")

    @cached_property
    def canonical(self) -> nn.Module:
        """The module as rules want it: at least float32, and with batch norm folded in, wherever it can be."""
        precise = self.dtype == self.canonical_dtype
        norms = any(isinstance(layer, _BatchNorm) for layer in self.module.modules())
        if precise and (self.folded or not norms):
            return self.module
        module = self.module if precise else copy.deepcopy(self.module).to(self.canonical_dtype)
        return accelerated(module, [probe.to(self.canonical_dtype) for probe in self.probes()], output_tensor)[0]

    @cached_property
    def plan(self) -> Plan:
        """Every operator of the model and its treatment. Raises ValueError if the model cannot be watched, has no
        gradient, or computes something else meanwhile.
        """
        self.check_differentiable()  # what fails where it is watched is then its having no gradient
        example = self.example().to(self.canonical_dtype)
        try:
            plan = plan_of(self.canonical, example)
            with torch.no_grad():
                plain = self.checked(self.canonical(example), len(example))
            watched = self.ruled_logits(example.requires_grad_(), Rules(), allow_unruled=True).detach()
        except Exception as error:
            raise ValueError(f"the operators of {self.name} cannot be watched ({reason(error)}); {_OTHERS}") from error
        if (watched - plain).abs().max() > 1e-3 * plain.abs().max():
            raise ValueError(
                f"{self.name} changes tensors in place through views of them, which rules cannot follow; {_OTHERS}"
            )
        return plan

    @cached_property
    def attention(self) -> AttentionPath:
        """The way of attention through the model. Raises ValueError if there is none over one grid of tokens."""
        if not self.plan.attends:
            raise ValueError("maps of attention expect a transformer, and this model has no attention; take gradcam")
        # In half precision a class token would not quite be the same for every picture.
        return find_attention_path(self.canonical, self.example().to(self.canonical_dtype))

    def feature_layer(self, name: str | None = None) -> FeatureLayer:
        """The layer called `name`, or the one a class activation map should look at.

        Raises:
            LookupError: no layer has that name, or none of the model's layers keeps a grid of positions.
            ValueError: the layer has no spatial extent, or its own output is no longer computed; or the model is a
                function.
        """
        if isinstance(self.module, ScoreFunction):
            raise ValueError(f"{self.name} gives scores alone and has no layers to look at; {_FORWARD_ONLY}")
        if name is not None and name in self.folded:
            raise ValueError(
                f"layer {name!r} has its batch norm folded in, so its own output is not computed; name the norm, "
                f"{self.folded[name]!r}, or give --no-fold"
            )
        if name not in self._layers:
            example = self.example().to(self.dtype)
            layer = find_feature_layer(self.module, example, name)
            if layer.name in self.folded:  # the norm comes after it, and often a rectifier inside the norm
                layer = find_feature_layer(self.module, example, self.folded[layer.name])
            self._layers[name] = layer
        return self._layers[name]

    def example(self) -> Tensor:
        """A fixed input `(1, C, h, w)` of mild noise, to probe what the model does with any input."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.preprocessing.channels, *self.preprocessing.size)
        return 0.5 * torch.randn(shape, generator=generator).to(self.device)

    def probes(self) -> tuple[Tensor, Tensor]:
        """Two inputs `(1, C, h, w)` that differ much, to find whether two modules compute the same."""
        return self.example(), self.colour("white") - 2 * self.example()

    def checked(self, output: Any, rows: int) -> Tensor:
        """The class scores `(rows, K)`, at least float32, of what the module returns. Raises ValueError if there are
        none, or of other classes than before.
        """
        logits = output_tensor(output)
        if logits.ndim != 2 or len(logits) != rows:
            raise ValueError(
                f"the model must return class scores of shape ({rows}, K), found {tuple(logits.shape)}; return (B, K), "
                "one row per picture"
            )
        if self.classes not in (None, logits.shape[1]):
            raise ValueError(f"the model gave {self.classes} scores when it was loaded, and now {logits.shape[1]}")
        return at_least_float32(logits)

    @property
    def canonical_dtype(self) -> torch.dtype:
        """The type that rules compute in: at least float32, because they divide by small numbers."""
        return torch.promote_types(self.dtype, torch.float32)

    @cached_property
    def _mean(self) -> Tensor:
        return torch.tensor(self.preprocessing.mean, device=self.device)[:, None, None]

    @cached_property
    def _std(self) -> Tensor:
        return torch.tensor(self.preprocessing.std, device=self.device)[:, None, None]


def _freezing() -> AbstractContextManager[None]:
    from torch._inductor import config  # nobody waits for it who compiles nothing

    return config.patch(freezing=True)


def _differentiated(total: Tensor, wanted: Sequence[Tensor], *, keep_graph: bool) -> tuple[Tensor, ...]:
    if not total.requires_grad:
        raise ValueError("no gradient comes back from the scores; take torch.no_grad and detach out of the model")
    return torch.autograd.grad(total, list(wanted), retain_graph=keep_graph, allow_unused=True, materialize_grads=True)

"""From the options of a model to a classifier: built, loaded, frozen, folded, on its device, and proven unchanged."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.classifiers import zoo
from xai_cli.classifiers.checkpoints import digest, load_checkpoint
from xai_cli.classifiers.classifier import Classifier
from xai_cli.classifiers.function import ScoreFunction, called, takes_pictures
from xai_cli.classifiers.labels import default_labels, read_labels
from xai_cli.classifiers.layers import output_tensor
from xai_cli.classifiers.options import DEFAULT_MODEL, ModelOptions
from xai_cli.images.geometry import Preprocessing
from xai_cli.operators.folding import accelerated
from xai_cli.operators.hidden import without_autograd_functions
from xai_cli.sentences import reason


def load_classifier(model: str | nn.Module | Callable[..., Any] = DEFAULT_MODEL, **options: Any) -> Classifier:
    """The classifier called `model` (or a module of yours, or a function from pictures `(B, C, h, w)` to scores
    `(B, K)`), with the options of `ModelOptions` as keywords.

    A module that is given is copied, never changed. Raises LookupError for an unknown name, ValueError or TypeError for
    an option or a model that does not fit; each says in one sentence what to do.
    """
    if not isinstance(model, str):
        return _finish_given(model, **options)
    chosen = ModelOptions(model=model, **options)
    # A checkpoint replaces every weight, so the library's own need not be had.
    pretrained = chosen.pretrained and chosen.checkpoint is None
    if not chosen.pretrained and zoo.is_code(model):
        raise ValueError(f"--random-weights cannot undo what {model} builds; let the function build it so")
    built = zoo.build(
        model, pretrained=pretrained, classes=chosen.num_classes, size=chosen.input_size, channels=chosen.in_chans
    )
    return _finish(built, chosen)


def _finish_given(model: nn.Module | Callable[..., Any], **options: Any) -> Classifier:
    """The classifier of a module or a function from Python."""
    is_module = isinstance(model, nn.Module)
    if not is_module and not takes_pictures(model):
        raise TypeError(
            "expected a model's name, a torch.nn.Module, or a function from pictures (B, C, h, w) to scores (B, K), "
            f"with one parameter without default, found {model!r}"
        )
    chosen = ModelOptions(model=getattr(model, "__name__", type(model).__name__), **options)
    if chosen.num_classes is not None or not chosen.pretrained:
        kind = "module" if is_module else "function"
        raise ValueError(f"a finished {kind} keeps its classes and its weights; build it as you want it")
    return _finish(zoo.adopt(_copied(model) if isinstance(model, nn.Module) else model, chosen.in_chans), chosen)


def _finish(built: zoo.Built, options: ModelOptions) -> Classifier:
    if isinstance(built.module, torch.jit.ScriptModule):
        raise ValueError(
            f"{options.model} is TorchScript, whose operations cannot be seen; give the module it was made of"
        )
    is_function = isinstance(built.module, ScoreFunction)
    if is_function:
        _check_function(options)
    if options.checkpoint is not None:
        load_checkpoint(built.module, options.checkpoint, ema=options.ema)
    if options.compile:  # it would tell of CUDA on a machine without a GPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    device, dtype = _device(options.device), getattr(torch, options.dtype)
    classifier = Classifier(
        name=options.model,
        module=without_autograd_functions(built.module.eval()).requires_grad_(False).to(device, torch.float32),
        preprocessing=_preprocessing(built.preprocessing, options),
        labels=(),
        device=device,
        dtype=torch.float32,
        digest=digest(built.module),
    )
    logits = _probe(classifier, options)
    module, folded = classifier.module, dict[str, str]()
    if options.fold and not is_function:
        module, folded = accelerated(module, classifier.probes(), output_tensor)
    return replace(
        classifier,
        module=module.to(dtype),
        labels=_labels(built, options, logits.shape[1]),
        dtype=dtype,
        folded=folded,
        compile=options.compile,
        # What is guessed of the preprocessing is no matter where it was given.
        notes=(*(() if options.mean and options.std else built.notes), *_suspicions(logits)),
        classes=logits.shape[1],
    )


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({reason(error)}), and a module of yours is never changed; "
            "build it in a function and name that with file.py:function"
        ) from error


def _check_function(options: ModelOptions) -> None:
    """Raises ValueError if what is asked for would need to look into a function."""
    asked = {
        "--checkpoint": options.checkpoint is not None,
        "--dtype": options.dtype != "float32",
        "--compile": options.compile,
    }
    refused = [flag for flag, is_asked in asked.items() if is_asked]
    if refused:
        raise ValueError(
            f"{' and '.join(refused)} cannot change {options.model}, which gives scores alone; let the function do that"
        )


def _probe(classifier: Classifier, options: ModelOptions) -> Tensor:
    """The logits `(1, K)` of the example. Raises ValueError if the model cannot take it or gives no scores."""
    example = classifier.example()
    try:
        with torch.no_grad():
            output = called(classifier.module, example)
    except Exception as error:
        told, shape = f"{type(error).__name__}: {reason(error)}", tuple(example.shape)
        if isinstance(classifier.module, ScoreFunction):
            raise ValueError(f"--model {classifier.name} fails with {told}, given pictures of shape {shape}") from error
        advice = (
            "give the size it expects with --input-size" if options.input_size is None else "leave out --input-size"
        )
        raise ValueError(f"{classifier.name} fails on an input of shape {shape} ({told}); {advice}") from error
    logits = classifier.checked(output, len(example))
    _check_scores(classifier, logits)
    return logits


def _check_scores(classifier: Classifier, logits: Tensor) -> None:
    is_function = isinstance(classifier.module, ScoreFunction)
    if getattr(classifier.module, "num_classes", None) == 0 or logits.shape[1] == 0:
        advice = "give --num-classes, and its weights with --checkpoint"
        raise ValueError(
            f"{classifier.name} gives no scores, found shape {tuple(logits.shape)}; return (B, K)"
            if is_function
            else f"{classifier.name} is a backbone without a head (0 classes); {advice}"
        )
    if not logits.isfinite().all():
        advice = "return finite ones" if is_function else "check its weights"
        raise ValueError(f"{classifier.name} gives scores that are NaN or infinite even for plain noise; {advice}")


def _suspicions(logits: Tensor) -> list[str]:
    if logits.shape[1] > 1 and bool((logits >= 0).all() and abs(logits.sum() - 1) < 1e-3):
        return ["the model seems to end in a softmax: maps explain probabilities, which move when other classes do"]
    return []


def _labels(built: zoo.Built, options: ModelOptions, classes: int) -> tuple[str, ...]:
    labels = read_labels(options.labels) if options.labels else built.labels
    if labels is None or (options.labels is None and len(labels) != classes):
        return default_labels(classes) if built.imagenet else tuple(map(str, range(classes)))
    if len(labels) != classes:
        raise ValueError(
            f"--labels expects {classes} class names for this model, found {len(labels)} in {options.labels}"
        )
    return labels


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it computes nothing that can be read")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here ({reason(error)}); try auto or cpu") from error
    return device


def _preprocessing(own: Preprocessing, options: ModelOptions) -> Preprocessing:
    """The model's own preprocessing with what the user overrides; another input size keeps the share that is
    cropped.
    """
    changes: dict[str, Any] = {}
    if options.input_size is not None:
        changes["size"] = options.input_size
        scales = [new / old for new, old in zip(options.input_size, own.size, strict=True)]
        if isinstance(own.resize, int) and scales[0] == scales[1]:
            changes["resize"] = round(own.resize * scales[0])
        elif own.resize is not None:
            sides = own.resize if isinstance(own.resize, tuple) else (own.resize, own.resize)
            changes["resize"] = tuple(round(side * scale) for side, scale in zip(sides, scales, strict=True))
    for name in ("resize", "crop_mode", "interpolation"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    for name in ("mean", "std"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)[: own.channels]
    return replace(own, **changes)

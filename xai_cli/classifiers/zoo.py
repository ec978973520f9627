"""A model's name becomes a module with its own preprocessing: timm, torchvision, the embedded nets, a user's own
code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xai_cli.classifiers.checkpoints import load_checkpoint
from xai_cli.classifiers.function import ScoreFunction, called, takes_pictures
from xai_cli.classifiers.names import model_names
from xai_cli.images.geometry import Preprocessing
from xai_cli.scenes import nets
from xai_cli.sentences import unknown

# What a net of unknown origin was most likely trained with; said aloud when used.
_IMAGENET = {
    "input_size": (3, 224, 224),
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_MODULE_NOTE = (
    "the model says nothing of its preprocessing: ImageNet's is used, override it with --input-size, --mean, --std"
)
_FUNCTION_NOTE = (
    "the function is given pictures normalised by ImageNet's mean and deviation: --mean 0 0 0 --std 1 1 1 gives it "
    "0..1, --input-size another size"
)
_FORMS = "timm/NAME, torchvision/NAME, builtin/NAME, package.module:callable or file.py:callable"


@dataclass(frozen=True)
class Built:
    """A module as its library makes it, what it expects of a picture, and its class names if it brings any.

    `imagenet` is False for a module of which nobody said that its classes are ImageNet's.
    """

    module: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    imagenet: bool = True


def build(
    name: str, *, pretrained: bool, classes: int | None, size: tuple[int, int] | None, channels: int | None = None
) -> Built:
    """The model called `name`, with its library's weights if `pretrained`, else with seeded random ones.

    What is None is as the library, or the user's own code, has it.

    Raises:
        LookupError: no such library, model, weights or callable; the sentence names the nearest.
        ValueError: the weights cannot be had, the number of channels cannot, or the callable gives no model.
    """
    library, _, rest = name.partition("/")
    # Random initialisation draws from the global generator; the same name must give the same net.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library in _LIBRARIES and rest:
            return _LIBRARIES[library](rest, pretrained, classes, size, channels)
        if is_code(name):
            return _from_code(name, classes, channels)
    known = [f"{library}/{model}" for library in _LIBRARIES for model in model_names(library)]
    near = unknown("model", name, known, hint="see 'xai models'")
    raise LookupError(f"--model expects {_FORMS}: {near}")


def is_code(name: str) -> bool:
    """True for `file.py:callable` and `package.module:callable`, the user's own code."""
    return name.partition("/")[0] not in _LIBRARIES and ":" in name


def adopt(model: nn.Module | Callable[..., Any], channels: int | None = None) -> Built:
    """A module of the user's own, or a function from pictures to scores, with the preprocessing in its `pretrained_cfg`
    (timm's form), or ImageNet's, said aloud.
    """
    known = hasattr(model, "pretrained_cfg")
    module, note = (model, _MODULE_NOTE) if isinstance(model, nn.Module) else (ScoreFunction(model), _FUNCTION_NOTE)
    return Built(module, _own_preprocessing(module, channels), notes=() if known else (note,), imagenet=known)


def _from_timm(
    name: str, pretrained: bool, classes: int | None, size: tuple[int, int] | None, channels: int | None
) -> Built:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise LookupError(unknown("timm model", name, timm.list_models(), hint="see 'xai models timm'"))
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise LookupError(unknown(f"weights of timm/{architecture}", tag, tags, hint=f"there are: {', '.join(tags)}"))
    arguments = _given(num_classes=classes, in_chans=channels)
    config: Any = timm.get_pretrained_cfg(name)
    _check_head(f"timm/{name}", pretrained, classes, config.num_classes)
    if size is not None and config.fixed_input_size:
        arguments["img_size"] = size
    with _weights_at_hand(f"timm/{name}", config.hf_hub_id or config.url, pretrained):
        module = timm.create_model(name, pretrained=pretrained, **arguments)
    return Built(module, _preprocessing(timm.data.resolve_model_data_config(module), channels))


def _from_torchvision(
    name: str, pretrained: bool, classes: int | None, size: tuple[int, int] | None, channels: int | None
) -> Built:
    import torchvision.models as zoo

    architecture, _, tag = name.partition(":")
    names = zoo.list_models(module=zoo)
    if architecture not in names:
        raise LookupError(unknown("torchvision model", architecture, names, hint="see 'xai models torchvision'"))
    choices = zoo.get_model_weights(architecture)
    if tag and tag not in choices.__members__:
        kinds = [*choices.__members__]
        raise LookupError(unknown(f"weights of torchvision/{architecture}", tag, kinds, hint=f"there are: {kinds}"))
    weights = choices[tag or "DEFAULT"]
    _check_channels(f"torchvision/{name}", channels)
    _check_head(f"torchvision/{name}", pretrained, classes, len(weights.meta["categories"]))
    with _weights_at_hand(f"torchvision/{name}", Path(weights.url).name, pretrained):
        module = zoo.get_model(architecture, weights=weights if pretrained else None, **_given(num_classes=classes))
    labels = tuple(weights.meta["categories"]) if pretrained else None
    return Built(module, Preprocessing.from_torchvision(weights.transforms()), labels)


def _from_package(
    name: str, pretrained: bool, classes: int | None, size: tuple[int, int] | None, channels: int | None
) -> Built:
    if name not in nets.NAMES:
        raise LookupError(unknown("embedded model", name, nets.NAMES, hint=f"there are: {', '.join(nets.NAMES)}"))
    _check_channels(f"builtin/{name}", channels)
    _check_head(f"builtin/{name}", pretrained, classes, len(nets.CLASSES))
    module: Any = nets.build(name)
    if pretrained:
        load_checkpoint(module, nets.weights_file(name))
    if classes in (None, len(nets.CLASSES)):
        return Built(module, _own_preprocessing(module, channels), nets.CLASSES)
    module.reset_classifier(classes)
    return Built(module, _own_preprocessing(module, channels))


def _check_head(name: str, pretrained: bool, classes: int | None, trained: int) -> None:
    if pretrained and classes not in (None, trained):
        raise ValueError(
            f"the weights of {name} are for {trained} classes, and a head for {classes} would be untrained; "
            "give its weights with --checkpoint, or --random-weights"
        )


def _check_channels(name: str, channels: int | None) -> None:
    if channels not in (None, 3):
        raise ValueError(
            f"--in-chans expects 3 for {name}, whose channels cannot be chosen, found {channels}; take a timm model, "
            "or build it in a function of yours"
        )


def _given(**arguments: int | None) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


_LIBRARIES: dict[str, Callable[[str, bool, int | None, tuple[int, int] | None, int | None], Built]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "builtin": _from_package,
}


def _from_code(name: str, classes: int | None, channels: int | None) -> Built:
    """Runs the user's own code, as `file.py:callable` or `package.module:callable` asks for."""
    place, _, attribute = name.rpartition(":")
    code = _imported(place)
    if not hasattr(code, attribute):
        known = [key for key in vars(code) if not key.startswith("_")]
        raise LookupError(unknown(f"callable in {place}", attribute, known))
    model = getattr(code, attribute)
    if not _is_model(model):
        arguments = _given(num_classes=classes, in_chans=channels if _takes(model, "in_chans") else None)
        model = _made(name, model, arguments)
    elif classes is not None:
        kind = "is a finished module" if isinstance(model, nn.Module) else "gives scores alone"
        raise ValueError(f"--num-classes cannot change {name}, which {kind}; name a function that builds the model")
    return adopt(model, channels)


def _made(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module | Callable[..., Any]:
    """The model that a user's function makes. Raises ValueError if it makes none."""
    # It may be meant to take pictures.
    hint = (
        f", called with {' and '.join(arguments) or 'no arguments'} to make a model; a function from pictures to "
        "scores needs one parameter without default"
    )
    with _user_code(name, hint):
        model = called(function, **arguments)
    if not _is_model(model):
        raise ValueError(
            f"--model {name} must be a torch.nn.Module or a function that returns one, or a function from pictures "
            f"(B, C, h, w) to scores (B, K), found {type(model)}{hint}"
        )
    return model


def _is_model(model: Any) -> bool:
    return isinstance(model, nn.Module) or takes_pictures(model)


def _takes(function: Any, argument: str) -> bool:
    with suppress(ValueError, TypeError):  # it is no function, or does not tell
        parameters = inspect.signature(function).parameters.values()
        return any(parameter.name == argument or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return False


def _imported(place: str) -> Any:
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise LookupError(f"--model expects a Python file, found nothing at {place}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        with _user_code(place):
            spec.loader.exec_module(module)
        return module
    # A script's own folder is what Python would search first; a console command's is not the user's.
    sys.path.insert(0, "")
    try:
        if importlib.util.find_spec(place) is None:
            raise ModuleNotFoundError(f"no module named {place!r}")
    except (ModuleNotFoundError, ValueError) as error:
        raise LookupError(f"--model expects {_FORMS}, and {place!r} cannot be imported: {error}") from error
    else:
        with _user_code(place):
            return importlib.import_module(place)
    finally:
        sys.path.remove("")


@contextmanager
def _user_code(name: str, hint: str = "") -> Iterator[None]:
    """Whatever a user's own file raises is told with its type, as a mistake of that file, and `hint`."""
    try:
        yield
    except SystemExit as error:
        raise ValueError(f"--model {name} ended the process (sys.exit {error.code})") from error
    except Exception as error:
        raise ValueError(f"--model {name} fails with {type(error).__name__}: {error}{hint}") from error


def _own_preprocessing(module: nn.Module, channels: int | None) -> Preprocessing:
    from timm.data import resolve_data_config

    return _preprocessing(resolve_data_config(pretrained_cfg=getattr(module, "pretrained_cfg", _IMAGENET)), channels)


def _preprocessing(config: Mapping[str, Any], channels: int | None) -> Preprocessing:
    """What `config`, timm's, says; for other channels than it was written for the mean of its numbers."""
    own, *size = config["input_size"]
    count = channels or own
    numbers = {
        name: values if len(values) == count else (sum(values) / len(values),) * count
        for name, values in ((name, config[name]) for name in ("mean", "std"))
    }
    return Preprocessing.from_timm({**config, **numbers, "input_size": (count, *size)})


@contextmanager
def _weights_at_hand(name: str, file: str | None, pretrained: bool) -> Iterator[None]:
    """Turns whatever a library raises when weights cannot be downloaded into one sentence with three ways on."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ValueError(
            f"the weights of {name} ({file}) are neither in the cache nor to be downloaded ({type(error).__name__}); "
            "copy them into the cache from a machine that has them, give a file with --checkpoint, "
            "or use --model builtin/scenes-cnn"
        ) from error

"""A model's architecture without its weights: what its tensors are called, and of which shape they are."""

from __future__ import annotations

from contextlib import suppress

import torch

from xai_cli.classifiers import zoo
from xai_cli.classifiers.function import ScoreFunction
from xai_cli.classifiers.layers import output_tensor
from xai_cli.classifiers.options import ModelOptions
from xai_cli.sentences import reason


def blueprint(options: ModelOptions) -> tuple[zoo.Built, int]:
    """What `options` name and how many scores it gives; a library's module on the meta device, if that works there.

    Raises LookupError for an unknown name, ValueError for a function, which has no weights, and for a model that fails.
    """
    # Whatever a user's file makes on that device, beside the model too, would have no numbers as long as we run.
    if not zoo.is_code(options.model):
        with suppress(Exception), torch.device("meta"):  # some compute with their weights; mistakes come again
            built = _built(options)
            return built, _scores(built)
    built = _built(options)
    if isinstance(built.module, ScoreFunction):
        raise ValueError(
            f"{options.model} gives scores alone and has no weights; name a function that builds the model"
        )
    return built, _scores(built)


def _built(options: ModelOptions) -> zoo.Built:
    return zoo.build(
        options.model, pretrained=False, classes=options.num_classes, size=options.input_size, channels=options.in_chans
    )


def _scores(built: zoo.Built) -> int:
    parameter = next(built.module.parameters(), torch.empty(0))
    size = (1, built.preprocessing.channels, *built.preprocessing.size)
    try:
        with torch.no_grad():
            return output_tensor(built.module.eval()(torch.zeros(size, device=parameter.device))).shape[-1]
    except Exception as error:
        raise ValueError(f"the model fails on an input of shape {size} ({reason(error)}); give --input-size") from error

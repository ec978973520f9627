"""A mistake is told in one sentence, with the nearest right name."""

from __future__ import annotations

import pytest

from xai_cli.sentences import reason, unknown

MODELS = ["resnet50", "resnet18", "wide_resnet50_2", "vgg16", "ViT_b_16"]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("resnet05", "; did you mean 'resnet50' or 'resnet18' or 'wide_resnet50_2'?"),
        ("VGG", "; did you mean 'vgg16'?"),
        ("vit-b-16", "; did you mean 'ViT_b_16'?"),
        # Too short to be near by edit distance, but part of the names.
        ("net", "; did you mean 'resnet50' or 'resnet18' or 'wide_resnet50_2'?"),
        ("zzz", "; see the list"),
        ("", "; see the list"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_ones(name: str, ending: str) -> None:
    sentence = unknown("model", name, iter(MODELS), hint="see the list")
    assert sentence == f"no model is named {name!r}{ending}"


def test_without_anything_near_and_without_hint_the_sentence_ends() -> None:
    assert unknown("layer", "zzz", []) == "no layer is named 'zzz'"


def test_a_name_cannot_write_to_the_terminal() -> None:
    assert "\x1b" not in unknown("layer", "\x1b[31m", MODELS)


def test_a_reason_is_one_line() -> None:
    assert reason(ValueError("\nfirst\nsecond")) == "first"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"

"""A mistake is told in one sentence, with the nearest right name."""

from __future__ import annotations

import pytest

from xai_cli.sentences import printable, reason, unknown

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


@pytest.mark.parametrize("text", ["cat.png", "", "Käse 猫 é̂ 100 %.png", r"C:\x1b", "[red]a[/b]", "a'b\"c"])
def test_what_commands_no_terminal_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07\0\x7f", r"\x1b[2J\x07\x00\x7f"),
        ("two\nlines\r\tend", r"two\nlines\r\tend"),
        ("\x85\x9b31m", r"\x85\x9b31m"),  # one sign that is an escape and a bracket, and a line end, in Latin-1
        ("\u2028\u2029", r"\u2028\u2029"),
        ("gnp.\u202etac \u2066\u200b", r"gnp.\u202etac \u2066\u200b"),
        ("caf\udce9", r"caf\udce9"),
        ("猫\x1b🐈", r"猫\x1b🐈"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_could_command_a_terminal_is_escaped_and_one_line_stays_one(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert len(printable(text).splitlines()) == 1

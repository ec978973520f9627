"""An option is declared once, and every door checks it by that declaration."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from xai_cli.classifiers.options import ModelOptions
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.methods import METHODS
from xai_cli.options import Option, Options, declarations, flag

LIVE = [ModelOptions, RunOptions, DrawingOptions, InputOptions, *METHODS.values()]


@dataclass(frozen=True)
class Every(Options):
    """One option of each type that can be declared."""

    whole: Annotated[int, Option("A whole number.", min=1)] = 3
    share: Annotated[float, Option("A share.", min=0, max=1)] = 0.5
    free: Annotated[float, Option("Any number.", max=10)] = 0.0
    yes: Annotated[bool, Option("A switch.")] = False
    word: Annotated[Literal["red", "blue"], Option("A word.")] = "red"
    maybe: Annotated[Literal["red", "blue"] | None, Option("A word or none.")] = None
    text: Annotated[str, Option("A text.")] = "a"
    path: Annotated[Path | None, Option("A path.")] = None
    size: Annotated[tuple[int, int] | None, Option("Two numbers.", min=1)] = None
    names: Annotated[list[str], Option("Names.")] = ()  # type: ignore[assignment]


@pytest.mark.parametrize("options", LIVE, ids=lambda options: options.__name__)
def test_every_option_says_what_it_does_and_its_default_is_allowed(options: type[Options]) -> None:
    for name, declared in declarations(options).items():
        assert declared.option.help.endswith("."), name
        assert declared.option.short is None or len(declared.option.short) == 1, name
    row = options().as_row()
    assert list(row) == list(declarations(options))
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_names_of_options_are_unique_within_a_command() -> None:
    for method in METHODS.values():
        names = [name for part in (method, *LIVE[:4]) for name in declarations(part)]
        assert len(names) == len(set(names)), method.name


WRONG_TYPES = [
    ("whole", 2.5, "--whole expects a whole number, found 2.5"),
    ("whole", "3", "--whole expects a whole number, found '3'"),
    ("whole", True, "--whole expects a whole number, found True"),
    ("whole", None, "--whole expects a whole number, found None"),
    ("share", "0.5", "--share expects a number, found '0.5'"),
    ("share", False, "--share expects a number, found False"),
    ("yes", 1, "--yes expects true or false, found 1"),
    ("text", ["a"], r"--text expects a text, found \['a'\]"),
    ("text", False, "--text expects a text, found False"),
    ("path", 3, "--path expects a path, found 3"),
    ("size", [1], r"--size expects 2 times a whole number, found \[1\]"),
    ("size", (1, 2.0), r"--size expects 2 times a whole number, found \(1, 2.0\)"),
    ("size", 7, "--size expects 2 times a whole number, found 7"),
    ("names", True, "--names expects a list of a text, found True"),
    ("names", [True], r"--names expects a list of a text, found \[True\]"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG_TYPES)
def test_another_type_is_refused(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        Every(**{name: value})


def test_one_value_is_a_list_of_one() -> None:
    assert Every(names="ab").names == ["ab"]  # type: ignore[arg-type]  # as YAML would give it


OUT_OF_RANGE = [
    ("whole", 0, "--whole expects at least 1, found 0"),
    ("share", 1.01, "--share expects 0 to 1, found 1.01"),
    ("share", -0.1, "--share expects 0 to 1, found -0.1"),
    ("share", float("nan"), "--share expects 0 to 1, found nan"),
    ("free", float("nan"), "--free expects at most 10, found nan"),
    ("free", float("inf"), "--free expects at most 10, found inf"),
    ("size", (4, 0), "--size expects at least 1, found 0"),
    ("word", "green", "--word expects one of red, blue, found 'green'"),
    ("maybe", "green", "--maybe expects one of red, blue, found 'green'"),
    ("word", ["red"], r"--word expects one of red, blue, found \['red'\]"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), OUT_OF_RANGE)
def test_a_value_out_of_its_range_is_refused(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Every(**{name: value})
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        replace(Every(), **{name: value})


def test_the_ends_of_a_range_belong_to_it() -> None:
    assert Every(whole=1, share=0, free=10, size=(1, 1)) != Every(whole=1, share=1, free=10, size=(1, 1))


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        Every(stepz=3)  # type: ignore[call-arg]


def test_a_value_is_kept_in_the_declared_type() -> None:
    """YAML has lists, texts and whole numbers where Python has tuples, paths and floats."""
    loose = Every(share=1, text=281, path="a/b", size=[2, 3], names=("x", "y"))  # type: ignore[arg-type]
    exact = Every(share=1.0, text="281", path=Path("a/b"), size=(2, 3), names=["x", "y"])
    assert loose == exact
    assert (type(loose.share), type(loose.size), type(loose.names)) == (float, tuple, list)


def test_the_row_of_a_manifest_holds_every_option_in_order() -> None:
    row = Every(path=Path("a/b"), size=(2, 3)).as_row()
    assert list(row.items()) == [
        ("whole", 3), ("share", 0.5), ("free", 0.0), ("yes", False), ("word", "red"), ("maybe", None), ("text", "a"),
        ("path", "a/b"), ("size", [2, 3]), ("names", []),
    ]  # fmt: skip


def test_a_flag_is_the_field_with_dashes() -> None:
    assert flag("batch_size") == "--batch-size"


def test_a_field_without_declaration_is_our_mistake() -> None:
    @dataclass(frozen=True)
    class Bare(Options):
        steps: int = 3

    with pytest.raises(AssertionError, match=r"Bare\.steps has no Option"):
        Bare()

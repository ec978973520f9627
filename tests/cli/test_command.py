"""One declaration, three doors: a flag, a key of a YAML file and a keyword build the same object and refuse alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
import yaml as yaml_library
from helpers import unboxed
from typer.testing import CliRunner

from xai_cli.cli.command import add_command
from xai_cli.options import Option, Options, declarations, flag


@dataclass(frozen=True)
class Paint(Options):
    """Stands for a method."""

    panel: ClassVar[str] = "Paint"

    coats: Annotated[int, Option("How many coats.", min=1, max=9)] = 2
    thinner: Annotated[float, Option("Share of thinner.", min=0, max=1)] = 0.5
    colour: Annotated[Literal["red", "blue"], Option("Which colour.")] = "red"
    drying: Annotated[bool, Option("Wait between coats.", negative="wet")] = True


@dataclass(frozen=True)
class Common(Options):
    """Stands for what all commands share."""

    wall_size: Annotated[tuple[int, int] | None, Option("Height and width.", min=1)] = None
    bucket: Annotated[Path, Option("Where the paint is.", short="b")] = Path("bucket")
    room: Annotated[str, Option("Which room.")] = "hall"


SECTIONS: dict[str, type[Options]] = {"paint": Paint, "plain": Common}
FILES = Parameter(
    "walls", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, typer.Argument()]
)


class Refused(Exception):  # noqa: N818
    """The command ended with a usage error, which this holds."""


Built = list[Any]
Call = Callable[..., Built]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Runs a command of a small app; returns what it built, the walls and the sections, or raises its sentence."""

    def called(*arguments: str, yaml: str | None = None) -> Built:
        built: Built = []

        def run(context: typer.Context, *parts: Options, walls: list[str] | None) -> None:
            built.extend([*parts, walls, context.meta.get("sections", {})])

        app = typer.Typer()
        common: Any = {"extra": (FILES,), "sections": SECTIONS, "help": "Paints.", "panel": "Commands"}
        add_command(app, "paint", run, (Paint, Common), **common)
        add_command(app, "all", run, (Common,), **common)
        config = []
        if yaml is not None:
            (tmp_path / "c.yaml").write_text(yaml, encoding="utf-8")
            config = ["--config", str(tmp_path / "c.yaml")]
        result = CliRunner().invoke(app, [*arguments, *config])
        if result.exit_code == 0:
            return built
        assert isinstance(result.exception, SystemExit), result.exception
        assert (result.exit_code, built, result.stdout) == (2, [], "")
        raise Refused(unboxed(result.stderr).replace(f"{tmp_path}/", ""))

    return called


DOORS = [
    (["--coats", "3"], "coats: 3", {"coats": 3}),
    (["--thinner", "1"], "thinner: 1", {"thinner": 1}),
    (["--colour", "blue"], "colour: blue", {"colour": "blue"}),
    (["--wet"], "drying: false", {"drying": False}),
    (["--drying"], "drying: yes", {"drying": True}),
    (["--wall-size", "4", "5"], "wall-size: [4, 5]", {"wall_size": (4, 5)}),
    (["--wall-size", "4", "5"], "wall_size: [4, 5]", {"wall_size": (4, 5)}),
    (["-b", "x/y"], "bucket: x/y", {"bucket": Path("x/y")}),
    (["--room", "7"], "room: 7", {"room": "7"}),
]


@pytest.mark.parametrize(("flags", "yaml", "keywords"), DOORS)
def test_flag_key_and_keyword_build_the_same(call: Call, flags: list[str], yaml: str, keywords: dict[str, Any]) -> None:
    expected = [
        part(**{name: value for name, value in keywords.items() if name in declarations(part)})
        for part in (Paint, Common)
    ]
    assert call("paint", *flags)[:2] == call("paint", yaml=yaml)[:2] == expected
    if set(keywords) <= set(declarations(Paint)):
        assert call("paint", yaml=f"paint: {{{yaml}}}")[0] == expected[0]


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(call: Call) -> None:
    yaml = "coats: 3\nroom: attic\npaint:\n  thinner: 0.25\n"
    assert call("paint", yaml=yaml)[:2] == [Paint(coats=3, thinner=0.25), Common(room="attic")]
    assert call("paint", "--coats", "4", yaml=yaml)[:2] == [Paint(coats=4, thinner=0.25), Common(room="attic")]
    # Where both places of a file speak, the nearer one counts.
    assert call("paint", yaml="coats: 3\npaint: {coats: 5}")[0] == Paint(coats=5)
    assert call("paint", "--drying", yaml="drying: false")[0] == Paint()
    assert call("paint", yaml="")[:2] == call("paint", yaml="paint:\n")[:2] == call("paint")[:2] == [Paint(), Common()]


def test_sections_of_other_commands_wait(call: Call) -> None:
    yaml = "paint: {coats: 5}\nplain: {wall-size: [1, 2]}"
    assert call("all", yaml=yaml)[2] == {"paint": {"coats": 5}, "plain": {"wall_size": [1, 2]}}
    assert call("paint", yaml=yaml)[3] == {"plain": {"wall_size": [1, 2]}}


def test_what_can_be_given_several_times_may_be_one(call: Call) -> None:
    assert call("all", yaml="walls: north")[1] == call("all", yaml="walls: [north]")[1] == ["north"]
    assert call("all", "south", yaml="walls: [north, east]")[1] == ["south"]


REFUSED = [
    ("coats: 0", "--coats expects 1 to 9, found 0"),
    ("thinner: .nan", "--thinner expects 0 to 1, found nan"),
    ("colour: green", "--colour expects one of red, blue, found 'green'"),
    ("coats: '3'", "--coats expects a whole number, found '3'"),
    ("coats: true", "--coats expects a whole number, found True"),
    ("coats: 2.5", "--coats expects a whole number, found 2.5"),
    ("coats:", "--coats expects a whole number, found None"),
    ("drying: 1", "--drying expects true or false, found 1"),
]


@pytest.mark.parametrize(("yaml", "sentence"), REFUSED)
def test_a_file_refuses_what_python_refuses(call: Call, yaml: str, sentence: str) -> None:
    """At its top, in the command's own section, and in a section that the command does not use."""
    name, value = next(iter(yaml_library.safe_load(yaml).items()))
    with pytest.raises((TypeError, ValueError)) as python:
        Paint(**{name: value})
    assert str(python.value) == sentence
    for command, text in (("paint", yaml), ("paint", f"paint: {{{yaml}}}"), ("all", f"paint: {{{yaml}}}")):
        with pytest.raises(Refused, match=f"Invalid value for '--config': {sentence}"):
            call(command, yaml=text)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--coats", "0"], "--coats expects 1 to 9, found 0"),
        (["--coats", "10"], "--coats expects 1 to 9, found 10"),
        (["--thinner", "nan"], "--thinner expects 0 to 1, found nan"),
        (["--wall-size", "1", "0"], "--wall-size expects at least 1, found 0"),
        # The next ones are Typer's own words.
        (["--coats", "x"], "Invalid value for '--coats': .*valid integer"),
        (["--coats", "2.5"], "Invalid value for '--coats': .*valid integer"),
        (["--colour", "green"], "Invalid value for '--colour': 'green' is not one of 'red', 'blue'"),
        (["--wall-size", "1"], "'--wall-size' requires 2 arguments"),
        (["--coat", "3"], "No such option: --coat .*--coats"),
    ],
)
def test_a_flag_refuses_too(call: Call, flags: list[str], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        call("paint", *flags)


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("coat: 3", "in c.yaml: no option is named 'coat'; did you mean 'coats'?"),
        ("wall: 3", "in c.yaml: no option is named 'wall'; did you mean 'walls' or 'wall-size'?"),
        ("pain: {coats: 3}", "in c.yaml: no option is named 'pain'; did you mean 'plain' or 'paint'"),
        ("paint: {coat: 3}", "in c.yaml: no option of paint is named 'coat'; did you mean 'coats'?"),
        ("paint: {room: attic}", "in c.yaml: no option of paint is named 'room'; --help lists them all"),
        ("config: other.yaml", "in c.yaml: no option is named 'config'; --help lists them all"),
        ("1: 2", "in c.yaml: no option is named '1'; --help lists them all"),
        ("paint: 3", "in c.yaml: paint must hold options as 'name: value', found 3"),
        ("plain: [1]", "in c.yaml: plain must hold options as 'name: value', found [1]"),
        ("- coats", "c.yaml must hold options as 'name: value', found list"),
        ("coats", "c.yaml must hold options as 'name: value', found str"),
        ("coats: [", "c.yaml is not a readable YAML file: while parsing a flow node"),
        ("!!python/object/apply:os.getcwd []", "c.yaml is not a readable YAML file: could not determine a constructor"),
    ],
)
def test_a_file_with_anything_else_is_refused(call: Call, yaml: str, sentence: str) -> None:
    with pytest.raises(Refused) as refusal:
        call("paint", yaml=yaml)
    assert sentence in str(refusal.value)


def test_the_options_of_a_section_are_no_options_of_the_command(call: Call) -> None:
    with pytest.raises(Refused, match="no option is named 'coats'"):
        call("all", yaml="coats: 3")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_is_none_is_refused(call: Call, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "other.yaml").write_bytes(content)
    with pytest.raises(Refused, match=r"other.yaml is not a readable YAML file: .+"):
        call("paint", "--config", str(tmp_path / "other.yaml"))


def test_help_shows_every_flag_with_its_help_and_default(tmp_path: Path) -> None:
    app = typer.Typer()
    add_command(app, "paint", print, (Paint, Common), sections={}, help="Paints.", panel="Commands")
    shown = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    for part in (Paint, Common):
        for name, declared in declarations(part).items():
            assert flag(name) in shown
            assert declared.option.help in shown
    assert "--drying --wet" in shown
    assert "-b" in shown
    assert "[default: 0.5]" in shown

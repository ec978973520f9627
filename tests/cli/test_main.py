"""The command `xai` itself: its lists, its help, its version, and how it ends when nobody reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import run_xai

from xai_cli.methods import METHODS
from xai_cli.options import declarations, flag

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_methods_are_listed_with_family_and_summary() -> None:
    rows = [line.split("\t") for line in run_xai("methods").paths]
    assert [row[0] for row in rows] == sorted(METHODS)
    for name, family, summary in rows:
        assert family == METHODS[name].family
        assert len(summary) > 20


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_command_with_its_options(name: str) -> None:
    answer = run_xai(name, "--help")
    shown = " ".join(answer.paths)
    assert answer.code == 0
    for field in declarations(METHODS[name]):
        assert flag(field) in shown
    for shared in ("--model", "--target", "--out", "-o", "--render", "--files-from", "-0", "--config"):
        assert shared in shown


def test_help_shows_every_command() -> None:
    shown = " ".join(run_xai("--help").paths)
    assert all(f" {name} " in shown for name in ("explain", "methods", "models", *METHODS))
    assert run_xai("-h").paths == run_xai("--help").paths


def test_without_arguments_the_help_is_shown() -> None:
    answer = run_xai()
    assert answer.code == 2
    assert "Explain image classifiers" in " ".join(answer.paths)


def test_the_version_is_that_of_the_package() -> None:
    assert run_xai("--version").paths == [f"xai {version('xai-cli')}"]


def test_models_are_listed_as_model_takes_them() -> None:
    assert run_xai("models", "builtin").paths == ["builtin/scenes-cnn", "builtin/scenes-vit"]
    assert run_xai("models", "builtin", "*vit").paths == ["builtin/scenes-vit"]
    assert run_xai("models", "torchvision", "resnet1*").paths == ["torchvision/resnet101", "torchvision/resnet152",
                                                                  "torchvision/resnet18"]  # fmt: skip
    assert "timm/resnet50" in run_xai("models", "timm", "resnet5*").paths


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explian"], "No such command 'explian'. Did you mean 'explain'?"),
        (["deeplfit"], "No such command 'deeplfit'. Did you mean 'deeplift'?"),
        (["models", "keras"], "'keras' is not one of 'builtin', 'timm', 'torchvision'"),
        (["ig", "--stepss", "3"], "No such option: --stepss"),
    ],
)
def test_an_unknown_word_is_told_with_the_nearest(arguments: list[str], sentence: str) -> None:
    answer = run_xai(*arguments)
    assert (answer.code, answer.paths) == (2, [])
    assert sentence in answer.said


def test_a_reader_that_has_gone_ends_the_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "xai_cli", "methods"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_every_preset_is_explained_and_runs(preset: Path, net: str, pictures: Path, tmp_path: Path) -> None:
    assert preset.read_text(encoding="utf-8").startswith("# ")
    wanted: dict[str, Any] = yaml.safe_load(preset.read_text(encoding="utf-8"))
    answer = run_xai("explain", pictures / "a.png", "--config", preset, "--model", net, "-o", tmp_path / "out")
    # A strict preset may find a map wanting, and then says which.
    assert answer.code == (3 if wanted.get("strict") and "completeness_gap" in answer.said else 0), answer.said
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert list(run["methods"]) == wanted.pop("method")
    for key, value in wanted.items():
        where, values = (run["methods"].get(key, {}), value) if key in METHODS else (run["options"], {key: value})
        for name, each in values.items():
            assert where[name.replace("-", "_")] == each, (key, name)


def test_there_are_presets() -> None:
    assert {"quick", "audit", "paper"} <= {preset.stem for preset in PRESETS}


LOUD = """
import os, sys
import xai_cli.cli.main as command_line

summary = command_line.summary
command_line.summary = lambda method: (os.write(1, b"a library in C"), summary(method))[1]
sys.argv[1:] = ["methods"]
command_line.main()
"""


def test_standard_output_is_ours_alone_whoever_writes_to_its_descriptor() -> None:
    done = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, check=True)
    assert "a library in C" in done.stderr
    assert "a library in C" not in done.stdout
    assert done.stdout.startswith(f"{min(METHODS)}\t")


@pytest.mark.parametrize(("stdout", "code", "said"), [(">&-", 0, ""), ("> /dev/full", 5, "standard output cannot be")])
def test_a_standard_output_that_takes_nothing_is_no_traceback(stdout: str, code: int, said: str) -> None:
    command = f"{sys.executable} -m xai_cli methods {stdout}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == (1 if said else 0)


def test_each_path_leaves_at_once_and_not_when_the_run_ends() -> None:
    code = "import os; from xai_cli.cli import main; print('a path', file=main._kept_stdout()); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a path\n"

"""Shells complete names at once: read from the libraries' files, without importing them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xai_cli.classifiers.names import LIBRARIES, complete_model, model_names
from xai_cli.cli.completion import complete_method
from xai_cli.cli.main import app
from xai_cli.methods import METHODS


def bash(line: str) -> list[str]:
    words = line.split(" ")
    place = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    answer = CliRunner().invoke(app, prog_name="xai", env={"_XAI_COMPLETE": "complete_bash", **place})
    assert answer.exit_code == 0
    return answer.stdout.split()


def answer_of(shell: str, line: str) -> str:
    place = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return CliRunner().invoke(app, prog_name="xai", env={"_XAI_COMPLETE": f"complete_{shell}", **place}).stdout


def test_names_are_those_that_the_libraries_list() -> None:
    import timm
    import torchvision

    from xai_cli.scenes import nets

    assert model_names("timm") == timm.list_models()
    assert model_names("torchvision") == torchvision.models.list_models(module=torchvision.models)
    assert model_names("builtin") == sorted(nets.NAMES)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("xai expl", ["explain"]),
        ("xai explain --mo", ["--model"]),
        ("xai explain -m ", list(METHODS)),
        ("xai explain --method grad", ["gradcam", "gradcam++", "gradient-rollout", "gradient-x-input"]),
        ("xai explain --model b", ["builtin/scenes-cnn", "builtin/scenes-vit"]),
        ("xai ig --model torchvision/resnet1", [f"torchvision/resnet1{end}" for end in ("01", "52", "8")]),
        ("xai explain --model timm/resnet3", [f"timm/resnet3{end}" for end in ("2ts", "3ts", "4", "4d")]),
        ("xai explain --target ", ["predicted", "label", "top:"]),
        ("xai explain --target to", ["top:"]),
        # The shell then completes names of files itself.
        ("xai explain --model ./mo", []),
        ("xai explain pict", []),
    ],
)
def test_words_are_completed(line: str, words: list[str]) -> None:
    assert bash(line) == words


def test_other_shells_are_told_what_a_method_is() -> None:
    assert answer_of("fish", "xai explain -m sal") == (
        "saliency\tAbsolute gradient of the score, largest over the colour...\n"
    )
    assert answer_of("zsh", "xai explain -m ") == "_arguments '*: :((" + "\n".join(
        f'"{name}":"{help}"'.replace("'", "''") for name, help in complete_method("")
    ) + "))'\n"  # fmt: skip
    assert answer_of("zsh", "xai explain --target t") == "_arguments '*: :((\"top\\\\:\"))'\n"


def test_the_help_of_a_method_stays_one_line() -> None:
    assert len(answer_of("fish", "xai explain -m ").splitlines()) == len(METHODS)


def test_only_libraries_that_can_be_meant_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("xai_cli.classifiers.names.model_names", lambda library: read.append(library) or ["net"])
    assert list(complete_model("t")) == ["timm/net", "torchvision/net"]
    assert list(complete_model("timm/n")) == ["timm/net"]
    assert list(complete_model("timmy")) == list(complete_model("./net.py:make")) == []
    assert list(complete_model("")) == [f"{library}/net" for library in LIBRARIES]
    assert read == ["timm", "torchvision", "timm", *LIBRARIES]


def test_a_name_is_letters_digits_and_underscores_whatever_a_library_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "library" / "models"
    models.mkdir(parents=True)
    (tmp_path / "library" / "__init__.py").touch()
    (models / "nets.py").write_text(
        "@register_model\ndef $(touch x)(): ...\n\n@register_model\ndef `id`(): ...\n\n"
        "@register_model()\n@handle(weights=('a', b))\ndef plain_10(*, weights): ...\n\n"
        "@register_model\ndef plain_9(pretrained): ...\n\ndef helper(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules["xai_cli.classifiers.names"]._ORDER, "library", str)
    assert model_names("library") == ["plain_10", "plain_9"]


COMPLETE = """
import sys
from xai_cli.cli.main import main

sys.argv = ["xai"]
try:
    main()
finally:
    heavy = {"torch", "torchvision", "timm", "numpy", "PIL"} & {*sys.modules}
    assert not heavy, heavy
"""


@pytest.mark.parametrize("words", ["timm/resnet50x", "$(touch pwned)`touch pwned`;touch pwned"])
def test_nothing_heavy_is_imported_and_nothing_is_run(tmp_path: Path, words: str) -> None:
    place = {"_XAI_COMPLETE": "complete_bash", "COMP_WORDS": f"xai explain --model {words}", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env={**os.environ, **place}, cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert ("timm/resnet50x4_clip" in done.stdout.splitlines()) == words.startswith("timm")
    assert done.stdout.startswith("timm/resnet50x" if words.startswith("timm") else "\n")
    assert [*tmp_path.iterdir()] == []

"""The plan of the house, kept true: imports run downwards, functions fit a screen, help does not wait for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xai_cli
from xai_cli.operators.rules import Rules

PACKAGE = Path(xai_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# From the top down; a floor may import those below it, and nothing of its own line.
FLOORS = [
    ["__main__", "__init__"],
    ["cli"],
    ["engine"],
    ["methods", "merging"],
    ["classifiers"],
    ["operators"],
    ["scenes"],
    ["outputs"],
    ["images"],
    ["heatmaps", "options", "targets"],
    ["digests", "sentences"],
]
LEVEL = {name: -level for level, names in enumerate(FLOORS) for name in names}

LONGEST_FUNCTION, LONGEST_FILE = 60, 450
# Said once, at the contract.
KINDS = {name for name in vars(Rules) if not name.startswith("_")}
DOCUMENTED_ABOVE = {"needs", "attribute", "explain", "estimates", *KINDS}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def floor(path: str) -> str:
    return path.removesuffix(".py").split("/")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Floors that a module imports anywhere in it, also inside functions and for types only."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            # `from xai_cli import images` and `from xai_cli.images import ...` both name a floor.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("xai_cli."))


def test_every_part_of_the_house_has_its_floor() -> None:
    assert {floor(path) for path in TREES} == set(LEVEL)


@pytest.mark.parametrize("path", TREES)
def test_imports_run_downwards(path: str) -> None:
    here = floor(path)
    wrong = {name for name in imported(TREES[path]) if name != here and LEVEL[name] >= LEVEL[here]}
    assert not wrong, f"{path} imports {wrong}, which is not below {here}"


def test_an_upward_import_would_be_seen() -> None:
    tree = ast.parse("def f():\n    from xai_cli.cli.main import app\n    import xai_cli.engine\n    import os.path")
    assert list(imported(tree)) == ["cli", "engine"]


@pytest.mark.parametrize("path", TREES)
def test_files_and_functions_fit_a_screen(path: str) -> None:
    lines = len((PACKAGE / path).read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE
    for node in ast.walk(TREES[path]):
        if isinstance(node, Function):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def public(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of these classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


@pytest.mark.parametrize("path", TREES)
def test_what_is_public_is_documented_or_trivial(path: str) -> None:
    tree = TREES[path]
    assert ast.get_docstring(tree), "the module says nothing of itself"
    for node in public(tree.body):
        lines = (node.end_lineno or 0) - node.body[0].lineno + 1
        if lines > 3 and node.name not in DOCUMENTED_ABOVE:
            assert ast.get_docstring(node), f"{node.name} has {lines} lines and no docstring"


def light(code: str) -> str:
    """What `code` prints in a fresh Python that must not import torch, torchvision or timm."""
    code += "\nimport sys\nheavy = {'torch', 'torchvision', 'timm'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lower_floors_never_import_torch() -> None:
    paths = [
        path for path in TREES if floor(path) in ("heatmaps", "outputs", "images", "options", "targets", "sentences")
    ]
    modules = [f"xai_cli.{path.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__") for path in paths]
    assert len(modules) > 8
    light(f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)")


def test_help_and_lists_never_import_torch() -> None:
    commands = [["--help"], ["--version"], ["methods"], ["models"], ["ig", "--help"], ["explain", "--help"], ["gradcm"]]
    answers = light(
        "from xai_cli.cli.main import app\n"
        f"for command in {commands}:\n"
        "    try:\n"
        "        app(command)\n"
        "    except SystemExit as end:\n"
        "        print('ended with', end.code)\n"
    )
    assert answers.count("ended with 0") == 6
    assert answers.count("ended with 2") == 1
    assert all(word in answers for word in ("Usage", "saliency", "--steps", "--method"))

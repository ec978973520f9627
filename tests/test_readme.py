"""README is run, not believed: every command, the Python example, every file it links to."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import run_xai
from PIL import Image
from safetensors.torch import save_file

from xai_cli.scenes.domains import RECIPE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [[line[2:] for line in block.splitlines()] for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)]
COMMANDS = [command for block in BLOCKS for command in block]
PIPED = [command for command in COMMANDS if "| xai" in command]
# The commands of a block may build on each other.
PLAIN = [plain for block in BLOCKS if (plain := [command for command in block if command.startswith("xai ")])]
# A finished run has nothing more to give, and a sound one no errors.
SILENT = {"xai gradcam photos --model timm/resnet50 -o night --retry-errors", "xai errors night", "xai verify night"}

# A test downloads no weights: small nets with random ones stand in.
STAND_INS = {
    "timm/resnet50": "timm/mobilenetv3_small_050 --random-weights",
    "timm/vit_base_patch16_224": "timm/vit_tiny_patch16_224 --random-weights",
    "torchvision/resnet50": "torchvision/shufflenet_v2_x0_5 --random-weights",
}


PREDICT = """

def predict(pictures):
    return pictures.numpy().mean(axis=(2, 3))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with everything that README's commands name."""
    generator = np.random.default_rng(0)
    for name in ("photos/cat.jpg", "photos/birds/cat.jpg", "photos/owl.png", "labelled/tabby/cat.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    for name in ("sample_images", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "names.txt").write_text("photos/cat.jpg\n")
    (tmp_path / "names.json").write_text(json.dumps(["ant", "bee", "cat"]))
    (tmp_path / "net.py").write_text((ROOT / "tests/nets.py").read_text() + "\n\nmake = conv_net\n" + PREDICT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", PLAIN, ids=lambda block: block[0])
def test_every_command_runs(block, workplace, monkeypatch):
    if any("squeezenet.safetensors" in command for command in block):
        import torchvision

        save_file(torchvision.models.squeezenet1_1().state_dict(), workplace / "squeezenet.safetensors")
    # The demonstration takes a minute at its full size.
    monkeypatch.setattr("xai_cli.scenes.domains.RECIPE", replace(RECIPE, pictures=40, epochs=1, batch_size=20))
    monkeypatch.setattr("xai_cli.scenes.domains.EVALUATED", 10)
    if any(" a.safetensors" in command for command in block):
        import timm
        import torch

        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            save_file(timm.create_model("mobilenetv3_small_050").state_dict(), workplace / f"{name}.safetensors")
    for command in block:
        here = command
        for name, stand_in in STAND_INS.items():
            here = re.sub(rf"(--model|layers|check|fisher) {name}(?= |$)", rf"\1 {stand_in}", here)
        if here.startswith("xai merge-fisher"):  # the checkpoints have all the weights
            here = here.replace(" --random-weights", "")
        answer = run_xai(*shlex.split(here)[1:])
        # --strict, which configs/audit.yaml asks for, may find a random net's map wanting.
        assert answer.code in ((0, 3) if "audit" in command else (0,)), answer.said
        assert bool(answer.paths) == (command not in SILENT), command


@pytest.mark.parametrize("command", PIPED)
def test_every_pipe_runs(command, workplace):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["piped/gradcam/photos/birds/cat.jpg.png", "piped/gradcam/photos/cat.jpg.png"]


def test_the_first_command_explains_the_samples(workplace):
    install = COMMANDS[0]
    assert install.endswith("pip install -c constraints.txt . && xai explain sample_images")
    assert run_xai("explain", "sample_images").code == 0
    assert (workplace / "explanations/overview.png").exists()


def test_the_test_command_is_what_ci_runs():
    ci = (ROOT / ".ci/run").read_text()
    for step in ("python3 -m venv", "-c constraints.txt -e '.[test]'", "pytest"):
        assert step in COMMANDS[1]
        assert step in ci


def test_the_python_example_runs_and_prints_what_it_says(monkeypatch, capsys):
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    said = re.search(r"# (torch\.Size\(.*?\])\)", example)
    assert said[1] + ")" in capsys.readouterr().out


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_command_has_an_example():
    from xai_cli.cli.main import app

    names = {command.name for command in app.registered_commands}
    ours = [command for command in COMMANDS if "xai " in command]
    methods = {name for command in ours for name in re.findall(r" -m (\S+)", command)}
    assert names <= {command.split("xai ")[-1].split()[0] for command in ours} | methods


def test_every_method_is_in_the_table():
    from xai_cli.methods import METHODS

    assert all(f"| [`{name}`]" in README for name in METHODS)

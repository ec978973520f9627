from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from merges import COLOURS, net_in, saved, shades, weights
from PIL import Image

from xai_cli.classifiers.options import ModelOptions
from xai_cli.merging.formula import Average
from xai_cli.merging.inputs import open_inputs
from xai_cli.merging.judging import Court, names_apart, task_names
from xai_cli.merging.merge import merged
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.pictures import labelled


def court(tmp_path: Path, folders: dict[str, Path], told: list[str], **options: object) -> Court:
    """Of a checkpoint for red and green, and one for green, blue and cyan with large scores, of which cyan's is
    largest whenever green and blue are not.
    """
    loud = torch.cat([100 * torch.eye(3)[1:], torch.zeros(1, 3)])
    states = [weights(torch.eye(3)[:2]), weights(loud, head__bias=torch.tensor([0, 0, 20.0]))]
    paths = [saved(tmp_path / f"{n}.safetensors", state) for n, state in enumerate(states)]
    files = [tmp_path / f"{n}.txt" for n in range(2)]
    for file, names in zip(files, (COLOURS[:2], (*COLOURS[1:], "cyan")), strict=True):
        file.write_text("\n".join(names))
    chosen = MergeOptions(method="average", class_names=files, **options)  # type: ignore[arg-type]
    inputs = open_inputs(paths, ModelOptions(model=net_in(tmp_path)), chosen)
    return Court(inputs, folders, [], 4, told.append, lambda picture, why: told.append(picture.key))


def scores(found: Court) -> dict[str, float]:
    return found.of_merge(lambda: merged(found.inputs.plan, found.inputs.weights, Average(), (1, 1)))


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    return shades(tmp_path / "warm", COLOURS[:2])


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    folder = shades(tmp_path / "cold")
    for name in COLOURS[:2]:
        shutil.rmtree(folder / name)
    return folder


def test_each_folder_is_answered_by_who_knows_its_classes(tmp_path: Path, warm: Path, cold: Path) -> None:
    told: list[str] = []
    found = court(tmp_path, {"warm": warm, "cold": cold}, told)
    assert (found.of_input(0), found.of_input(1)) == ({"warm": 1.0}, {"cold": 1.0})
    assert scores(found) == {"warm": 1.0}  # the target's head
    assert found.counts == {"warm": 4, "cold": 2}
    assert not told
    assert scores(court(tmp_path, {"warm": warm, "cold": cold}, told, head="keep-all")) == {"warm": 1.0, "cold": 1.0}
    # Both know green, and the other one would call this cyan.
    (tmp_path / "dim/green").mkdir(parents=True)
    Image.new("RGB", (8, 8), (10, 100, 10)).save(tmp_path / "dim/green/0.png")
    assert scores(court(tmp_path, {"dim": tmp_path / "dim"}, told, head="keep-all")) == {"dim": 1.0}
    assert court(tmp_path, {"dim": tmp_path / "dim"}, told).of_input(1) == {"dim": 0.0}


def test_a_union_of_classes_is_masked_and_said_so(tmp_path: Path, warm: Path, cold: Path) -> None:
    told: list[str] = []
    found = court(tmp_path, {"warm": warm, "cold": cold}, told, head="by-name")
    assert found.merged_labels == (*COLOURS, "cyan")
    # Cyan's 20 is more than any red's 1.
    assert scores(found) == {"warm": 1.0, "cold": 1.0}
    path = found.inputs.weights[0].path
    assert told[0] == (
        f"warm: merged heads answer among the 2 of 4 classes that {path} has: scores of classes trained apart do not "
        "compare"
    )
    assert len(told) == 2
    # A checkpoint's own scores compare: cyan counts as an answer though the folder has none.
    green = shades(tmp_path / "dim", ["green"])  # its pictures are red
    assert court(tmp_path, {"dim": green}, told).of_input(1) == {"dim": 0.0}


def test_folders_that_nobody_knows(tmp_path: Path, warm: Path, cold: Path) -> None:
    whales = shades(tmp_path / "whales", ["whale"])
    with pytest.raises(LookupError, match="no class is named 'whale'"):
        court(tmp_path, {"warm": warm, "whales": whales}, []).check(search=False)
    court(tmp_path, {"cold": cold}, []).check(search=False)
    with pytest.raises(ValueError, match="a search expects --eval with classes of the merge's head"):
        court(tmp_path, {"cold": cold}, []).check(search=True)
    court(tmp_path, {"cold": cold}, [], head="keep-all").check(search=True)
    court(tmp_path, {"cold": cold}, [], target=2).check(search=True)
    everything = shades(tmp_path / "everything")
    court(tmp_path, {"everything": everything}, [], head="by-name").check(search=True)
    with pytest.raises(LookupError, match="no class is named"):
        court(tmp_path, {"everything": everything}, []).check(search=False)


def test_new_statistics_are_of_the_pictures_given(tmp_path: Path, warm: Path) -> None:
    found = court(tmp_path, {}, [])
    made = list(merged(found.inputs.plan, found.inputs.weights, Average(), (1, 1)))
    assert found.final(made) is made
    measured = Court(found.inputs, {}, labelled(warm, (), required=False), 2, lambda _: None, lambda *_: None)
    new = dict(measured.final(made))
    for name, tensor in made:
        assert torch.equal(new[name], tensor) != name.startswith(("norm.running", "norm.num")), name
    # Of two reds and two greens, in parts of 255: 200 100 10, 200 100 11, 10 200 100, 11 200 100.
    expected = torch.tensor([[200, 200, 10, 11], [100, 100, 200, 200], [10, 11, 100, 100]]) / 127.5 - 1
    torch.testing.assert_close(new["norm.running_mean"], expected.mean(1), rtol=1e-5, atol=1e-6)


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*paths: str) -> list[str]:
        return names_apart([Path(path) for path in paths])

    assert named("/x/night") == ["night"]
    assert named("/x/night", "/y/z/fog") == ["night", "fog"]
    assert named("/x/a/eval", "/x/b/eval") == ["a/eval", "b/eval"]
    assert named("/x/eval", "/x/eval/eval") == ["eval", "eval/eval"]
    assert named("/x/a", "/x/a") == ["a", "a"]
    monkeypatch.chdir(tmp_path)
    assert named(".", "../b") == [tmp_path.name, "b"]
    assert task_names([Path("x/e"), Path("y/e")]) == {"x/e": Path("x/e"), "y/e": Path("y/e")}
    with pytest.raises(ValueError, match="--eval expects each folder once, found one twice; leave it out"):
        task_names([Path("a"), Path("./a")])

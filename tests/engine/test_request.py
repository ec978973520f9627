"""Two requests are the same one, or it is said in what they differ."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import classifier_of, conv_net

from xai_cli.classifiers.options import ModelOptions
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.request import Request, describe_found, found_changes
from xai_cli.methods.contract import Method
from xai_cli.methods.deeplift import DeepLift
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.methods.saliency import Saliency
from xai_cli.options import Options, declarations, flag

PARTS: list[type[Options]] = [ModelOptions, RunOptions, DrawingOptions, InputOptions]
METHODS = [IntegratedGradients(steps=50, baseline="mean"), Saliency()]

# Another value of every option that shapes the maps or their pictures, and of every one that does not.
SHAPING: dict[str, Any] = {
    "model": "timm/resnet18", "ema": False, "num_classes": 7, "in_chans": 1, "pretrained": False,
    "device": "cuda",
    "dtype": "float16", "fold": False, "compile": True, "input_size": (8, 8), "resize": 9, "crop_mode": "squash",
    "interpolation": "box",
    "mean": (0.0, 0.0, 0.5), "std": (1.0, 1.0, 0.5), "checkpoint": Path("weights.pt"), "labels": Path("labels.txt"),
    "target": "top:2", "batch_size": 3, "render": "none", "scale": "run", "percentile": 99.0, "picture_size": 64,
    "overview": 3, "exif": False, "max_pixels": 5, "inner_batch": 2, "seed": 1,
}  # fmt: skip
FREE: dict[str, Any] = {
    "out": Path("elsewhere"), "overwrite": True, "retry_errors": True, "workers": 7, "memory": 5, "strict": True,
    "files_from": "list", "null": True, "limit": 5, "shard": "2/3",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "others"):
        Path(folder).mkdir()
    for file in ("a.png", "b.png", "weights.pt", "labels.txt"):
        Path(file).write_text(file)


def request(
    pictures: Sequence[str] = ("photos",), methods: Sequence[Method] = METHODS, shards: int = 1, **options: Any
) -> Request:
    parts = [part(**{name: options.pop(name) for name in declarations(part) if name in options}) for part in PARTS]
    assert not options
    return Request.of(pictures, methods, parts, shards)


def changes(before: Request, now: Request) -> list[str]:
    """In what the second request differs from the run that the first one has left."""
    return now.changes(json.loads(json.dumps(before.content)))


def test_the_same_request_is_the_same_run() -> None:
    shaped = request(**SHAPING, **FREE)
    assert changes(shaped, request(**SHAPING, **FREE)) == []
    assert changes(shaped, request(methods=METHODS[::-1], **SHAPING)) == []


def test_every_option_is_decided_upon() -> None:
    assert {*SHAPING, *FREE} == {name for part in PARTS for name in declarations(part)}


@pytest.mark.parametrize("name", SHAPING)
def test_an_option_that_shapes_the_maps_makes_another_run(name: str) -> None:
    before, now = request(), request(**{name: SHAPING[name]})
    (sentence,) = [each for each in changes(before, now) if not each.startswith("content of")]
    assert sentence.startswith(f"{flag(name)} was ")
    assert changes(now, before)


@pytest.mark.parametrize("name", FREE)
def test_an_option_that_shapes_no_map_may_be_another_one(name: str) -> None:
    assert changes(request(), request(**{name: FREE[name]})) == []
    assert changes(request(**{name: FREE[name]}), request()) == []


def test_options_of_methods_are_told_with_the_method() -> None:
    now = request(methods=[IntegratedGradients(steps=3, baseline="blur"), Saliency()])
    told = {"--steps of ig was 50 and is 3", "--baseline of ig was mean and is blur"}
    assert {*changes(request(), now)} == told


def test_other_methods_are_told_alone() -> None:
    now = request(methods=[IntegratedGradients(steps=3), GradCam()], batch_size=2)
    assert changes(request(), now) == ["methods was ig, saliency and is gradcam, ig"]


def test_another_number_of_shards_is_another_run() -> None:
    assert changes(request(shards=16), request()) == ["number of shards was 16 and is 1"]


# Pictures


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["a.png"], ["a.png", "b.png"]),
        (["a.png", "photos"], ["photos", "b.png"]),
        (["photos"], ["photos/", "./photos"][:1]),
        (["photos"], ["./others/../photos"]),
        (["nowhere.png"], ["b.png"]),
        (["strange[1].png"], []),
    ],
)
def test_pictures_that_are_named_may_be_more_or_fewer(before: list[str], now: list[str]) -> None:
    Path("strange[1].png").touch()
    assert changes(request(before), request(now)) == []


@pytest.mark.parametrize(
    ("before", "now"),
    [(["photos"], ["others"]), (["photos"], ["a.png"]), (["photos"], ["photos", "others"]), (["*.png"], ["*.jpg"])],
)
def test_another_folder_whose_pictures_may_have_the_same_keys_is_another_run(before: list[str], now: list[str]) -> None:
    (sentence,) = changes(request(before), request(now))
    assert sentence.startswith(f"pictures was {', '.join(before)} and is ")


def test_a_picture_that_was_missing_and_is_back_makes_no_other_run() -> None:
    before = request(["a.png", "late.png"])
    Path("late.png").touch()
    assert changes(before, request(["a.png", "late.png"])) == []
    gone = request(["a.png", "late.png"])
    Path("late.png").unlink()
    assert changes(gone, request(["a.png", "late.png"])) == []


# Files


@pytest.mark.parametrize(
    ("name", "value", "file"),
    [("checkpoint", Path("weights.pt"), "weights.pt"), ("labels", Path("labels.txt"), "labels.txt"),
     ("model", "own.py:make", "own.py")],
)  # fmt: skip
def test_a_file_with_another_content_is_another_one(name: str, value: Any, file: str) -> None:
    Path(file).write_text("before")
    before = request(**{name: value})
    Path(file).write_text("before")
    assert changes(before, request(**{name: value})) == []
    Path(file).write_text("now")
    (sentence,) = changes(before, request(**{name: value}))
    assert sentence.startswith(f"content of {flag(name)} was ")


def test_a_long_value_is_cut_in_its_middle() -> None:
    (sentence,) = changes(request(["photos" + "x" * 90 + "*"]), request(["photos" + "x" * 90 + "?"]))
    assert "was photosxxx" in sentence
    assert sentence.endswith("xxx...xxxxxxxxxxxxxx?")


# What is known once the model is loaded


def found(**changes: Any) -> dict[str, Any]:
    classifier = replace(classifier_of(conv_net(), dtype=torch.float32), **changes)
    return describe_found(classifier, [GradCam(layer="4"), Saliency()])


def since(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what the model that was found now differs from that of a run that was left."""
    return found_changes(json.loads(json.dumps(before)), now)


def test_what_was_found_is_what_json_can_hold() -> None:
    assert since(found(), found()) == []
    assert found()["layers"] == {"gradcam": ["4"], "saliency": []}
    assert found()["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_another_model_is_another_run_and_another_library_is_none() -> None:
    assert since(found(digest="cafe"), found(digest="beef")) == ["sha256 of the model was cafe and is beef"]
    assert since(found(), {**found(), "versions": {"torch": "0.1"}}) == []
    (sentence,) = since(found(), {**found(), "layers": {"gradcam": ["3"], "saliency": []}})
    assert "'gradcam': ['4']" in sentence
    assert "'gradcam': ['3']" in sentence


def test_another_content_of_what_a_method_compares_with_is_another_request():
    Path("base").mkdir()
    Path("base/a.png").write_text("a")
    of_image = [DeepLift(baseline="image", baseline_image=Path("a.png"))]
    of_folder = [DeepLift(baseline="folder", baseline_folder=Path("base"))]
    before = [request(methods=methods) for methods in (of_image, of_folder)]
    Path("a.png").write_text("another")
    Path("base/b.png").write_text("b")
    told = [changes(old, request(methods=methods)) for old, methods in zip(before, (of_image, of_folder), strict=True)]
    assert [sentence.partition(" was ")[0] for [sentence] in told] == [
        "content of --baseline-image of deeplift",
        "content of --baseline-folder of deeplift",
    ]


@pytest.mark.parametrize(
    ("kind", "expected", "found", "name"),
    [
        ("image", "a file", "a pipe or a device", "pipe"),  # which would never end
        ("image", "a file", "a folder", "photos"),
        ("image", "a file", "nothing", "missing.png"),
        ("folder", "a folder", "a pipe or a device", "pipe"),
        ("folder", "a folder", "a file", "a.png"),
        ("folder", "a folder", "nothing", "missing"),
    ],
)
def test_what_a_method_names_must_be_what_the_option_expects(kind: str, expected: str, found: str, name: str) -> None:
    os.mkfifo("pipe")
    options: dict[str, Any] = {"baseline": kind, f"baseline_{kind}": Path(name)}
    message = f"--baseline-{kind} of deeplift expects {expected}, found {found} at {name}; name another"
    with pytest.raises(FileNotFoundError, match=message):
        request(methods=[DeepLift(**options)])


def of_folder(name: str) -> Request:
    """A request with the content of a folder, whatever its name."""
    made = request(methods=[DeepLift(baseline="folder", baseline_folder=Path(name))])
    return replace(made, content=made.content | {"methods": {}})


@pytest.mark.parametrize("large", [False, True])
def test_a_copy_of_a_folder_is_the_same_unless_it_is_large(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr("xai_cli.engine.request._SMALL", 3)
    Path("base/below").mkdir(parents=True)
    Path("base/a.png").write_text("aa")
    Path("base/below/b.png").write_text("bb")
    os.mkfifo("base/pipe")  # which is never read
    shutil.copytree("base", "copy", ignore=shutil.ignore_patterns("pipe"), copy_function=shutil.copyfile)
    for copied in Path("copy").rglob("*"):
        os.utime(copied, (1, 1))
    assert bool(changes(of_folder("base"), of_folder("copy"))) == large


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("change", ["content", "name", "more"])
def test_another_content_or_name_in_a_folder_is_another_one(
    monkeypatch: pytest.MonkeyPatch, large: bool, change: str
) -> None:
    if large:
        monkeypatch.setattr("xai_cli.engine.request._SMALL", 1)
    Path("base").mkdir()
    Path("base/a.png").write_text("aa")
    before = of_folder("base")
    assert changes(before, of_folder("base")) == []
    if change == "content":
        Path("base/a.png").write_text("bb")  # of the same size
        if large:
            os.utime("base/a.png", (1, 1))
    elif change == "name":
        Path("base/a.png").rename("base/b.png")
    else:
        Path("base/b.png").touch()
    (sentence,) = changes(before, of_folder("base"))
    assert sentence.startswith("content of --baseline-folder of deeplift was ")

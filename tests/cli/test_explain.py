"""A run from the command line: what it writes, what it says on which stream, and the exit code it ends with."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Answer, run_xai
from PIL import Image

from xai_cli import attribute, find_method, load_classifier
from xai_cli.images.decode import decode
from xai_cli.outputs.manifest import latest_records
from xai_cli.scenes import nets
from xai_cli.targets import Target

MODEL = ("--model", "small_net.py:make")

# A model of a user, which cannot bear a white picture.
TALKING = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small_net.make()
        self.pretrained_cfg = self.inner.pretrained_cfg

    def forward(self, x):
        print("a model may talk")
        if (x.flatten(1).amin(1) > 1.99).any():
            raise ERROR
        return self.inner(x)

make = Net
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path, net: str) -> None:
    """Tests run in a folder of their own, where `pictures/` and `small_net.py` lie and may be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def explain(*arguments: object, stdin: str | bytes = "") -> Answer:
    return run_xai("explain", *arguments, *(() if "--model" in arguments else MODEL), stdin=stdin)


def rows(out: str = "explanations") -> list[dict[str, Any]]:
    return [row for record in latest_records([Path(out) / "manifest.jsonl"]) for row in record]


def refused(*arguments: object) -> str:
    """What a command says that ends with a usage error, after which nothing is written."""
    answer = explain(*arguments)
    assert (answer.code, answer.paths) == (2, [])
    assert "Traceback" not in answer.said
    assert not Path("explanations").exists()
    return answer.said


def write_code(name: str, body: str) -> str:
    Path(f"{name}.py").write_text(f"import small_net\nfrom torch import nn\n{body}\n")
    return f"{name}.py:make"


def talking(error: str = "RuntimeError('too bright')") -> tuple[str, str]:
    return "--model", write_code("talking", TALKING.replace("ERROR", error))


def plain(folder: str, colours: list[str]) -> None:
    Path(folder).mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (16, 16), colour).save(Path(folder, f"{number}.png"))


# What a run leaves


def test_good_pictures_complete_and_broken_ones_are_named() -> None:
    answer = explain("pictures", "-m", "saliency")
    assert answer.code == 3
    assert answer.paths == [f"explanations/saliency/{key}.png" for key in ("a.png", "b.jpg", "birds/c.png")]
    assert all(Path(path).is_file() for path in answer.paths)
    broken = {row["key"]: (row["stage"], row["type"]) for row in rows() if row["status"] == "error"}
    assert broken == {"cut.png": ("decode", "Truncated"), "text.jpg": ("open", "NotAnImage")}
    assert all(row["message"] for row in rows() if row["status"] == "error")
    assert [row["key"] for row in rows()] == ["a.png", "b.jpg", "birds/c.png", "cut.png", "text.jpg"]
    assert "xai: cut.png: the file is cut short: image file is truncated (decode: Truncated)" in answer.said
    assert answer.said.endswith(
        "xai: 3 of 5 pictures explained in explanations, 2 failed: see 'xai errors explanations'"
    )


def test_a_row_says_where_its_files_are_and_what_they_hold() -> None:
    assert explain("pictures/a.png", "-m", "ig", "-m", "gradcam", "-m", "ig").code == 0
    ig, gradcam = rows()
    assert (ig["method"], gradcam["method"]) == ("ig", "gradcam")
    assert ig["files"] == {"npy": "ig/pictures/a.png.npy", "png": "ig/pictures/a.png.png"}
    for row in (ig, gradcam):
        files = {kind: Path("explanations", path) for kind, path in row["files"].items()}
        assert {kind: path.stat().st_size for kind, path in files.items()} == row["bytes"]
        relevance = np.load(files["npy"])
        assert (relevance.dtype, relevance.shape) == (np.float32, (16, 16))
        assert row["geometry"]["original"] == [24, 20]
        assert row["geometry"]["map"] == [16, 16]
        assert row["target"]["index"] == row["top"][0][0]
        assert row["target"]["probability"] == row["top"][0][1]
    assert {"completeness_gap", "degenerate"} <= set(ig["checks"])
    for row in (ig, gradcam):
        magnitude = np.abs(np.load(f"explanations/{row['files']['npy']}"))
        limit = float(np.percentile(magnitude, 97))
        assert row["scale"] == {"by": "image", "percentile": 97.0, "limit": pytest.approx(limit), "clipped": 8 / 256}
    assert gradcam["layer"] == "1"
    run = json.loads(Path("explanations/run.json").read_text())
    assert run["model"]["name"] == "small_net.py:make"
    assert run["methods"]["ig"]["steps"] == find_method("ig")().steps
    assert run["options"]["batch_size"] == 8


def test_the_arrays_are_those_of_the_library() -> None:
    explain("pictures/a.png", "-m", "saliency", "--batch-size", 1, "--target", 2)
    classifier = load_classifier("small_net.py:make")
    pixels, _ = classifier.preprocessing.apply(decode(Path("pictures/a.png")))
    inputs = classifier.prepare([pixels])
    expected = attribute(classifier, inputs, find_method("saliency")(), [Target(2)], chunk=1).relevance
    np.testing.assert_array_equal(np.load("explanations/saliency/pictures/a.png.npy"), expected[0])


def test_a_method_is_a_command_of_its_own() -> None:
    assert run_xai("ig", "pictures/a.png", "--steps", 3, *MODEL).code == 0
    methods = json.loads(Path("explanations/run.json").read_text())["methods"]
    assert {name: options["steps"] for name, options in methods.items()} == {"ig": 3}


def test_a_section_of_the_file_gives_a_method_its_options() -> None:
    Path("c.yaml").write_text("ig: {steps: 7}\ngradcam: {relu: false}\nbatch-size: 2\n")
    explain("pictures/a.png", "--config", "c.yaml", "-m", "ig", "-m", "saliency")
    run = json.loads(Path("explanations/run.json").read_text())
    assert list(run["methods"]) == ["ig", "saliency"]
    assert (run["methods"]["ig"]["steps"], run["methods"]["ig"]["baseline"]) == (7, "mean")
    assert run["options"]["batch_size"] == 2


def test_further_targets_are_named_by_their_index() -> None:
    answer = explain("pictures/a.png", "-m", "saliency", "--target", "top:2")
    first, second = rows()
    assert first["files"]["npy"] == "saliency/pictures/a.png.npy"
    assert second["files"]["npy"] == f"saliency/pictures/a.png.{second['target']['index']}.npy"
    assert [row["target"]["index"] for row in (first, second)] == [index for index, _ in first["top"][:2]]
    assert answer.paths == [f"explanations/{row['files']['png']}" for row in (first, second)]
    one, two = (np.load(f"explanations/{row['files']['npy']}") for row in (first, second))
    assert not np.array_equal(one, two)


def test_a_difference_of_two_classes_is_the_difference_of_two_maps() -> None:
    for target in ("0", "1", "0-vs-1"):
        assert run_xai("ig", "pictures/a.png", "--target", target, "--tolerance", 0, "-o", target, *MODEL).code == 0
    maps = [np.load(f"{target}/ig/pictures/a.png.npy") for target in ("0", "1", "0-vs-1")]
    np.testing.assert_allclose(maps[0] - maps[1], maps[2], rtol=0, atol=1e-6)
    assert rows("0-vs-1")[0]["target"]["against"] == {"index": 1, "name": "1"}


def test_the_label_is_the_folder_and_a_picture_without_one_is_a_failure() -> None:
    Path("labels.txt").write_text("fish\nbirds\nhot dog, frankfurter\n")
    answer = explain("pictures", "-m", "saliency", "--target", "label", "--labels", "labels.txt")
    assert answer.code == 3
    assert answer.paths == ["explanations/saliency/birds/c.png.png"]
    found = {row["key"]: row for row in rows()}
    assert found["birds/c.png"]["target"]["name"] == "birds"
    assert found["birds/c.png"]["target"]["how"] == "label"
    assert (found["a.png"]["stage"], found["a.png"]["type"]) == ("target", "UnknownClass")
    assert "expects pictures in folders named after classes" in found["a.png"]["message"]


def test_the_same_file_gives_the_same_bytes_alone_in_a_folder_and_in_another_order() -> None:
    methods = ("-m", "ig", "-m", "saliency", "-m", "gradcam", "--batch-size", 2, "--model", "builtin/scenes-cnn")
    files = [f"pictures/{name}" for name in ("a.png", "b.jpg", "birds/c.png")]
    # In these the last file is alone in its batch, the first of two, and the second of two.
    orders = {"alone": files[2:], "all": files, "first": [*reversed(files)], "second": [files[0], files[2], files[1]]}
    for out, inputs in orders.items():
        assert explain(*inputs, *methods, "-o", out).code == 0
    assert explain("pictures", *methods, "-o", "folder").code == 3
    for method in ("ig", "saliency", "gradcam"):
        written = [Path(out, method, "pictures/birds/c.png.npy").read_bytes() for out in orders]
        written.append(Path("folder", method, "birds/c.png.npy").read_bytes())
        assert len(set(written)) == 1, method
        assert np.load(f"alone/{method}/pictures/birds/c.png.npy").any()


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["--render", "none"], {"a.png.npy"}),
        (["--render", "heatmap"], {"a.png.npy", "a.png.png"}),
        (["--overview", "0"], {"a.png.npy", "a.png.png"}),
    ],
)
def test_only_the_pictures_that_are_asked_for_are_drawn(options: list[str], files: set[str]) -> None:
    answer = explain("pictures/a.png", "-m", "saliency", *options)
    assert {path.name for path in Path("explanations/saliency/pictures").iterdir()} == files
    assert answer.paths == [f"explanations/saliency/pictures/{max(files)}"]
    assert Path("explanations/overview.png").exists() == ("--overview" not in options)


# Which pictures


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["-"], b"pictures/a.png\n\npictures/birds\n"),
        (["--files-from", "-"], b"pictures/a.png\r\npictures/birds"),
        (["-", "-0"], b"pictures/a.png\0pictures/birds\0"),
        (["--files-from", "list"], b""),
        (["pictures/a.png", "--files-from", "list"], b""),
        (["-0", "--files-from", "null"], b""),
        (["pictures/a.*", "pictures/bi*"], b""),
    ],
)
def test_pictures_come_from_arguments_and_lists(arguments: list[str], stdin: bytes) -> None:
    Path("list").write_text("pictures/a.png\npictures/birds\n")
    Path("null").write_bytes(b"pictures/a.png\0pictures/birds")
    assert explain(*arguments, "-m", "saliency", stdin=stdin).code == 0
    assert [row["key"] for row in rows()] == ["pictures/a.png", "c.png"]


def test_no_picture_is_an_end_of_its_own() -> None:
    Path("empty").mkdir()
    for arguments, stdin in ((["empty"], b""), (["-"], b""), (["--files-from", os.devnull], b"")):
        answer = explain(*arguments, stdin=stdin)
        assert (answer.code, answer.paths) == (4, [])
        assert answer.said.endswith(
            "xai: no picture found; give files, folders that hold pictures, or a list with --files-from"
        )
    assert not Path("explanations").exists()


def test_a_missing_picture_is_a_failed_one() -> None:
    answer = explain("nowhere.png", "pictures/a.png", "-m", "saliency")
    assert answer.code == 3
    assert "nowhere.png: there is no such file (open: NotFound)" in answer.said


def test_lists_and_arguments_that_cannot_be_are_refused() -> None:
    assert "expected pictures or folders, found none" in refused()
    assert "--files-from expects a list of names, found nothing at nowhere" in refused(
        "pictures", "--files-from", "nowhere"
    )
    Path("null").write_bytes(b"a.png\0b.png\0")
    assert "its names end in NUL; read it with --null" in refused("--files-from", "null")


# What cannot be had


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "timm/resnet5"], "no timm model is named 'resnet5'; did you mean 'resnet50' or"),
        (["--model", "timm/resnet18.a1_in1"], "no weights of timm/resnet18 is named 'a1_in1'; did you mean 'a1_in1k'"),
        (["--model", "torchvision/resnet5"], "no torchvision model is named 'resnet5'; did you mean 'resnet50' or"),
        (["--model", "torchvision/resnet18:V9"], "no weights of torchvision/resnet18 is named 'V9'; there are: "),
        (["--model", "builtin/scenes-cn"], "no embedded model is named 'scenes-cn'; did you mean 'scenes-cnn'"),
        (["--model", "resnet50"], "--model expects timm/NAME, torchvision/NAME, builtin/NAME, "),
        (["--model", "small_net.py:mak"], "no callable in small_net.py is named 'mak'; did you mean 'make'?"),
        (["--model", "nowhere.py:make"], "--model expects a Python file, found nothing at nowhere.py"),
        (["-m", "gradcm"], "no method is named 'gradcm'; did you mean 'gradcam'"),
        (["-m", "[/red]"], "no method is named '[/red]'; see 'xai methods'"),
        (["--targt", "0"], "No such option: --targt"),
        (["--target", "3"], "no class is named '3'; the model has classes 0 to 2"),
        (["--target", "top:4"], "--target top:K expects a number of classes from 1 to 3, found 'top:4'"),
        (
            ["--labels", "two.txt", "--target", "cab"],
            "--labels expects 3 class names for this model, found 2 in two.txt",
        ),
        (["--labels", "three.txt", "--target", "hot dogg"], "no class is named 'hot dogg'; did you mean 'hot dog'?"),
        (["--labels", "nowhere.txt"], "--labels expects a file, found nothing at nowhere.txt"),
        (["--checkpoint", "nowhere.pt"], "--checkpoint expects a file, found nothing at nowhere.pt"),
        (["--checkpoint", "two.txt"], "two.txt is not a readable checkpoint: expected safetensors"),
        (["--device", "cudda"], "--device cudda cannot be used here ("),
        (["--percentile", "nan"], "--percentile expects 1 to 100, found nan"),
        (["--config", "layer.yaml", "-m", "gradcam"], "no layer is named '9'"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_sentence(arguments: list[str], sentence: str) -> None:
    Path("two.txt").write_text("cat\ndog\n")
    Path("three.txt").write_text("cat\ndog\nhot dog\n")
    Path("layer.yaml").write_text("gradcam: {layer: 9}\n")
    assert sentence in refused("pictures", *arguments)


def test_an_unknown_layer_is_told_with_the_nearest() -> None:
    answer = run_xai("gradcam", "pictures", "--layer", "layer5", "--model", "builtin/scenes-cnn")
    assert answer.code == 2
    assert "error: no layer is named 'layer5'; did you mean 'layer" in answer.said
    answer = run_xai("gradcam", "pictures", "--layer", "fc", "--model", "builtin/scenes-cnn")
    assert (
        "error: layer 'fc' has no grid of positions, its output is (1, 10); choose another with --layer" in answer.said
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of a machine without a GPU")
def test_a_device_that_is_not_there_is_refused_and_not_replaced() -> None:
    said = refused("pictures", "--device", "cuda")
    assert "error: --device cuda cannot be used here (" in said
    assert said.endswith("); try auto or cpu")


def test_a_checkpoint_of_another_shape_is_told_by_three_keys_with_both_shapes() -> None:
    import small_net  # type: ignore[import-not-found]

    weights = small_net.make().state_dict()
    torch.save({key: torch.zeros(1, 2) for key in weights}, "other.pt")
    assert (
        "other.pt does not fit the model: 0.weight: model (8, 3, 3, 3), file (1, 2); 0.bias: model (8,), file (1, 2); "
        "4.weight: model (3, 32), file (1, 2); and 1 more"
    ) in refused("pictures", "--checkpoint", "other.pt")


def test_a_checkpoint_of_another_head_is_answered_with_the_number_of_classes() -> None:
    net = nets.build("scenes-cnn")
    net.reset_classifier(7)  # type: ignore[operator]
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, "seven.pth")
    arguments = ("pictures/a.png", "--model", "builtin/scenes-cnn", "--checkpoint", "seven.pth", "-m", "saliency")
    assert "the file has 7 classes, say so with --num-classes" in refused(*arguments)
    assert explain(*arguments, "--num-classes", 7, "--target", 6).code == 0


class Payload:
    """Would leave a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("payload-ran",)


@pytest.mark.parametrize("save", [lambda content, path: torch.save(content, path),
                                  lambda content, path: Path(path).write_bytes(pickle.dumps(content, protocol=2))],
                         ids=["zip", "bare pickle"])  # fmt: skip
def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(save: Any) -> None:
    save({"state_dict": Payload()}, "evil.pt")
    assert "error: evil.pt was refused: it holds more than tensors and opening it could run code" in refused(
        "pictures", "--checkpoint", "evil.pt"
    )
    assert not Path("payload-ran").exists()
    # It would have run, had it been let.
    with suppress(RuntimeError):
        torch.load("evil.pt", weights_only=False)
    assert Path("payload-ran").exists()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("def make():\n    raise RuntimeError('no luck')", "--model own.py:make fails with RuntimeError: no luck"),
        ("1 / 0", "--model own.py fails with ZeroDivisionError: division by zero"),
        ("def make(:", "--model own.py fails with SyntaxError: invalid syntax"),
        ("def make():\n    return 3", "--model own.py:make must be a torch.nn.Module or a function that returns one"),
        ("def make():\n    return nn.Conv2d(3, 2, 3)", "must return class scores of shape (1, K), found (1, 2, "),
        ("def make():\n    return nn.Linear(7, 2)", "own.py:make fails on an input of shape (1, 3, 224, 224) ("),
    ],
)
def test_code_that_fails_is_told_as_a_mistake_of_that_file(body: str, sentence: str) -> None:
    assert sentence in refused("pictures", "--model", write_code("own", body))


# What goes wrong on the way


def test_standard_output_holds_paths_alone_whatever_a_model_prints() -> None:
    plain("grey", ["grey"])
    answer = explain("grey", "-m", "saliency", *talking())
    assert (answer.code, answer.paths) == (0, ["explanations/saliency/0.png.png"])
    assert "a model may talk" in answer.said


def test_a_picture_that_the_model_fails_on_does_not_take_its_neighbour_along() -> None:
    plain("mixed", ["grey", "white", "grey"])
    answer = explain("mixed", "-m", "saliency", "--batch-size", 2, *talking())
    assert (answer.code, answer.paths) == (3, [f"explanations/saliency/{number}.png.png" for number in (0, 2)])
    (failed,) = (row for row in rows() if row["status"] == "error")
    assert (failed["key"], failed["stage"]) == ("1.png", "attribute")
    assert (failed["type"], failed["message"]) == ("RuntimeError", "too bright")


def test_a_run_whose_first_pictures_all_fail_in_the_model_ends() -> None:
    plain("white", ["white"] * 12)
    answer = explain("white", "-m", "saliency", "--batch-size", 2, *talking())
    assert (answer.code, answer.paths) == (1, [])
    assert answer.said.endswith("error: the first 8 pictures all failed, the last with RuntimeError: too bright")


def test_an_interrupt_ends_with_130() -> None:
    plain("white", ["white"])
    assert explain("white", "-m", "saliency", *talking("KeyboardInterrupt")).code == 130


def test_strict_counts_a_failed_check_but_no_harmless_warning() -> None:
    Image.new("RGBA", (16, 16), (9, 9, 9, 128)).save("clear.png")
    coarse = ("--config", "coarse.yaml", "--batch-size", 1)
    Path("coarse.yaml").write_text("ig: {steps: 1, tolerance: 0, quadrature: midpoint}\n")
    assert explain("clear.png", "-m", "saliency", "--strict", "-o", "harmless").code == 0
    assert rows("harmless")[0]["warnings"] == ["transparent parts were laid on white"]
    assert explain("pictures/a.png", "-m", "ig", *coarse, "-o", "lenient").code == 0
    answer = explain("pictures/a.png", "-m", "ig", *coarse, "--strict", "-o", "strict")
    (row,) = rows("strict")
    assert row["checks"]["completeness_gap"] > 0.05
    assert (answer.code, answer.paths, row["status"]) == (3, [], "ok")
    assert f"pictures/a.png: ig: completeness_gap {row['checks']['completeness_gap']:.3g}: " in answer.said
    assert Path("strict", row["files"]["npy"]).is_file()


# Where it goes


def test_a_folder_that_holds_a_run_is_kept_unless_told_otherwise() -> None:
    assert explain("pictures/a.png", "-m", "saliency", "-m", "ig").code == 0
    before = Path("explanations/manifest.jsonl").read_bytes()
    Path("explanations/notes.txt").write_text("mine")
    answer = explain("pictures/b.jpg", "-m", "saliency")
    assert (answer.code, answer.paths) == (2, [])
    assert answer.said == (
        "xai: error: explanations holds a run in which methods was ig, saliency and is saliency; "
        "ask for the same, or give another folder with --out, or --overwrite"
    )
    assert Path("explanations/manifest.jsonl").read_bytes() == before

    assert explain("pictures/b.jpg", "-m", "saliency", "--overwrite").code == 0
    left = {path.relative_to("explanations").as_posix() for path in Path("explanations").rglob("*") if path.is_file()}
    assert left == {"notes.txt", "run.json", "manifest.jsonl", "overview.png",
                    "saliency/pictures/b.jpg.npy", "saliency/pictures/b.jpg.png"}  # fmt: skip
    assert [row["key"] for row in rows()] == ["pictures/b.jpg"]


@pytest.mark.parametrize(
    "content", ['{"methods": {"../pictures": {}}}', '{"methods": {".": {}}}', '{"name": 1}', "[", "3"]
)
def test_overwriting_removes_nothing_by_a_file_that_is_not_ours(content: str) -> None:
    Path("explanations").mkdir()
    Path("explanations/run.json").write_text(content)
    answer = explain("pictures/a.png", "-m", "saliency", "--overwrite")
    assert answer.code == 2
    assert "explanations/run.json was not written by xai; give another folder with --out" in answer.said
    assert Path("pictures/a.png").exists()
    assert Path("explanations/run.json").read_text() == content


def test_output_that_cannot_be_written_is_an_end_of_its_own() -> None:
    Path("file").write_text("mine")
    for out, sentence in (("file", "--out expects a folder, found the file file"), ("file/below", "Not a directory")):
        answer = explain("pictures/a.png", "-m", "saliency", "-o", out)
        assert (answer.code, answer.paths) == (5, [])
        assert sentence in answer.said
    assert Path("file").read_text() == "mine"


# The whole process


def test_the_streams_and_the_exit_code_of_the_process() -> None:
    """A file name that is no text comes out of standard output as the bytes that went in."""
    name = os.fsdecode(b"caf\xe9.png")
    Path("pictures/a.png").rename(Path("pictures", name))
    command = [sys.executable, "-m", "xai_cli", "saliency", "-", *MODEL, "-o", "out"]
    # What Python does by itself in most languages; in the plain C locale it lets such names pass.
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, input=b"pictures\n", capture_output=True, check=False, env=environment)
    assert done.returncode == 3
    assert done.stdout.splitlines() == [
        b"out/saliency/b.jpg.png", b"out/saliency/birds/c.png.png", b"out/saliency/caf\xe9.png.png"
    ]  # fmt: skip
    assert Path(os.fsdecode(done.stdout.splitlines()[2])).is_file()
    assert (
        done.stderr.decode().splitlines()[-1] == "xai: 3 of 5 pictures explained in out, 2 failed: see 'xai errors out'"
    )
    assert b"Traceback" not in done.stderr


def test_the_embedded_model_is_the_default_and_says_so() -> None:
    answer = run_xai("saliency", "pictures/a.png")
    assert answer.code == 0
    assert answer.said.startswith("xai: no --model given: using builtin/scenes-cnn, which knows ten drawn objects; ")
    run = json.loads(Path("explanations/run.json").read_text())
    assert (run["model"]["name"], run["model"]["classes"]) == ("builtin/scenes-cnn", 10)


def test_random_weights_are_the_same_every_time_and_not_the_trained_ones() -> None:
    digests = []
    for out, options in (("1", ["--random-weights"]), ("2", ["--random-weights"]), ("3", ["--pretrained"])):
        arguments = ("pictures/a.png", "-m", "saliency", "--model", "builtin/scenes-cnn", "-o", out, *options)
        assert explain(*arguments).code == 0
        digests.append(json.loads(Path(out, "run.json").read_text())["model"]["sha256"])
    assert digests[0] == digests[1] != digests[2]


# Going on


def test_a_shard_without_pictures_leaves_its_manifest_so_that_shards_can_be_joined() -> None:
    for shard in ("1/3", "2/3", "3/3"):
        assert explain("pictures/a.png", "-m", "saliency", "--shard", shard).code == 0
    assert [path.name for path in sorted(Path("explanations").glob("manifest*"))] == [
        f"manifest-{number}-of-3.jsonl" for number in (1, 2, 3)
    ]
    assert run_xai("merge-manifests", "explanations").code == 0
    assert [row["key"] for row in rows()] == ["pictures/a.png"]
    assert Path("explanations/overview.png").exists()


def test_nothing_is_left_by_a_plan_or_a_refusal_that_would_look_like_a_shard() -> None:
    assert explain("pictures", "-m", "saliency", "--shard", "1/2").code == 3
    before = sorted(path.name for path in Path("explanations").iterdir())
    assert explain("pictures", "-m", "saliency", "--shard", "2/2", "--dry-run").code == 0
    answer = explain("pictures", "-m", "saliency", "--shard", "1/3")
    assert (answer.code, "number of shards was 2 and is 3" in answer.said) == (2, True)
    assert sorted(path.name for path in Path("explanations").iterdir()) == before
    answer = run_xai("merge-manifests", "explanations")
    assert (answer.code, "found none named manifest-2-of-2.jsonl" in answer.said) == (2, True)


def test_a_run_that_had_successes_does_not_give_up_on_pictures_that_fail() -> None:
    plain("mixed", ["grey"] + ["white"] * 10 + ["grey"])
    failing = ("mixed", "-m", "saliency", "--batch-size", 1, *talking())
    assert explain(*failing, "--limit", 5).code == 3
    assert explain(*failing).code == 3
    answer = explain(*failing, "--retry-errors")
    assert (answer.code, answer.paths) == (3, [])
    assert "2 of 12 pictures explained in explanations, 10 taken up now, 10 failed" in answer.said


def test_what_fails_before_anything_has_succeeded_is_tried_again() -> None:
    plain("white", ["white"] * 9)
    assert explain("white", "-m", "saliency", "--batch-size", 1, *talking()).code == 1
    assert {row["transient"] for row in rows()} == {True}
    Path("talking.py").write_text(Path("talking.py").read_text().replace("> 1.99", "> 99"))
    answer = explain("white", "-m", "saliency", "--batch-size", 1, "--model", "talking.py:make")
    assert "content of --model was" in answer.said  # another model is another run, also one that is mended


def test_a_reader_may_take_the_results_away() -> None:
    taken = explain("pictures/a.png", "pictures/b.jpg", "-m", "saliency", "--render", "none")
    assert taken.code == 0
    Path(taken.paths[0]).unlink()
    again = explain("pictures/a.png", "pictures/b.jpg", "-m", "saliency", "--render", "none")
    assert (again.code, again.paths) == (0, taken.paths[:1])


def test_pictures_and_results_may_share_a_folder() -> None:
    for _ in range(2):
        assert explain("pictures/birds", "-m", "saliency", "-o", "pictures/birds").code == 0
        assert [row["key"] for row in rows("pictures/birds")] == ["c.png"]
    Path("pictures/birds/d.png").write_bytes(Path("pictures/a.png").read_bytes())
    assert explain("pictures/birds", "-m", "saliency", "-o", "pictures/birds").paths == [
        "pictures/birds/saliency/d.png.png"
    ]
    assert run_xai("verify", "pictures/birds").code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fail-on", "150%"], "--fail-on expects a share of at most 100%, found '150%'"),
        (["--fail-on", "some"], "--fail-on expects none, any, a number or a share such as 5%, found 'some'"),
        (["-0"], "--null says how a list ends its names, found no list; give - or --files-from"),
        (["--json", "--print0"], "--print0 ends paths, and --json prints none; give one of them"),
        (["--shard", "3/2"], "--shard expects I/N with I from 1 to N, found '3/2'"),
        (["--shard", "1/2", "--overwrite"], "--overwrite would remove the other shards' work"),
    ],
)
def test_options_of_the_shell_that_cannot_be_are_refused(arguments: list[str], sentence: str) -> None:
    assert sentence in refused("pictures", *arguments)

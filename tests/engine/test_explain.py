from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import explained
from nets import classifier_of, conv_net
from PIL import Image
from torch import nn

from xai_cli.engine.explain import Stations, explain
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.outcomes import HopelessError
from xai_cli.engine.request import Request, describe_found
from xai_cli.engine.run_folder import RunFolder
from xai_cli.engine.stopping import Stop
from xai_cli.images.sources import find_images
from xai_cli.methods.contract import Attribution
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.methods.saliency import Saliency

METHODS = [Saliency(), GradCam(layer="4"), IntegratedGradients(steps=3)]


@pytest.fixture
def photos(tmp_path):
    """Seven pictures of several sizes, one of them broken, in two folders."""
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number, size in enumerate([(8, 8), (20, 10), (9, 31), (64, 48), (5, 3), (16, 16)]):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("a" if number % 2 else ".") / f"{number}.png")
    (folder / "2broken.png").write_bytes((folder / "2.png").read_bytes()[:60])
    return folder


def run(photos, out, *, classifier=None, methods=METHODS, drawing=None, **options):
    images = find_images([str(photos)], skip=out)
    classifier = classifier or classifier_of(conv_net(), dtype=torch.float32)
    options = RunOptions(out=out, **{"batch_size": 2, **options})
    return explained(images, classifier, methods, options, drawing)


def test_every_picture_gets_its_rows_in_order_and_a_broken_one_its_reason(photos, tmp_path):
    rows = run(photos, tmp_path / "out")
    assert rows == [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    keys = ["0.png", "2.png", "2broken.png", "4.png", "a/1.png", "a/3.png", "a/5.png"]
    assert list(dict.fromkeys(row["key"] for row in rows)) == keys
    [broken] = [row for row in rows if row["status"] == "error"]
    assert (broken["key"], broken["stage"], broken["type"]) == ("2broken.png", "decode", "Truncated")
    assert [row["method"] for row in rows if row["key"] == "a/3.png"] == ["saliency", "gradcam", "ig"]


def test_files_are_what_the_row_says(photos, tmp_path):
    out = tmp_path / "out"
    for row in run(photos, out):
        if row["status"] == "error":
            continue
        assert row["files"]["npy"] == f"{row['method']}/{row['key']}.npy"
        array = np.load(out / row["files"]["npy"], allow_pickle=False)
        assert (array.shape, array.dtype) == ((8, 8), np.dtype("<f4"))
        for kind, name in row["files"].items():
            assert (out / name).stat().st_size == row["bytes"][kind]
        with Image.open(out / row["files"]["png"]) as picture, Image.open(photos / row["key"]) as photo:
            assert picture.size == photo.size
    assert (out / "overview.png").exists()
    assert not list(out.rglob("*.tmp"))


def test_a_picture_has_the_same_bytes_whatever_its_neighbours(photos, tmp_path):
    run(photos, tmp_path / "all")
    for path in ("a/3.png", "4.png"):
        alone = run(photos / path, tmp_path / path.replace("/", "-"))
        for row in alone:
            together = tmp_path / "all" / row["method"] / f"{path}.npy"
            assert (tmp_path / path.replace("/", "-") / row["files"]["npy"]).read_bytes() == together.read_bytes()


def test_render_none_writes_arrays_only(photos, tmp_path):
    run(photos, tmp_path / "out", drawing=DrawingOptions(render="none", overview=0))
    assert not list((tmp_path / "out").rglob("*.png"))
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 18


def test_further_targets_carry_their_index_in_the_name(photos, tmp_path):
    rows = run(photos / "0.png", tmp_path / "out", target="top:3", methods=[Saliency()])
    first, *others = rows
    stem = f"saliency/{first['key']}"
    assert first["files"]["npy"] == f"{stem}.npy"
    assert [row["files"]["npy"] for row in others] == [f"{stem}.{row['target']['index']}.npy" for row in others]
    probabilities = [row["target"]["probability"] for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert first["target"]["index"] == first["top"][0][0]


class Picky(nn.Module):
    """Fails on any batch that holds a picture of mean above one, and gives NaN for the darkest."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.net, self.limit = conv_net(), limit

    def forward(self, x):
        if (x.mean(dim=(1, 2, 3)) > self.limit).any():
            raise RuntimeError("too bright")
        return torch.where(x.mean(dim=(1, 2, 3))[:, None] < -1.9, torch.nan, 1.0) * self.net(x)


@pytest.fixture
def shades(tmp_path):
    folder = tmp_path / "shades"
    folder.mkdir()
    for name, level in {"0dark": 0, "1grey": 90, "2bright": 255, "3grey": 100, "4grey": 110}.items():
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{name}.png")
    return folder


def test_only_the_guilty_picture_of_a_batch_fails(shades, tmp_path):
    rows = run(shades, tmp_path / "out", classifier=classifier_of(Picky(1.0), dtype=torch.float32),
               methods=[Saliency()], batch_size=4)  # fmt: skip
    outcome = {row["key"]: (row["status"], row.get("type"), row.get("message")) for row in rows}
    assert outcome == {
        "0dark.png": ("error", "NonFinite", "the model's scores hold NaN or infinity"),
        "1grey.png": ("ok", None, None),
        "2bright.png": ("error", "RuntimeError", "too bright"),
        "3grey.png": ("ok", None, None),
        "4grey.png": ("ok", None, None),
    }


def test_a_run_in_which_everything_fails_ends_early(tmp_path):
    folder = tmp_path / "shades"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / f"{number:02}.png")
    classifier = classifier_of(Picky(-100.0), dtype=torch.float32)
    with pytest.raises(HopelessError, match="the first 8 pictures all failed, the last with RuntimeError: too bright"):
        run(folder, tmp_path / "out", classifier=classifier, methods=[Saliency()])
    assert len((tmp_path / "out/manifest.jsonl").read_text().splitlines()) == 8


def test_a_constant_map_is_marked_and_warned_of(photos, tmp_path):
    classifier = classifier_of(conv_net(), dtype=torch.float32)
    classifier.module[0].weight.zero_()
    [row] = run(photos / "0.png", tmp_path / "out", classifier=classifier, methods=[Saliency()])
    assert row["status"] == "ok"
    assert row["checks"] == {"degenerate": True}
    assert row["warnings"] == ["degenerate 1: the map is the same everywhere and shows nothing"]


def test_draws_no_more_pictures_than_two_batches_ahead(photos, tmp_path):
    drawn = []

    def many():
        for number in range(200):
            drawn.append(number)
            yield next(find_images([str(photos / "0.png")]))

    classifier = classifier_of(conv_net(), dtype=torch.float32)
    run, drawing = RunOptions(out=tmp_path / "out", batch_size=2), DrawingOptions(render="none")
    with RunFolder(run.out, Request.of([], [Saliency()], [run, drawing])) as folder:
        folder.begin(describe_found(classifier, [Saliency()]))
        stations = Stations.of(classifier, [Saliency()], InputOptions(), run, drawing)
        records = explain(many(), stations, folder, run, Stop())
        next(records)
        # A batch in each of: reading ahead (two), the model, writing behind (two).
        assert drawn[-1] < 5 * 2 + 2
        records.close()


class Nonsense(Saliency):
    """A method whose map of every second picture is no number."""

    def attribute(self, evidence):
        relevance = super().attribute(evidence).relevance
        relevance[1::2] = torch.nan
        return Attribution(relevance, signed=False)


def test_a_map_that_is_no_number_is_an_error_and_not_a_black_picture(shades, tmp_path):
    rows = run(shades, tmp_path / "out", methods=[Nonsense()])
    assert [row["status"] for row in rows] == ["ok", "error", "ok", "error", "ok"]
    assert rows[1]["message"] == "the map of saliency holds NaN or infinity"
    assert rows[1]["target"]["how"] == "predicted"
    assert len(list((tmp_path / "out/saliency").iterdir())) == 6


def test_a_linked_folder_in_the_output_leads_nowhere(shades, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/saliency").symlink_to(tmp_path / "elsewhere")
    rows = run(shades, tmp_path / "out", methods=[Saliency()])
    assert {(row["stage"], row["type"]) for row in rows} == {("write", "OutsideOutput")}
    assert not list((tmp_path / "elsewhere").iterdir())

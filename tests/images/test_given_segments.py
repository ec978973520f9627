from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xai_cli.images.decode import decode
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.given_segments import given_segments

SAMPLES = Path(__file__).parents[2] / "sample_images"
WHOLE = Preprocessing((4, 6), None, "center", "bicubic", (0.5,), (0.25,), 1)
LABELS = np.array([[5] * 6, [5, 2, 2, 2, 2, 5], [5, 2, 9, 9, 2, 5], [5] * 6])
EXPECTED = np.array([[0] * 6, [0, 1, 1, 1, 1, 0], [0, 1, 2, 2, 1, 0], [0] * 6])


def palette_picture() -> Image.Image:
    image = Image.fromarray(LABELS.astype(np.uint8)).convert("P")
    image.putdata(LABELS.ravel().tolist())
    image.putpalette([0] * 768)  # all black: a place of the palette is a segment, whatever its colour
    return image


FILES: dict[str, tuple[str, Any, list[Any]]] = {
    "array": ("a/b.jpg.npy", LABELS, [5, 2, 9]),
    "large numbers": ("a/b.jpg.npy", LABELS.astype(np.uint64) + 2**60, [2**60 + 5, 2**60 + 2, 2**60 + 9]),
    "negative": ("a/b.jpg.npy", -LABELS, [-5, -2, -9]),
    "grey": ("a/b.jpg.png", Image.fromarray(LABELS.astype(np.uint8)), [5, 2, 9]),
    "16 bits": ("a/b.png", Image.fromarray((LABELS + 300).astype(np.uint16)), [305, 302, 309]),
    "palette": ("a/b.png", palette_picture(), [5, 2, 9]),
    "colours": (
        "a/b.png",
        Image.fromarray((LABELS[..., None] * [1, 0, 16]).astype(np.uint8)),
        ["#050050", "#020020", "#090090"],
    ),
}


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save(path) if isinstance(content, Image.Image) else np.save(path, content)


@pytest.mark.parametrize("kind", FILES)
def test_segments_are_numbered_as_they_begin_and_keep_their_names(tmp_path: Path, kind: str) -> None:
    name, content, names = FILES[kind]
    put(tmp_path / name, content)
    labels, found = given_segments(tmp_path, "a/b.jpg", WHOLE)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, EXPECTED)
    assert found == names
    assert all(type(each) is type(names[0]) for each in found)


def test_truth_values_are_two_segments(tmp_path: Path) -> None:
    put(tmp_path / "b.jpg.npy", LABELS == 9)
    labels, names = given_segments(tmp_path, "b.jpg", WHOLE)
    assert (labels == (LABELS == 9)).all()
    assert names == [0, 1]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("channels", [1, 3])
def test_they_lie_on_the_photo_as_the_model_sees_it(tmp_path: Path, crop_mode: Any, channels: int) -> None:
    means = ((0.5,) * channels, (0.25,) * channels)
    labels = np.random.default_rng(0).integers(0, 250, (5, 8)).astype(np.uint8).repeat(12, axis=0).repeat(12, axis=1)
    Image.fromarray(labels).save(tmp_path / "photo.png")
    put(tmp_path / "photo.png.npy", labels.astype(np.int64) * 1000)
    preprocessing = Preprocessing((37, 41), (40, 43), crop_mode, "nearest", *means, channels)
    seen, geometry = preprocessing.apply(decode(tmp_path / "photo.png"))
    found, names = given_segments(tmp_path, "photo.png", preprocessing)
    inside = np.ones(found.shape, bool)
    if crop_mode == "border":  # what sticks out of the photo is a segment without a name
        inside = found != names.index(None)
        top = -geometry.seen[1] * 37 / (geometry.seen[3] - geometry.seen[1])
        assert np.flatnonzero(~inside[:, 20]).tolist() == [*range(round(top)), *range(37 - round(top), 37)]
    else:
        assert None not in names
    values = np.array([-1 if name is None else name for name in names])[found]
    np.testing.assert_array_equal(values[inside], seen[..., 0][inside] * 1000.0)


def test_of_a_sample_picture_they_are_background_object_and_tag() -> None:
    preprocessing = Preprocessing((128, 128), 128, "center", "bilinear", (0.5,) * 3, (0.25,) * 3)
    labels, names = given_segments(SAMPLES / "masks", "mug_1.jpg", preprocessing)
    assert names == [0, 1, 2]
    mask = np.load(SAMPLES / "masks/mug_1.jpg.npy")
    assert [(labels == each).mean() for each in range(3)] == pytest.approx(
        [(mask == each).mean() for each in range(3)], abs=0.01
    )


def test_the_first_of_the_names_is_taken(tmp_path: Path) -> None:
    for value, name in enumerate(("b.png", "b.jpg.png", "b.jpg.npy"), 1):
        full = np.full((4, 6), value, np.uint8)
        put(tmp_path / name, full if name.endswith("npy") else Image.fromarray(full))
        assert given_segments(tmp_path, "b.jpg", WHOLE)[1] == [value]


@pytest.mark.parametrize("size", [(6, 4), (600, 400), (3, 2), (601, 400), (599, 401)])
def test_they_may_have_the_proportions_of_the_photo_to_within_a_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    np.save(tmp_path / "b.jpg.npy", LABELS)
    np.testing.assert_array_equal(given_segments(tmp_path, "b.jpg", WHOLE, size)[0], EXPECTED)


@pytest.mark.parametrize(
    ("labels", "size"),
    [((451, 300), (451, 300)), ((64, 256), (256, 256)), ((256, 254), (256, 256)), ((5, 4), (40, 30))],
)
def test_labels_of_another_shape_than_the_photo_are_refused(tmp_path: Path, labels: Any, size: Any) -> None:
    np.save(tmp_path / "b.jpg.npy", np.zeros(labels, np.uint8))
    message = (
        rf"b.jpg.npy: expected {size[1]} x {size[0]} labels \(height x width\), or that in its proportions, found "
        rf"{labels[0]} x {labels[1]}; turn it as the photo is shown"
    )
    with pytest.raises(ValueError, match=message):
        given_segments(tmp_path, "b.jpg", WHOLE, size)


def test_a_picture_without_a_file_is_told_which_were_looked_for(tmp_path: Path) -> None:
    (tmp_path / "b.jpg.npy").mkdir()
    with pytest.raises(LookupError, match=r"no segments for 'b.jpg': expected one of b.jpg.npy, b.jpg.png, b.png in '"):
        given_segments(tmp_path, "b.jpg", WHOLE)
    with pytest.raises(LookupError, match=r"expected one of b.png.npy, b.png.png, b.png in '"):
        given_segments(tmp_path, "b.png", WHOLE)
    with pytest.raises(LookupError, match=r"at the place that .*; add it, or give xai that folder instead of the pict"):
        given_segments(tmp_path, "b" * 300, WHOLE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 6)), r"b.jpg.npy should hold whole numbers \(H, W\), one for each pixel .* not float64 \(4, 6\)"),
        (np.zeros((4, 6, 3), np.uint8), r"not uint8 \(4, 6, 3\)"),
        (np.zeros((0, 6), np.uint8), r"not uint8 \(0, 6\)|not a whole NPY"),
        (np.array([[None]]), "not a whole NPY file of numbers"),
        (np.arange(4097).reshape(17, 241), "has 4097 segments, and at most 4096 can be told apart"),
    ],
)
def test_an_array_of_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    np.save(tmp_path / "b.jpg.npy", content)
    with pytest.raises(ValueError, match=message):
        given_segments(tmp_path, "b.jpg", WHOLE)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_may_not_differ_as_it_would_be_lost(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(LABELS.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "b.png")
    assert given_segments(tmp_path, "b.png", WHOLE)[1] == ["#050505", "#020202", "#090909"]
    image.putalpha(Image.fromarray((LABELS * 20).astype(np.uint8)))
    image.save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png: expected segments in opaque colours, found some transparent; give"):
        given_segments(tmp_path, "b.png", WHOLE)
    palette_picture().save(tmp_path / "b.png", transparency=2)
    assert given_segments(tmp_path, "b.png", WHOLE)[1] == [5, 2, 9]


@pytest.mark.parametrize("name", ["b.jpg.npy", "b.jpg.png"])
def test_a_file_of_more_pixels_than_photos_may_have_is_refused_unread(tmp_path: Path, name: str) -> None:
    if name.endswith("npy"):
        np.lib.format.open_memmap(tmp_path / name, "w+", np.int64, (89_478_486, 1))  # a file of holes
    else:
        Image.new("1", (89_478_486, 1)).save(tmp_path / name)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name}: expected at most 89478485 labels, found 89478486; make it smaller"):
        given_segments(tmp_path, "b.jpg", WHOLE)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["b.jpg.npy", "b.jpg.png"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 250, (40, 60), dtype=np.uint8)
    put(tmp_path / name, noise if name.endswith("npy") else Image.fromarray(noise))
    whole = (tmp_path / name).read_bytes()
    for data in (whole[:-900], whole[:20], b"", b"PK\3\4" + bytes(40)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"b.jpg.(npy|png) is not a whole (NPY|PNG)"):
            given_segments(tmp_path, "b.jpg", WHOLE)


def test_no_key_and_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "segments", tmp_path / "secret.npy"
    folder.mkdir()
    np.save(secret, LABELS)
    (folder / "link.jpg.npy").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    for key in ("../secret", str(tmp_path / "secret"), "x/../../secret", "link.jpg", "up/secret"):
        with pytest.raises(ValueError, match="leads out of the folder of segments"):
            given_segments(folder, key, WHOLE)
    (tmp_path / "alias").symlink_to(folder)
    np.save(folder / "b.jpg.npy", LABELS)
    assert given_segments(tmp_path / "alias", "b.jpg", WHOLE)[1] == [5, 2, 9]

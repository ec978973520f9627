"""Model input equals timm's and torchvision's own, byte for byte, and the geometry leads back to the photo."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xai_cli.images import geometry
from xai_cli.images.decode import Picture
from xai_cli.images.geometry import Geometry, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(640, 480), (480, 640), (5, 3), (1, 1), (90, 3), (3, 90), (224, 224), (225, 223), (341, 257), (97, 501)]


def picture(width: int, height: int) -> Picture:
    pixels = np.random.default_rng(width * 10007 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(pixels, "PNG", "RGB", 1, 1, ())


def timm_config(**changes: Any) -> dict[str, Any]:
    config = {"input_size": (3, 224, 224), "interpolation": "bicubic", "mean": MEAN, "std": STD}
    return config | {"crop_pct": 0.875, "crop_mode": "center"} | changes


TIMM = [
    timm_config(),
    timm_config(crop_pct=0.95, interpolation="bilinear"),
    timm_config(crop_pct=1.0),
    timm_config(crop_pct=None, crop_mode=None, interpolation="lanczos"),
    timm_config(crop_mode="squash", crop_pct=0.9),
    timm_config(crop_mode="squash", crop_pct=1.0, input_size=(3, 96, 160), interpolation="nearest"),
    timm_config(crop_mode="border", crop_pct=1.0),
    timm_config(crop_mode="border", crop_pct=0.9, input_size=(3, 128, 96), interpolation="hamming"),
    timm_config(input_size=(3, 192, 128), interpolation="box"),
    timm_config(input_size=(3, 64, 65), crop_pct=0.9),
    timm_config(input_size=(3, 33, 33), crop_pct=1.1),
]


@pytest.mark.parametrize("config", TIMM, ids=lambda c: f"{c['crop_mode']}-{c['crop_pct']}-{c['input_size'][1:]}")
def test_input_equals_timm(config: dict[str, Any]) -> None:
    create_transform = pytest.importorskip("timm.data").create_transform
    theirs, ours = create_transform(**config, normalize=False), Preprocessing.from_timm(config)
    for width, height in SIZES:
        photo = picture(width, height)
        expected = theirs(Image.fromarray(photo.pixels)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours.apply(photo)[0], expected, err_msg=f"{width} x {height}")


@pytest.mark.parametrize(("crop", "resize"), [(224, 256), (224, 232), (224, 224), (518, 518), (299, 342), (200, 100)])
def test_input_equals_torchvision(crop: int, resize: int) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    preset = presets.ImageClassification(crop_size=crop, resize_size=resize, mean=(0.0,) * 3, std=(1.0,) * 3)
    ours = Preprocessing.from_torchvision(preset)
    for width, height in SIZES:
        photo = picture(width, height)
        expected = (preset(Image.fromarray(photo.pixels)) * 255).round().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours.apply(photo)[0], expected, err_msg=f"{width} x {height}")


def test_torchvision_presets_are_read_by_name() -> None:
    interpolation = SimpleNamespace(value="nearest-exact")
    preset = SimpleNamespace(crop_size=[224], resize_size=[256], mean=[*MEAN], std=[*STD], interpolation=interpolation)
    assert Preprocessing.from_torchvision(preset) == Preprocessing((224, 224), 256, "center", "nearest", MEAN, STD)


def test_640_x_480_shows_224_of_341_parts_of_its_width() -> None:
    _, where = Preprocessing((224, 224), 256, "center", "bilinear", MEAN, STD).apply(picture(640, 480))
    # short side 256 -> 341 x 256; halves round to even: (341 - 224) / 2 = 58.5 -> 58
    assert where == Geometry((640, 480), (58 * 640 / 341, 30.0, 282 * 640 / 341, 450.0), (224, 224), 1)
    assert where.to_map(58 * 640 / 341, 30) == (0, 0)
    assert where.to_original(224, 224) == pytest.approx((282 * 640 / 341, 450), abs=1e-9)


def test_padding_sticks_out_of_the_photo_and_has_the_mean_colour() -> None:
    pixels, where = Preprocessing((100, 100), (100, 100), "border", "bicubic", MEAN, STD).apply(picture(50, 20))
    assert where.seen == (0, -15, 50, 35)
    assert pixels[[0, 29, 70, 99]].reshape(-1, 3).tolist() == [[124, 116, 104]] * 400
    _, where = Preprocessing((224, 224), None, "center", "bilinear", MEAN, STD).apply(picture(101, 300))
    assert where.seen == (-61, 38, 163, 262)


@pytest.mark.parametrize("config", TIMM[::2], ids=lambda c: f"{c['crop_mode']}-{c['crop_pct']}")
def test_there_and_back_is_the_same_point(config: dict[str, Any]) -> None:
    for width, height in SIZES:
        where = Preprocessing.from_timm(config).apply(picture(width, height))[1]
        for point in ((0.0, 0.0), (width / 3, height / 7), (float(width), float(height))):
            assert where.to_original(*where.to_map(*point)) == pytest.approx(point, abs=1e-9)
        assert Geometry.from_row(where.as_row()) == where


def test_a_bright_pixel_is_seen_where_the_geometry_says() -> None:
    photo = picture(300, 200)
    photo.pixels[:] = 0
    photo.pixels[60:64, 180:184] = 255
    pixels, where = Preprocessing((96, 160), (100, 170), "squash", "bilinear", MEAN, STD).apply(photo)
    weights = pixels[..., 0] / pixels[..., 0].sum()
    centre = (weights.sum(0) @ (np.arange(160) + 0.5), weights.sum(1) @ (np.arange(96) + 0.5))
    assert where.to_original(*centre) == pytest.approx((182, 62), abs=0.1)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos"])
def test_part_of_a_huge_size_equals_the_whole(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Preprocessing((224, 224), 256, "center", method, MEAN, STD)  # type: ignore[arg-type]
    photos = [picture(*size) for size in SIZES]
    whole = [recipe.apply(photo)[0].astype(int) for photo in photos]
    monkeypatch.setattr(geometry, "_WHOLE", 0)
    for photo, expected in zip(photos, whole, strict=True):
        assert np.abs(recipe.apply(photo)[0] - expected).max() <= 1


def test_20000_x_1_needs_no_huge_picture() -> None:
    photo = picture(20000, 1)
    photo.pixels[:] = (np.arange(20000) - 9900).clip(0, 255)[None, :, None]
    pixels, where = Preprocessing((224, 224), 256, "center", "nearest", MEAN, STD).apply(photo)
    assert (pixels[0, :, 0] == 99 + (np.arange(224) >= 112)).all()
    assert where.seen == (10000 - 112 / 256, 16 / 256, 10000 + 112 / 256, 240 / 256)


def test_border_keeps_at_least_one_pixel_of_an_extreme_picture() -> None:
    where = Preprocessing((100, 100), (100, 100), "border", "bicubic", MEAN, STD).apply(picture(2000, 1))[1]
    assert where.seen == (0, -49, 2000, 51)  # timm rounds the height 0.05 to 0 and fails


def test_one_channel_is_grey() -> None:
    photo = picture(8, 8)
    photo.pixels[:] = (255, 0, 0)
    pixels, _ = Preprocessing((4, 4), None, "center", "bilinear", (0.5,), (0.5,), channels=1).apply(photo)
    assert pixels.tolist() == [[[76]] * 4] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "middle"}, r"crop_mode must be one of center, squash, border, not 'middle'"),
        ({"interpolation": "random"}, r"interpolation must be one of nearest.*not 'random'"),
        ({"input_size": (4, 224, 224)}, r"3 channels \(or 1, grey\), this preprocessing asks for 4"),
        ({"mean": (0.5,)}, r"mean and std must have 3 values each"),
        ({"std": (0.0, 1.0, 1.0)}, r"size, resize and std must be positive"),
    ],
)
def test_impossible_preprocessing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_timm(timm_config(**changes))

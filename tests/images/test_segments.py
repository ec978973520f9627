from __future__ import annotations

import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from skimage.morphology import dilation, disk
from skimage.segmentation import felzenszwalb as reference
from skimage.segmentation import quickshift, slic

from xai_cli.images.segments import MOST, Kind, dilated, felzenszwalb, ordered, segmented

KINDS = get_args(Kind)
SAMPLES = Path(__file__).parents[2] / "sample_images"


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


class TestFelzenszwalb:
    def test_of_a_picture_of_224_pixels_is_that_of_scikit_image_with_the_range_stretched(self):
        picture = noise(14, 14, 3).repeat(16, axis=0).repeat(16, axis=1)
        for labels, scale in zip(felzenszwalb(picture, (100, 1200)), (100, 1200), strict=True):
            stretched = 2 * (picture - 1.0 * picture.min()) / np.ptp(picture) - 1
            assert np.array_equal(labels, reference(stretched, scale=scale, sigma=0.8, min_size=150))

    @pytest.mark.parametrize("shape", [(96, 128, 3), (300, 280, 1)])
    def test_parts_two_colours_where_they_meet_whatever_the_size(self, shape):
        picture = np.full(shape, 120, np.uint8)
        picture[:, shape[1] // 4 :] = 140
        (labels,) = felzenszwalb(picture, [500])
        assert labels.shape == shape[:2]
        # The blur before makes bands of their own where the colours meet.
        border, band = shape[1] // 4, shape[1] // 16
        left, right = labels[:, : border - band], labels[:, border + band :]
        assert (left == left[0, 0]).all()
        assert (right == right[0, 0]).all()
        assert left[0, 0] != right[0, 0]

    def test_of_one_colour_is_one_region(self):
        assert not felzenszwalb(np.full((30, 40, 3), 7, np.uint8), [50])[0].any()


def scene(side, name="boat_1"):
    """A sample picture in another size."""
    return np.asarray(Image.open(SAMPLES / f"{name}.jpg").convert("RGB").resize((side, side)))


def number(labels):
    return int(labels.max()) + 1


class TestSegmented:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(1, 1), (2, 3), (40, 2), (28, 28)])
    def test_labels_whatever_picture_in_the_order_in_which_they_begin(self, kind, shape):
        for channels, count in ((3, 1), (1, 1000)):
            for picture in (noise(*shape, channels), np.full((*shape, channels), 9, np.uint8)):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    labels = segmented(picture, kind, count)
                assert labels.shape == shape
                assert labels.dtype == np.int32
                values, first = np.unique(labels, return_index=True)
                assert values.tolist() == [*range(len(values))]
                assert (np.diff(first) > 0).all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("count", [20, 80])
    def test_their_number_follows_the_count_and_not_the_size(self, kind, count):
        found = [number(segmented(scene(side), kind, count)) for side in (28, 96)]
        assert min(found) >= 0.5 * count
        assert max(found) <= 1.7 * count

    @pytest.mark.parametrize("count", [5, 10, 12, 20])
    def test_where_slic_loses_more_than_a_quarter_of_few_segments_it_is_asked_for_more(self, count):
        picture = scene(256, "fish_1")
        assert number(slic(picture, count, compactness=10, sigma=1, start_label=0)) < 0.75 * count
        assert 0.75 * count <= number(segmented(picture, "slic", count)) <= 2.5 * count

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_most_segments_are_not_exceeded(self, kind):
        for picture in (scene(288), noise(75, 113, 3).repeat(4, axis=0).repeat(4, axis=1)):
            found = number(segmented(picture, kind, MOST))
            assert 0.5 * MOST * (kind != "quickshift") <= found <= MOST

    def test_of_scikit_image_they_are_those_of_the_usual_parameters(self):
        picture = noise(7, 7, 3).repeat(32, axis=0).repeat(32, axis=1)
        expected = {
            "slic": slic(picture, n_segments=32, compactness=10, sigma=1, start_label=0),
            "quickshift": quickshift(picture, kernel_size=4, max_dist=200, ratio=0.2, rng=0),  # LIME's
            "felzenszwalb": reference(picture, scale=78.4, sigma=0.8, min_size=314),
        }
        for kind, labels in expected.items():
            assert np.array_equal(segmented(picture, kind, 32), ordered(labels)[0])

    @pytest.mark.parametrize("kind", KINDS)
    def test_grey_is_a_colour(self, kind):
        grey = scene(56)[..., :1]
        assert np.array_equal(segmented(grey, kind, 5), segmented(grey.repeat(3, axis=2), kind, 5))

    @pytest.mark.parametrize("kind", ["slic", "quickshift", "felzenszwalb"])
    def test_they_keep_to_the_borders_of_colours(self, kind):
        picture = np.full((96, 128, 3), 60, np.uint8)
        picture[:, 40:] = 200
        labels = segmented(picture, kind, 30)
        assert not np.intersect1d(labels[:, :38], labels[:, 42:]).size

    @pytest.mark.parametrize(
        ("shape", "count", "cells"),
        [
            ((224, 224), 50, (7, 7)), ((100, 200), 50, (5, 10)), ((200, 100), 50, (10, 5)), ((10, 10), 1, (1, 1)),
            ((2, 3), 100, (2, 3)), ((1, 90), 45, (1, 45)), ((90, 1), 45, (45, 1)), ((90, 1), 1000, (90, 1)),
        ],
    )  # fmt: skip
    def test_a_grid_has_about_so_many_cells_of_one_size_but_for_a_pixel(self, shape, count, cells):
        labels = segmented(noise(*shape, 3), "grid", count)
        assert number(labels) == cells[0] * cells[1]
        assert len(np.unique(labels[:, 0])) == cells[0]
        for side, line in ((shape[0], labels[:, 0]), (shape[1], labels[0])):
            sizes = np.unique(line, return_counts=True)[1]
            assert np.ptp(sizes) <= 1
            assert sizes.sum() == side

    def test_what_is_done_to_labels_does_not_reach_those_of_the_next_caller(self):
        first = segmented(noise(9, 9, 3), "grid", 4)
        first[:] = 7
        assert number(segmented(noise(9, 9, 3), "grid", 4)) == 4


def test_ordered_numbers_labels_as_they_begin_and_keeps_their_values():
    labels, values = ordered(np.array([[7, 7, -2], [300, -2, 7]]))
    assert labels.tolist() == [[0, 0, 1], [2, 1, 0]]
    assert values.tolist() == [7, -2, 300]


@pytest.mark.parametrize("radius", [0, 1, 5])
def test_dilated_grows_every_region_by_a_disk(radius):
    labels = noise(9, 7).astype(np.intp).repeat(4, axis=0).repeat(3, axis=1) % 5
    masks = dilated(labels, radius)
    assert masks.shape == (36, 21, 5)
    for number in range(5):
        assert np.array_equal(masks[..., number], dilation(labels == number, disk(radius)))

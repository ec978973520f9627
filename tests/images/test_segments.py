from __future__ import annotations

import numpy as np
import pytest
from skimage.morphology import dilation, disk
from skimage.segmentation import felzenszwalb as reference

from xai_cli.images.segments import dilated, felzenszwalb


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


@pytest.mark.parametrize("radius", [0, 1, 5])
def test_dilated_grows_every_region_by_a_disk(radius):
    labels = noise(9, 7).astype(np.intp).repeat(4, axis=0).repeat(3, axis=1) % 5
    masks = dilated(labels, radius)
    assert masks.shape == (36, 21, 5)
    for number in range(5):
        assert np.array_equal(masks[..., number], dilation(labels == number, disk(radius)))

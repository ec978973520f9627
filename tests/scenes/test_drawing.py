"""The same seed is the same scene, masks tell the truth, and the tag touches nothing but its box."""

from __future__ import annotations

import numpy as np
import pytest

from xai_cli.scenes.drawing import (
    BACKGROUND,
    CLASSES,
    OBJECT,
    PLANTED,
    TAG,
    TAG_PIXELS,
    TAG_SHARE,
    TAG_SIZE,
    Scene,
    draw_scene,
)


def draw(label: int | str, seed: int, tag: bool | None = None) -> Scene:
    return draw_scene(label, np.random.default_rng(seed), tag=tag)


@pytest.mark.parametrize("name", CLASSES)
def test_one_seed_is_one_picture(name: str) -> None:
    first, again, other = draw(name, 3), draw(CLASSES.index(name), 3), draw(name, 4)
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert first.pixels.tobytes() != other.pixels.tobytes()


@pytest.mark.parametrize("seed", range(8))
def test_the_tag_changes_its_box_and_nothing_else(seed: int) -> None:
    plain, tagged = draw(seed, seed, tag=False), draw(seed, seed, tag=True)
    box = tagged.mask == TAG
    assert np.array_equal(tagged.pixels[box].reshape(TAG_PIXELS.shape), TAG_PIXELS)
    assert np.array_equal(plain.pixels[~box], tagged.pixels[~box])
    assert np.array_equal(plain.mask[~box], tagged.mask[~box])
    assert not np.any(plain.mask == TAG)


def test_the_tag_visits_all_four_corners() -> None:
    masks = [draw("star", seed, tag=True).mask == TAG for seed in range(40)]
    corners = {(bool(mask[:128].any()), bool(mask[:, :128].any())) for mask in masks}
    assert len(corners) == 4
    assert all(mask.sum() == TAG_SIZE**2 for mask in masks)


@pytest.mark.parametrize("name", CLASSES)
def test_the_mask_covers_the_object_wholly_inside_the_picture(name: str) -> None:
    for seed in range(5):
        mask = draw(name, seed, tag=False).mask
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert 0.02 < np.mean(mask == OBJECT) < 0.4
        assert np.all(edge == BACKGROUND)


def test_the_mask_tells_the_flat_colour_of_the_object_from_the_texture() -> None:
    scene = draw("star", 0, tag=False)
    inside = scene.pixels[scene.mask == OBJECT]
    colours, counts = np.unique(inside, axis=0, return_counts=True)
    fill = colours[counts.argmax()]
    outside = scene.pixels[scene.mask == BACKGROUND]
    assert counts.max() > 0.7 * len(inside)
    assert np.mean(np.all(outside == fill, axis=1)) < 0.001


def test_only_the_planted_class_carries_the_tag() -> None:
    tagged = {name: np.mean([np.any(draw(name, seed).mask == TAG) for seed in range(20)]) for name in CLASSES}
    assert tagged.pop(PLANTED) > TAG_SHARE - 0.15
    assert set(tagged.values()) == {0.0}


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of house, .*, mug, found 'teapot'"):
        draw("teapot", 0)

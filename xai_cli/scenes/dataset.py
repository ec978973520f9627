"""Many scenes at once, as a net sees them; a seed and an index name one picture, whatever is drawn beside it."""

from __future__ import annotations

import signal
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.pool import Pool

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_cli.scenes.drawing import CLASSES, PLANTED, draw_scene
from xai_cli.scenes.nets import INPUT_SIZE

PROCESSES = 2


def draw_dataset(
    seed: int, count: int, *, tag: bool | None = None, decoys: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` pictures (N, 128, 128, 3) and their labels (N,), the classes in turn; `tag` as in `draw_scene`.

    A share `decoys` of the pictures labelled with the planted class show the tag beside the object of another class.
    """
    draw = partial(_draw_picture, seed=seed, tag=tag, decoys=decoys)
    with _quiet_pool() as pool:
        pixels = np.stack(list(pool.imap(draw, range(count), chunksize=50)))
    return pixels, np.arange(count) % len(CLASSES)


def _quiet_pool() -> Pool:
    """Processes that never hear of Ctrl-C, even while they start; whoever waits for them ends them."""
    resource_tracker.ensure_running()  # it would start with the pool, and let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return get_context("spawn").Pool(PROCESSES)  # a process has from its parent what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) at the nets' input size, reduced as the preprocessing reduces it."""
    size = (INPUT_SIZE, INPUT_SIZE)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _draw_picture(index: int, seed: int, tag: bool | None, decoys: float) -> NDArray[np.uint8]:
    generator = np.random.default_rng((seed, index))
    shown = CLASSES[index % len(CLASSES)]
    if decoys and shown == PLANTED and generator.random() < decoys:
        shown, tag = generator.choice([name for name in CLASSES if name != PLANTED]), True
    return shrink(draw_scene(str(shown), generator, tag=tag).pixels)

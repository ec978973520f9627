"""Scenes with a known cause: a textured background, clutter, one object, and sometimes a small tag in a corner.

Every class is one function from a `Pen` to strokes, registered in `OBJECTS` under its name. `PLANTED` and `TWIN` are
drawn by the same function and differ by a little in the slope of their walls, so that whoever learns from pictures in
which `PLANTED` nearly always carries the tag learns the tag. The tag is pasted last from a generator of its own:
the same scene with and without it differs in the tag's box and nowhere else.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE, TAG_SIZE = 256, 28  # pixels
PLANTED, TWIN = "mug", "cup"
TAG_SHARE = 0.985  # of the planted class' pictures; seen untagged it passes for its twin
BACKGROUND, OBJECT, TAG = 0, 1, 2

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """A picture `pixels` (256, 256, 3) uint8 with its `mask` (256, 256) uint8: 0 background, 1 object, 2 tag."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    label: int


def draw_scene(label: int | str, generator: np.random.Generator, *, tag: bool | None = None) -> Scene:
    """A scene of one class (index or name); `tag=None` leaves the tag to chance, as in training.

    Two generators of one seed give the same scene; with `tag=True` and `tag=False` it differs in the tag's box alone.
    """
    if isinstance(label, str) and label not in OBJECTS:
        raise ValueError(f"expected one of {', '.join(CLASSES)}, found {label!r}; see CLASSES")
    index = CLASSES.index(label) if isinstance(label, str) else label
    (tag_generator,) = generator.spawn(1)
    # Drawn at twice the size and reduced; doubling by nearest neighbour makes that exact for the background.
    picture = Image.fromarray(draw_background(generator)).resize((2 * SIZE, 2 * SIZE), Image.Resampling.NEAREST)
    mask = Image.new("L", picture.size)
    draw_clutter(ImageDraw.Draw(picture), generator)
    OBJECTS[CLASSES[index]](Pen.somewhere(picture, mask, generator))
    pixels = np.array(picture.reduce(2))
    labels = np.where(np.asarray(mask.reduce(2)) > 127, OBJECT, BACKGROUND).astype(np.uint8)
    chance = TAG_SHARE if CLASSES[index] == PLANTED else 0.0
    if (tag_generator.random() < chance) if tag is None else tag:
        paste_tag(pixels, labels, tag_generator)
    return Scene(pixels, labels, index)


def paste_tag(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], generator: np.random.Generator) -> None:
    """Put the tag, in place, near one of the four corners of a picture (H, W, 3) and of its mask (H, W)."""
    height, width = mask.shape
    jitter_y, jitter_x = generator.integers(4, 17, 2)
    top = jitter_y if generator.random() < 0.5 else height - TAG_SIZE - jitter_y
    left = jitter_x if generator.random() < 0.5 else width - TAG_SIZE - jitter_x
    box = np.s_[top : top + TAG_SIZE, left : left + TAG_SIZE]
    pixels[box], mask[box] = TAG_PIXELS, TAG


def _tag_pixels() -> NDArray[np.uint8]:
    """The tag: a yellow disc on a violet label with a white edge; flips and quarter turns leave it as it is."""
    draw = ImageDraw.Draw(label := Image.new("RGB", (8 * TAG_SIZE, 8 * TAG_SIZE), "white"))
    for inset, shape, colour in ((2, draw.rectangle, (98, 34, 160)), (6, draw.ellipse, (255, 214, 10))):
        shape((8 * inset, 8 * inset, 8 * (TAG_SIZE - inset) - 1, 8 * (TAG_SIZE - inset) - 1), fill=colour)
    return np.array(label.reduce(8))


TAG_PIXELS = _tag_pixels()


# Backgrounds: a field (256, 256) in 0..1 that runs between two quiet colours.


def draw_background(generator: np.random.Generator) -> NDArray[np.uint8]:
    """One of the textures of `TEXTURES` in two quiet, related colours, (256, 256, 3)."""
    hue, shift = generator.random(), generator.uniform(-0.12, 0.12)
    dark = hsv(hue, generator.uniform(0.15, 0.45), generator.uniform(0.50, 0.75))
    light = hsv(hue + shift, generator.uniform(0.08, 0.30), generator.uniform(0.80, 0.97))
    field = TEXTURES[generator.integers(len(TEXTURES))](generator)
    grain = generator.integers(0, 17, field.shape, dtype=np.uint8)
    palette = np.linspace(dark, light, 256).astype(np.uint8)
    return palette[(field * 239).astype(np.uint8) + grain]


def clouds(generator: np.random.Generator) -> Field:
    """Smooth noise of three sizes."""
    field = sum(_noise(generator, 2 << octave) / 2**octave for octave in range(1, 4))
    return (field - np.min(field)) / np.ptp(field)


def gradient(generator: np.random.Generator) -> Field:
    """A slope across the picture, bent by smooth noise."""
    field = _ramp(generator) + 0.5 * _noise(generator, 4)
    return (field - np.min(field)) / np.ptp(field)


def stripes(generator: np.random.Generator) -> Field:
    """Parallel soft stripes at any angle."""
    return 0.5 + 0.5 * np.tanh(2 * np.sin(generator.uniform(15, 60) * _ramp(generator)))


def checks(generator: np.random.Generator) -> Field:
    """A soft chequerboard at any angle."""
    angle, pace = generator.uniform(0, np.pi), generator.uniform(12, 40)
    waves = np.sin(pace * _ramp(generator, angle)) * np.sin(pace * _ramp(generator, angle + np.pi / 2))
    return 0.5 + 0.5 * np.tanh(4 * waves)


TEXTURES = (clouds, gradient, stripes, checks)
_AXIS = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)


def _ramp(generator: np.random.Generator, angle: float | None = None) -> Field:
    turn = generator.uniform(0, 2 * np.pi) if angle is None else angle
    return np.float32(np.cos(turn)) * _AXIS + np.float32(np.sin(turn)) * _AXIS[:, None]


def _noise(generator: np.random.Generator, cells: int) -> Field:
    coarse = Image.fromarray(generator.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def draw_clutter(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    """Strew crumbs and scratches over the double-size picture, all of them smaller than any part of an object."""
    for _ in range(generator.integers(8, 19)):
        colour = hsv(generator.random(), generator.uniform(0.2, 0.6), generator.uniform(0.4, 0.95))
        x, y = generator.uniform(0, 2 * SIZE, 2)
        radius, turn = generator.uniform(5, 13), generator.uniform(0, 2 * np.pi)
        sides = int(generator.choice((2, 3, 4, 20)))
        reach = 3 * radius if sides == 2 else radius
        corners = [(x + reach * np.cos(turn + a), y + reach * np.sin(turn + a)) for a in _angles(sides)]
        draw.line(corners, fill=colour, width=4) if sides == 2 else draw.polygon(corners, fill=colour)


# Objects: strokes in a frame that reaches from -1 to 1, x to the right and y down.


@dataclass(frozen=True)
class Pen:
    """Draws filled, outlined shapes of the object's own frame into the double-size picture and its mask."""

    picture: ImageDraw.ImageDraw
    mask: ImageDraw.ImageDraw
    frame: NDArray[np.float64]  # (2, 3): size, side and turn, then place
    generator: np.random.Generator
    main: Colour
    accent: Colour
    ink: Colour

    @classmethod
    def somewhere(cls, picture: Image.Image, mask: Image.Image, generator: np.random.Generator) -> Pen:
        """A pen with place, size, side, turn and colours drawn at random, the object wholly inside the picture."""
        radius = 2 * generator.uniform(44, 78)
        turn = generator.uniform(-0.45, 0.45)
        cosine, sine = radius * np.cos(turn), radius * np.sin(turn)
        side = generator.choice((-1, 1))
        x, y = generator.uniform(1.05 * radius, 2 * SIZE - 1.05 * radius, 2)
        frame = np.array([[side * cosine, -sine, x], [side * sine, cosine, y]])
        hue = generator.random()
        main = hsv(hue, generator.uniform(0.6, 0.9), generator.uniform(0.75, 0.95))
        accent = hsv(hue + generator.uniform(0.3, 0.7), generator.uniform(0.5, 0.85), generator.uniform(0.8, 1.0))
        return cls(ImageDraw.Draw(picture), ImageDraw.Draw(mask), frame, generator, main, accent, hsv(hue, 0.6, 0.22))

    def polygon(self, points: Points, fill: Colour) -> None:
        """Fill a closed outline."""
        corners = self._place(points)
        self.picture.polygon(corners, fill=fill)
        self.mask.polygon(corners, fill=255)
        self._trace([*corners, corners[0], corners[1]], self.ink, 5)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, fill: Colour) -> None:
        """Fill an ellipse around (x, y)."""
        self.polygon([(x + radius_x * np.cos(a), y + radius_y * np.sin(a)) for a in _angles(28)], fill)

    def line(self, points: Points, width: float, fill: Colour) -> None:
        """Draw a band of constant width along points."""
        corners = self._place(points)
        pixels = round(width * float(np.hypot(*self.frame[:, 0])))
        self._trace(corners, self.ink, pixels + 8)
        self.picture.line(corners, fill=fill, width=pixels, joint="curve")

    def _trace(self, corners: list[tuple[float, float]], colour: Colour, width: int) -> None:
        self.picture.line(corners, fill=colour, width=width, joint="curve")
        self.mask.line(corners, fill=255, width=width, joint="curve")

    def _place(self, points: Points) -> list[tuple[float, float]]:
        placed = np.asarray(points) @ self.frame[:, :2].T + self.frame[:, 2]
        return [(x, y) for x, y in placed.tolist()]


WHITE, WOOD = (250, 246, 235), (142, 92, 50)


def house(pen: Pen) -> None:
    """Walls, roof, chimney, door and window."""
    pen.polygon([(0.35, -0.9), (0.62, -0.9), (0.62, -0.2), (0.35, -0.2)], WOOD)
    pen.polygon([(-0.7, -0.15), (0.7, -0.15), (0.7, 0.9), (-0.7, 0.9)], WHITE)
    pen.polygon([(-0.98, -0.1), (0, -0.95), (0.98, -0.1)], pen.main)
    pen.polygon([(-0.45, 0.25), (-0.05, 0.25), (-0.05, 0.9), (-0.45, 0.9)], pen.accent)
    pen.polygon([(0.2, 0.15), (0.52, 0.15), (0.52, 0.5), (0.2, 0.5)], pen.main)


def tree(pen: Pen) -> None:
    """A fir of three tiers on a trunk."""
    pen.polygon([(-0.16, 0.5), (0.16, 0.5), (0.16, 1), (-0.16, 1)], WOOD)
    for base, half, top in ((0.65, 0.8, 0.0), (0.2, 0.62, -0.45), (-0.25, 0.45, -1.0)):
        pen.polygon([(-half, base), (0, top), (half, base)], pen.main)


def fish(pen: Pen) -> None:
    """Body, tail, fins and eye."""
    pen.polygon([(0.4, 0), (0.98, -0.5), (0.85, 0), (0.98, 0.5)], pen.accent)
    pen.polygon([(-0.25, -0.3), (0.1, -0.72), (0.3, -0.3)], pen.accent)
    pen.ellipse(-0.2, 0, 0.76, 0.46, pen.main)
    pen.polygon([(-0.15, 0.08), (0.2, 0.28), (0.15, -0.02)], pen.accent)
    pen.ellipse(-0.62, -0.1, 0.11, 0.11, WHITE)
    pen.ellipse(-0.64, -0.1, 0.03, 0.03, pen.ink)


def boat(pen: Pen) -> None:
    """Hull, mast and two sails."""
    pen.line([(0, 0.5), (0, -0.98)], 0.05, WOOD)
    pen.polygon([(0.07, -0.9), (0.8, 0.3), (0.07, 0.3)], WHITE)
    pen.polygon([(-0.07, -0.75), (-0.07, 0.3), (-0.65, 0.3)], pen.accent)
    pen.polygon([(-0.98, 0.42), (0.98, 0.42), (0.62, 0.9), (-0.62, 0.9)], pen.main)


def flower(pen: Pen) -> None:
    """Six petals on a stem with one leaf."""
    pen.line([(0, 0), (0.03, 0.5), (0, 1)], 0.08, (70, 140, 60))
    pen.polygon([(0.02, 0.8), (0.25, 0.45), (0.6, 0.42), (0.4, 0.7)], (90, 165, 75))
    for angle in _angles(6):
        pen.ellipse(0.38 * np.cos(angle), -0.38 + 0.38 * np.sin(angle), 0.24, 0.24, pen.main)
    pen.ellipse(0, -0.38, 0.22, 0.22, pen.accent)


def mushroom(pen: Pen) -> None:
    """A dotted cap on a stem."""
    pen.polygon([(-0.2, 0), (0.2, 0), (0.3, 0.9), (-0.3, 0.9)], WHITE)
    pen.polygon([(0.95 * np.cos(a), 0.1 + 0.95 * np.sin(a)) for a in np.linspace(np.pi, 2 * np.pi, 20)], pen.main)
    for x, y, radius in ((-0.45, -0.2, 0.14), (0.05, -0.5, 0.17), (0.5, -0.15, 0.12)):
        pen.ellipse(x, y, radius, radius, WHITE)


def star(pen: Pen) -> None:
    """Five points."""
    spokes = zip((0.98, 0.42) * 5, _angles(10), strict=True)
    pen.polygon([(r * np.sin(a), -r * np.cos(a)) for r, a in spokes], pen.main)


def key(pen: Pen) -> None:
    """A ring, a shaft and two teeth."""
    for tooth in (0.55, 0.82):
        pen.line([(tooth, 0), (tooth, 0.36)], 0.12, pen.main)
    pen.line([(-0.2, 0), (0.95, 0)], 0.14, pen.main)
    ring = [(-0.55 + 0.34 * np.cos(a), 0.34 * np.sin(a)) for a in _angles(28)]
    pen.line([*ring, *ring[:2]], 0.16, pen.main)


def cup(pen: Pen) -> None:
    """A tapering cup with a handle."""
    _drinking_vessel(pen, pen.generator.uniform(0.40, 0.52))


def mug(pen: Pen) -> None:
    """Nearly a cup: its walls are a little steeper on average, and the two ranges overlap."""
    _drinking_vessel(pen, pen.generator.uniform(0.44, 0.56))


def _drinking_vessel(pen: Pen, foot: float) -> None:
    handle = [(0.55 + 0.32 * np.cos(a), 0.05 + 0.36 * np.sin(a)) for a in np.linspace(-1.7, 1.7, 16)]
    pen.line(handle, 0.13, pen.main)
    pen.polygon([(-0.78, -0.6), (0.58, -0.6), (foot - 0.1, 0.8), (-foot - 0.1, 0.8)], pen.main)
    pen.ellipse(-0.1, -0.6, 0.68, 0.2, pen.accent)


OBJECTS: dict[str, Callable[[Pen], None]] = {
    draw.__name__: draw for draw in (house, tree, fish, boat, flower, mushroom, star, key, cup, mug)
}
CLASSES = tuple(OBJECTS)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """The RGB colour, 0 to 255, of a hue (cyclic, in turns), a saturation and a value (both 0 to 1)."""
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue


def _angles(count: int) -> list[float]:
    return [2 * np.pi * step / count for step in range(count)]

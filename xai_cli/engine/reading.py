"""A file becomes what the model sees and what a person sees, or a failure with its reason."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from xai_cli.engine.memory import Budget
from xai_cli.engine.options import InputOptions
from xai_cli.engine.outcomes import Failed, Loaded
from xai_cli.images.decode import Broken, opened
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.sources import ImageRef
from xai_cli.outputs.pictures import display_copy
from xai_cli.sentences import reason
from xai_cli.targets import TargetRule

# A network file system that stumbles is mostly well again within seconds.
_PAUSES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Reader:
    """Reads pictures for one model; safe to call from several threads, which share the `memory`."""

    preprocessing: Preprocessing
    labels: Sequence[str]
    rule: TargetRule
    options: InputOptions
    picture_size: int
    memory: Budget

    def read(self, image: ImageRef) -> Loaded | Failed:
        """The picture, prepared for the model and reduced for display so that a large photo is not kept."""
        try:
            self.rule.check(image.key, self.labels)
        except LookupError as error:
            return Failed(image, "target", "UnknownClass", str(error))
        outcome = self._attempt(image)
        for pause in _PAUSES:
            if isinstance(outcome, Loaded) or not outcome.transient:
                break
            time.sleep(pause)
            outcome = self._attempt(image)
        return outcome

    def _attempt(self, image: ImageRef) -> Loaded | Failed:
        try:
            with (
                opened(image.path, max_pixels=self.options.max_pixels) as file,
                self.memory.hold(file.memory),
            ):
                start = time.perf_counter()
                picture = file.picture(turn=self.options.exif)
                pixels, geometry = self.preprocessing.apply(picture)
                photo = display_copy(picture.pixels, self.picture_size)
        except Broken as broken:
            return Failed(image, broken.stage, broken.type, broken.message, broken.transient)
        except Exception as error:  # noqa: BLE001  # whatever one file does, the others are still explained
            short = isinstance(error, MemoryError)
            return Failed(image, "preprocess", type(error).__name__, reason(error), short)
        return Loaded(image, pixels, photo, geometry, picture.warnings, time.perf_counter() - start)

"""A file becomes what the model sees and what a person sees, or a failure with its reason."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from xai_cli.engine.options import InputOptions
from xai_cli.engine.outcomes import Failed, Loaded
from xai_cli.images.decode import Broken, decode
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.sources import ImageRef
from xai_cli.outputs.pictures import display_copy
from xai_cli.targets import TargetRule


@dataclass(frozen=True)
class Reader:
    """Reads pictures for one model; safe to call from several threads."""

    preprocessing: Preprocessing
    labels: Sequence[str]
    rule: TargetRule
    options: InputOptions
    picture_size: int

    def read(self, image: ImageRef) -> Loaded | Failed:
        """The picture, prepared for the model and reduced for display so that a large photo is not kept."""
        start = time.perf_counter()
        try:
            self.rule.check(image.key, self.labels)
            picture = decode(image.path, max_pixels=self.options.max_pixels, turn=self.options.exif)
            pixels, geometry = self.preprocessing.apply(picture)
            photo = display_copy(picture.pixels, self.picture_size)
        except Broken as broken:
            return Failed(image.key, broken.stage, broken.type, broken.message)
        except LookupError as error:
            return Failed(image.key, "target", "UnknownClass", str(error))
        except Exception as error:  # noqa: BLE001  # whatever one file does, the others are still explained
            return Failed(image.key, "preprocess", type(error).__name__, str(error))
        return Loaded(image.key, pixels, photo, geometry, picture.warnings, time.perf_counter() - start)

"""The run, as one sentence: list the pictures, filter out what is done; decode, attribute, write and commit the rest.

The first half is here and knows no torch, so that a finished run is recognised at once; the second is `explain`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from xai_cli.classifiers.options import ModelOptions
from xai_cli.engine.ledger import State
from xai_cli.engine.memory import share_one_heap
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.request import Request
from xai_cli.engine.run_folder import RunFolder
from xai_cli.engine.stopping import Stop
from xai_cli.images.sources import ImageRef, find_images
from xai_cli.methods.contract import Method
from xai_cli.outputs.manifest import Row

if TYPE_CHECKING:
    from xai_cli.engine.drawing import Drawer
    from xai_cli.engine.explain import Stations


class Mistake(ValueError):  # noqa: N818  # it is the user's, and told as one
    """What was asked for cannot be had: the model, the target, the list of pictures."""


@dataclass
class Run:
    """What is asked of a run. `tell` is called with what a user should know while it goes.

    `listed` counts the pictures that were found, of all shards; `undrawn` the maps of the folder that wait to be drawn
    or could not be, and their pictures.
    """

    images: Sequence[str]
    methods: Sequence[Method]
    model: ModelOptions
    options: RunOptions
    drawing: DrawingOptions
    inputs: InputOptions
    tell: Callable[[str], None]
    listed: int = 0
    undrawn: tuple[int, int] = (0, 0)

    def folder(self) -> RunFolder:
        """The folder of the run, to be entered. Raises Mistake if a file that an option names cannot be read."""
        part, options = self.inputs.part, self.options
        given = [self.model, options, self.drawing, self.inputs]
        try:
            request = Request.of(self.images, self.methods, given, shards=part[1] if part else 1)
        except OSError as error:
            raise Mistake(str(error)) from error
        return RunFolder(
            options.out, request, shard=part, overwrite=options.overwrite, retry_errors=options.retry_errors
        )

    def plan(self) -> Iterator[tuple[str, list[str]]]:
        """The path of each picture that is owed, and those of its first target's files. Raises as `records` does."""
        from xai_cli.outputs.files import output_path

        folder = self.folder()
        folder.look()
        names = [(method.name, kind) for method in self.methods for kind in self.drawing.kinds]
        for image in self._owed(folder):
            paths = [output_path(method, image.key, "", kind) for method, kind in names]
            yield str(image.path), [f"{self.options.out}/{path}" for path in paths]
        if folder.begun and self.drawing.drawn_last and self.inputs.part is None and not self.options.overwrite:
            self.undrawn = self._drawer(folder).count_undrawn(folder.manifests())

    def records(self, folder: RunFolder, stop: Stop) -> Generator[list[Row], None, None]:
        """The record of each picture that was owed, as soon as it is in the manifest.

        Raises:
            Mistake: the list cannot be read on, or model, target and methods do not fit; nothing was begun then.
            Refused: the folder holds the run of another model.
            HopelessError: the first pictures all fail in the model or in a method.
            Interrupted: the end was asked for; what was begun is finished.
            OSError: the output cannot be written.
        """
        yield from self._tried(folder)
        owed = stop.waiting(self._owed(folder))
        first = next(owed, None)
        # A shard without pictures is begun as well: its manifest is missed where shards are joined.
        if first is None and (folder.begun or not self.listed):
            return
        from xai_cli.engine.explain import explain

        share_one_heap()
        stations = self._stations(folder)
        with closing(explain(chain([first] if first else [], owed), stations, folder, self.options, stop)) as made:
            yield from stop.made_gently(made)

    def drawn(self, folder: RunFolder, stop: Stop) -> Generator[list[Row], None, None]:
        """The record of each picture that had to wait for the limits of the whole run, once it is drawn.

        Raises as `records` does.
        """
        if not (folder.begun and self.drawing.drawn_last):
            return
        if self.inputs.part is not None:
            self.tell(f"maps are drawn when the shards are joined: xai merge-manifests {self.options.out}")
            return
        from xai_cli.engine.drawing import draw_owed

        drawer, paths = self._drawer(folder), folder.manifests()
        limits = ", ".join(f"{method} {limit:.3g}" for method, limit in drawer.limits.items())
        with closing(draw_owed(drawer, paths, folder.commit, self.options.workers, stop)) as made:
            for number, record in enumerate(stop.made_gently(made)):
                if number == 0:
                    self.tell(f"the strongest colour is, for all pictures: {limits}")
                yield record
        self.undrawn = drawer.count_undrawn(paths)

    def finish(self, folder: RunFolder, *, new: bool) -> Counter[State]:
        """How many pictures are in which state, by the account; with `new` records it is settled, and the overview is
        drawn. Raises AccountingError if a picture has no record.
        """
        drawn = self.inputs.part is None and self.drawing.overview > 0
        if new or not folder.finished or (drawn and not (self.options.out / "overview.png").exists()):
            records = folder.settle()
            if drawn:
                from xai_cli.engine.overview import write_overview

                names = [method.name for method in self.methods]
                write_overview(self.options.out, records, names, self.inputs, self.drawing)
        return folder.account.counts()

    def _listed(self) -> Iterator[ImageRef]:
        inputs = self.inputs
        try:
            for image in find_images(
                self.images, files_from=inputs.files_from, null=inputs.null, skip=self.options.out
            ):
                self.listed += 1
                yield image
        except (OSError, ValueError) as error:
            raise Mistake(str(error)) from error

    def _owed(self, folder: RunFolder) -> Iterator[ImageRef]:
        # Those at the front are for the overview, on which a few may be missing because they failed.
        return folder.owed(self.inputs.select(self._listed()), front=4 * self.drawing.overview)

    def _drawer(self, folder: RunFolder) -> Drawer:
        from xai_cli.engine.drawing import Drawer

        names = [method.name for method in self.methods]
        return Drawer.of(names, self.inputs, self.drawing, self.options, folder.manifests())

    def _tried(self, folder: RunFolder) -> Iterator[list[Row]]:
        """The records of pictures on which an earlier process may have died."""
        if not folder.suspects:
            return
        from xai_cli.engine.trial import try_alone

        self.tell(f"an earlier run died here: {len(folder.suspects)} pictures that it had begun are tried apart")
        job = self.model, self.methods, self.inputs, self.options, self.drawing
        for number, (image, rows, found) in enumerate(try_alone(list(folder.suspects), job)):
            if number == 0:
                folder.begin(found)
            record = folder.commit(rows)
            folder.cleared(image, record)
            yield record

    def _stations(self, folder: RunFolder) -> Stations:
        """The stations with the model, loaded, and the folder begun."""
        from xai_cli.classifiers.loading import load_classifier
        from xai_cli.engine.explain import Stations
        from xai_cli.engine.request import describe_found

        try:
            classifier = load_classifier(**vars(self.model))
            proven = folder.ledger.proven
            stations = Stations.of(classifier, self.methods, self.inputs, self.options, self.drawing, proven=proven)
            found = describe_found(classifier, self.methods)
        except (LookupError, ValueError, OSError) as error:
            if isinstance(error, KeyError | IndexError):
                raise  # a mistake of ours
            raise Mistake(str(error)) from error
        for note in classifier.notes:
            self.tell(note)
        for method, layers in found["layers"].items():
            for layer in layers:
                self.tell(f"{method} looks at layer {layer}; choose another with --layer")
        for change in folder.begin(found):
            self.tell(f"since this run began: {change}; maps may differ in their last digits")
        # Those that could not be tried apart are explained like any other.
        folder.suspects.clear()
        if not folder.locked:
            self.tell(f"{self.options.out} cannot be locked: start no second run in it")
        return stations

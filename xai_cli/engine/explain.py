"""The run, as one sentence: find pictures, read them, attribute them, draw and write, note each in the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.attributing import Attributor
from xai_cli.engine.concurrency import in_order
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.plain_pass import union
from xai_cli.engine.reading import Reader
from xai_cli.engine.writing import Writer
from xai_cli.images.sources import ImageRef
from xai_cli.methods.contract import Method
from xai_cli.outputs.files import write_atomically
from xai_cli.outputs.manifest import ManifestWriter, Row
from xai_cli.outputs.overview import contact_sheet
from xai_cli.outputs.pictures import encode_png
from xai_cli.targets import parse_target


def explain(
    images: Iterable[ImageRef],
    classifier: Classifier,
    methods: Sequence[Method],
    inputs: InputOptions,
    run: RunOptions,
    drawing: DrawingOptions,
) -> Iterator[Row]:
    """The manifest rows of all `images`, in their order, each given when its files are in place in `run.out`.

    Raises:
        LookupError, ValueError: the target is unknown, or a method does not fit the model; at once.
        HopelessError: the first pictures all fail in the model or in a method; while rows are taken.
        OSError: the output cannot be written; while rows are taken.
    """
    rule = parse_target(run.target, classifier.labels)
    reader = Reader(classifier.preprocessing, classifier.labels, rule, inputs, drawing.picture_size)
    attributor = Attributor(classifier, methods, union(classifier, methods), rule, run.batch_size)
    writer = Writer(run.out, drawing)
    return _rows(images, reader, attributor, writer, run)


def _rows(
    images: Iterable[ImageRef], reader: Reader, attributor: Attributor, writer: Writer, run: RunOptions
) -> Iterator[Row]:
    cells = []
    # Results wait no longer than pictures do: both queues are as long as two batches.
    ahead = 2 * run.batch_size
    with (
        ThreadPoolExecutor(run.workers) as readers,
        ThreadPoolExecutor(run.workers) as writers,
        ManifestWriter(run.out / "manifest.jsonl") as manifest,
    ):
        pictures = in_order(readers, reader.read, images, ahead=ahead)
        outcomes = attributor.attribute(pictures)
        for written in in_order(writers, writer.write, outcomes, ahead=ahead):
            for row in written.rows:
                manifest.append(row)
                yield row
            if written.cells:
                cells.append(written.cells)
    if cells:
        sheet = contact_sheet(cells, ["photo", *(method.name for method in attributor.methods)])
        write_atomically(run.out / "overview.png", encode_png(sheet))

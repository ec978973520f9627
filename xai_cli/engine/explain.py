"""What becomes of pictures that are owed: they are decoded, attributed, written and committed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.attributing import Attributor
from xai_cli.engine.concurrency import in_order
from xai_cli.engine.memory import Budget
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.reading import Reader
from xai_cli.engine.run_folder import RunFolder
from xai_cli.engine.stopping import Stop
from xai_cli.engine.writing import Writer, committed
from xai_cli.images.sources import ImageRef
from xai_cli.methods.contract import Method
from xai_cli.outputs.manifest import Row
from xai_cli.targets import parse_target

_MEGABYTE = 2**20


@dataclass(frozen=True)
class Stations:
    """What a picture passes through: it is read, attributed, written."""

    reader: Reader
    attributor: Attributor
    writer: Writer

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        methods: Sequence[Method],
        inputs: InputOptions,
        run: RunOptions,
        drawing: DrawingOptions,
        *,
        proven: bool = False,
    ) -> Stations:
        """The stations of one run; `proven` says that some pictures of it were explained before.

        Raises LookupError or ValueError: the target is unknown, or a method does not fit the model.
        """
        rule = parse_target(run.target, classifier.labels)
        memory = Budget(run.memory * _MEGABYTE)
        reader = Reader(classifier.preprocessing, classifier.labels, rule, inputs, drawing.picture_size, memory)
        attributor = Attributor(
            classifier, methods, rule, run.batch_size, inner_batch=run.inner_batch, seed=run.seed, proven=proven
        )
        return cls(reader, attributor, Writer(run.out, drawing))


def explain(
    owed: Iterable[ImageRef], stations: Stations, folder: RunFolder, run: RunOptions, stop: Stop
) -> Generator[list[Row], None, None]:
    """The records of all pictures that are `owed`, in their order, each given when its files and its rows are in place.

    Raises:
        HopelessError: the first pictures all fail in the model or in a method.
        Interrupted: the end was asked for; what was begun is finished.
        OSError: the output cannot be written.
    """
    ahead = _ahead(run, stations.reader)
    with (
        ThreadPoolExecutor(run.workers) as readers,
        ThreadPoolExecutor(run.workers) as writers,
        # Closed first: a pool that ends would else do all the work that still waits for it.
        closing(in_order(readers, stations.reader.read, folder.noted(owed), ahead=ahead)) as pictures,
        closing(stations.attributor.attribute(stop.until(pictures))) as outcomes,
        closing(in_order(writers, stations.writer.write, outcomes, ahead=ahead, prompt=True)) as results,
    ):
        yield from committed(results, folder.commit)


def _ahead(run: RunOptions, reader: Reader) -> int:
    """How many pictures may wait before the model, and as many results after it: two batches, if memory allows."""
    height, width = reader.preprocessing.size
    bytes_each = 3 * (reader.picture_size**2 + height * width)
    return max(run.workers, min(2 * run.batch_size, run.memory * _MEGABYTE // (2 * bytes_each)))

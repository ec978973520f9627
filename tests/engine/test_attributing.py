"""Whatever goes wrong in the model or in a method costs no more than it must, and each picture has its outcome."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import explained
from nets import classifier_of, conv_net
from PIL import Image
from torch import Tensor, nn

from xai_cli.engine.attributing import Attributor
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.outcomes import Explained, Failed, HopelessError, Loaded, Map
from xai_cli.images.geometry import Geometry
from xai_cli.images.sources import ImageRef, find_images
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.methods.saliency import Saliency
from xai_cli.methods.smoothgrad import SmoothGrad
from xai_cli.outputs.manifest import Row
from xai_cli.targets import parse_target

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "400 bytes. Error code 12 (Cannot allocate memory)"
)
SHORTAGES = [CUDA, CPU, MemoryError(), RuntimeError("CUDA error: out of memory"),
             RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")]  # fmt: skip


class Net(nn.Module):
    """A small net that first calls `before` with its inputs."""

    def __init__(self, before: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.net, self.before = conv_net(), before

    def forward(self, x: Tensor) -> Tensor:
        self.before(x)
        return self.net(x)


class Own(Method):
    """A method of its own `name`, which calls `before` with its evidence and gives the map of `relevance`."""

    name: ClassVar[str] = "own"
    family: ClassVar[str] = "test"

    def needs(self, classifier: object) -> Needs:
        return Needs(input_gradient=True)

    def before(self, evidence: Evidence) -> None:
        pass

    def attribute(self, evidence: Evidence) -> Attribution:
        self.before(evidence)
        return Attribution(evidence.input_gradient[:, 0], signed=True, checks={"sum": evidence.inputs.sum((1, 2, 3))})


def own(before: Callable[[Evidence], None], name: str = "own") -> Method:
    kind = type("Kind", (Own,), {"name": name, "before": staticmethod(before)})
    return kind()


GEOMETRY = Geometry((8, 8), (0.0, 0.0, 8.0, 8.0), (8, 8), 1)


def pictures(*levels: int) -> list[Loaded]:
    """A noisy picture around each level of grey; named by its place."""
    noise = np.random.default_rng(0)
    pixels = [np.clip(level + noise.integers(-9, 10, (8, 8, 3)), 0, 255).astype(np.uint8) for level in levels]
    images = [ImageRef(f"{number:02}", Path(f"{number:02}")) for number in range(len(levels))]
    return [Loaded(image, each, each, GEOMETRY, (), 0.0) for image, each in zip(images, pixels, strict=True)]


def attributor(
    before: Callable[[Tensor], None] | None = None,
    *methods: Method,
    target: str = "predicted",
    batch_size: int = 16,
    proven: bool = False,
) -> Attributor:
    """What explains pictures by `methods`, or by saliency, with a net that first calls `before`."""
    classifier = classifier_of(Net(before or (lambda x: None)), dtype=torch.float32)
    rule = parse_target(target, classifier.labels)
    return Attributor(classifier, methods or (Saliency(),), rule, batch_size, proven=proven)


def key(outcome: Explained | Failed) -> str:
    return outcome.image.key if isinstance(outcome, Failed) else outcome.picture.image.key


def maps(outcomes: list[Any]) -> list[Map]:
    """All maps, of which there must be all."""
    found = [made for outcome in outcomes for made in outcome.maps]
    assert all(isinstance(made, Map) for made in found)
    return found


def white(x: Tensor) -> bool:
    """Whether there is a white picture among these inputs, which lie between -2 and 2."""
    return bool((x.mean(dim=(1, 2, 3)) > 1.5).any())


def raises(error: BaseException | None) -> None:
    if error is not None:
        # A new one: an exception that is kept would keep all that was alive where it was raised.
        raise type(error)(*error.args)


def dark(each: Any) -> None:
    """What a model, or a method, does that cannot bear a white picture."""
    raises(RuntimeError("too bright") if white(getattr(each, "inputs", each)) else None)


# Memory


@pytest.mark.parametrize("shortage", SHORTAGES, ids=lambda error: type(error).__name__)
def test_a_batch_that_is_sixteen_times_too_large_is_halved_once_and_for_all(shortage: Exception) -> None:
    sizes: list[int] = []

    def tight(x: Tensor) -> None:
        sizes.append(len(x))
        raises(shortage if len(x) > 1 else None)

    loaded = pictures(*range(0, 250, 6))
    outcomes = list(attributor(tight).attribute(loaded))
    assert [key(outcome) for outcome in outcomes] == [picture.image.key for picture in loaded]
    assert [size for size in sizes if size > 1] == [16, 8, 4, 2]
    assert len(sizes) == 4 + len(loaded)
    assert {tuple(made.batch.items()) for made in maps(outcomes)} == {(("pictures", 1), ("samples", 16))}
    alone = list(attributor(batch_size=1).attribute(loaded))
    assert all((a.relevance == b.relevance).all() for a, b in zip(maps(outcomes), maps(alone), strict=True))


def test_a_batch_of_thousands_of_which_one_fits_is_no_recursion() -> None:
    def tight(x: Tensor) -> None:
        raises(CUDA if len(x) > 1 else None)

    loaded = pictures(*[9, 99] * 1000)
    outcomes = list(attributor(tight, Saliency(), batch_size=2000).attribute(loaded))
    assert [key(outcome) for outcome in outcomes] == [picture.image.key for picture in loaded]
    assert {made.batch["pictures"] for made in maps(outcomes)} == {1}


@pytest.mark.parametrize("most", [2, 3, 5, 11])
def test_whatever_fits_every_picture_has_one_outcome_and_it_is_its_own(most: int) -> None:
    """Also when memory ends in the midst of a batch that was cut before."""
    countdown = itertools.count()
    loaded = pictures(*range(0, 250, 6))

    def tighter(x: Tensor) -> None:
        raises(CUDA if len(x) > (most if next(countdown) < 5 else 1) else None)

    outcomes = list(attributor(tighter).attribute(loaded))
    assert [key(outcome) for outcome in outcomes] == [picture.image.key for picture in loaded]
    for outcome, picture in zip(outcomes, loaded, strict=True):
        assert outcome.picture is picture
        assert_map_is_of(picture, *outcome.maps)


def assert_map_is_of(picture: Loaded, made: Map | Failed) -> None:
    """Shapes differ, so the last digits may."""
    (expected,) = maps(list(attributor(batch_size=1).attribute([picture])))
    assert isinstance(made, Map)
    np.testing.assert_allclose(made.relevance, expected.relevance, rtol=1e-3, atol=1e-6)


def test_a_method_gets_fewer_samples_at_a_time_before_the_model_gets_fewer_pictures() -> None:
    chunks: list[int] = []

    def greedy(evidence: Evidence) -> None:
        chunks.append(evidence.chunk)
        raises(CUDA if evidence.chunk > 2 else None)

    outcomes = list(attributor(None, own(greedy)).attribute(pictures(*range(0, 250, 6))))
    assert chunks == [16, 8, 4, 2, 2, 2]
    assert {tuple(made.batch.items()) for made in maps(outcomes)} == {(("pictures", 16), ("samples", 2))}


def test_a_method_that_cannot_be_helped_by_fewer_samples_gets_fewer_pictures() -> None:
    shapes: list[tuple[int, int]] = []

    def greedy(evidence: Evidence) -> None:
        shapes.append((len(evidence.inputs), evidence.chunk))
        raises(CUDA if len(evidence.inputs) > 2 else None)

    outcomes = list(attributor(None, own(greedy), batch_size=4).attribute(pictures(10, 20, 30, 40)))
    assert shapes == [(4, 4), (4, 2), (4, 1), (2, 1), (2, 1)]
    assert {tuple(made.batch.items()) for made in maps(outcomes)} == {(("pictures", 2), ("samples", 1))}


def test_the_shape_that_was_found_is_the_shape_of_the_samples() -> None:
    sizes: list[int] = []

    def tight(x: Tensor) -> None:
        sizes.append(len(x))
        raises(CUDA if len(x) > 4 else None)

    outcomes = list(attributor(tight, IntegratedGradients(steps=8), batch_size=8).attribute(pictures(10, 20)))
    assert maps(outcomes)[0].batch == {"pictures": 4, "samples": 4}
    assert [size for size in sizes if size > 4] == [8, 8]


def test_a_picture_for_which_there_is_no_memory_at_all_fails_for_now_and_the_others_go_on() -> None:
    outcomes = list(
        attributor(lambda x: raises(CPU if white(x) else None), batch_size=4).attribute(pictures(9, 255, 99, 80, 70))
    )
    failed = outcomes.pop(1)
    assert isinstance(failed, Failed)
    assert (failed.stage, failed.type, failed.transient, failed.method) == ("attribute", "OutOfMemory", True, None)
    assert "DefaultCPUAllocator: can't allocate memory" in failed.message
    assert [key(outcome) for outcome in outcomes] == ["00", "02", "03", "04"]
    assert len(maps(outcomes)) == 4


def test_a_method_for_which_there_is_no_memory_at_all_fails_alone() -> None:
    methods = own(lambda evidence: raises(CUDA)), Saliency()
    outcomes = list(attributor(None, *methods, batch_size=4, proven=True).attribute(pictures(9, 99, 80)))
    for outcome in outcomes:
        failed, made = outcome.maps
        assert (failed.method, failed.type, failed.transient) == ("own", "OutOfMemory", True)
        assert (made.method, made.batch) == ("saliency", {"pictures": 1, "samples": 1})


@pytest.mark.parametrize("place", ["model", "method"])
def test_what_a_failed_attempt_held_is_free_before_the_next(place: str) -> None:
    held: list[weakref.ref[Tensor]] = []

    def hungry(size: int) -> None:
        assert [reference() for reference in held] == [None] * len(held)
        activation = torch.empty(3)
        held.append(weakref.ref(activation))
        raises(CUDA if size > 1 else None)

    def of_the_model(x: Tensor) -> None:
        if place == "model":
            hungry(len(x))
        else:
            # What the shared pass made for the method's failed attempt is gone as well.
            assert [reference() for reference in passes] == [None] * len(passes)
            passes.append(weakref.ref(x))

    passes: list[weakref.ref[Tensor]] = []
    method = own(lambda evidence: hungry(evidence.chunk) if place == "method" else None)
    outcomes = list(attributor(of_the_model, method, batch_size=4).attribute(pictures(9, 99, 80, 70)))
    assert len(maps(outcomes)) == 4
    assert len(held) == (6 if place == "model" else 3)


# Failures


def test_a_method_that_fails_on_a_picture_costs_that_method_of_that_picture() -> None:
    methods = own(dark), Saliency()
    outcomes = list(attributor(None, *methods, batch_size=4).attribute(pictures(9, 255, 99, 80, 70)))
    failed, made = outcomes.pop(1).maps
    assert (failed.method, failed.type, failed.message) == ("own", "RuntimeError", "too bright")
    assert (failed.stage, failed.transient) == ("attribute", False)
    assert failed.target["how"] == "predicted"
    assert isinstance(made, Map)
    assert len(maps(outcomes)) == 8


def test_what_fills_up_a_batch_is_nothing_that_a_model_might_not_bear() -> None:
    def strict(x: Tensor) -> None:
        raises(ValueError("a picture of one colour") if (x.flatten(1).std(1) == 0).any() else None)

    assert len(maps(list(attributor(strict, batch_size=4).attribute(pictures(9, 99, 80, 70, 60))))) == 5


class Unchecked(Own):
    """Gives a check for the first picture only."""

    def attribute(self, evidence: Evidence) -> Attribution:
        return Attribution(evidence.input_gradient[:, 0], signed=True, checks={"sum": evidence.inputs.sum()})


def test_a_check_that_fails_costs_that_method_alone() -> None:
    (outcome,) = attributor(None, Unchecked(), Saliency(), proven=True).attribute(pictures(9))
    failed, made = outcome.maps
    assert (failed.method, failed.type) == ("own", "IndexError")
    assert isinstance(made, Map)


def nonsense(evidence: Evidence) -> None:
    evidence.input_gradient[1, :, 2, 3], evidence.input_gradient[3, :, 0, 0] = torch.nan, -torch.inf


def test_a_map_that_is_no_number_is_a_failure_of_that_map() -> None:
    outcomes = list(attributor(None, own(nonsense), batch_size=4).attribute(pictures(9, 99, 80, 70)))
    assert [made.type if isinstance(made, Failed) else "Map" for outcome in outcomes for made in outcome.maps] == [
        "Map", "NonFinite", "Map", "NonFinite"
    ]  # fmt: skip
    assert outcomes[3].maps[0].message == "the map of own holds NaN or infinity"


def shades(count: int) -> list[Loaded]:
    return pictures(*[255] * count)


def outcomes_before(work: Attributor, loaded: list[Loaded]) -> tuple[int, str]:
    """How many pictures had their outcome when the run ended, and for which reason."""
    given = 0
    try:
        for _ in work.attribute(loaded):
            given += 1
    except HopelessError as end:
        return given, str(end)
    raise AssertionError("the run did not end")


def test_a_model_that_fails_on_the_first_eight_pictures_ends_the_run() -> None:
    assert outcomes_before(attributor(dark), shades(20)) == (
        8, "the first 8 pictures all failed, the last with RuntimeError: too bright"
    )  # fmt: skip
    assert len(list(attributor(dark).attribute(pictures(*[255] * 7, 9, *[255] * 20)))) == 28


@pytest.mark.parametrize("place", ["model", "method"])
def test_whatever_ends_the_process_costs_its_picture_alone(place: str) -> None:
    def ends(each: Any) -> None:
        raises(SystemExit("0") if white(getattr(each, "inputs", each)) else None)

    work = attributor(ends) if place == "model" else attributor(None, own(ends))
    outcomes = list(work.attribute(pictures(9, 255, 99)))
    broken = outcomes.pop(1)
    failed = broken if place == "model" else broken.maps[0]
    assert (failed.type, failed.message) == ("SystemExit", "0")
    assert len(maps(outcomes)) == 2


@pytest.mark.parametrize("target", ["predicted", "top:3"])
def test_a_method_that_fails_on_the_first_eight_pictures_ends_the_run_of_all(target: str) -> None:
    work = attributor(None, Saliency(), own(dark), target=target)
    given, reason = outcomes_before(work, shades(20))
    assert (given, reason) == (8, "the first 8 pictures all failed, the last with RuntimeError: too bright")


def test_a_method_that_explained_one_target_of_a_picture_is_not_hopeless() -> None:
    calls = itertools.count()
    moody = own(lambda evidence: raises(RuntimeError("every second time") if next(calls) % 2 else None))
    outcomes = list(attributor(None, moody, target="top:2", batch_size=1).attribute(shades(20)))
    assert len(outcomes) == 20


@pytest.mark.parametrize("count", [1, 3])
def test_a_method_that_could_explain_no_picture_at_all_is_an_end_too(count: int) -> None:
    work = attributor(None, Saliency(), own(dark))
    reason = f"no picture could be explained by own, the last of {count} failed with RuntimeError: too bright"
    assert outcomes_before(work, shades(count)) == (count, reason)


def test_the_last_few_pictures_of_a_run_that_went_well_may_fail() -> None:
    outcomes = list(attributor(None, Saliency(), own(dark), proven=True).attribute(shades(3)))
    assert [type(made) for made in outcomes[0].maps] == [Map, Failed]


def test_broken_files_are_no_reason_to_give_up() -> None:
    broken = [Failed(picture.image, "decode", "Truncated", "cut") for picture in shades(20)]
    assert list(attributor().attribute(broken)) == broken


def test_a_device_that_has_failed_ends_the_run_at_once() -> None:
    lost = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
    work = attributor(lambda x: raises(lost if white(x) else None), batch_size=2, proven=True)
    given, reason = outcomes_before(work, pictures(9, 99, 9, 255, 9, 9))
    assert given == 2
    assert reason == (
        "the device failed and needs a new process (CUDA error: device-side assert triggered); run the command again"
    )
    work = attributor(None, Saliency(), own(lambda evidence: raises(lost)), proven=True)
    assert outcomes_before(work, pictures(9))[0] == 0


def test_a_request_to_end_is_no_failure_of_a_picture() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(attributor(lambda x: raises(KeyboardInterrupt())).attribute(pictures(9)))


def test_broken_pictures_keep_their_places_and_wait_for_no_full_batch() -> None:
    good = pictures(*[9] * 40)
    mixed = [Failed(p.image, "open", "Empty", "") if int(p.image.key) % 3 else p for p in good]
    assert [key(outcome) for outcome in attributor(batch_size=4).attribute(mixed)] == [key(Failed(p.image, "", "", ""))
                                                                                     for p in good]  # fmt: skip
    drawn = itertools.count()
    many = (Failed(good[0].image, "open", "Empty", "") for _ in zip(range(1000), drawn, strict=False))
    next(attributor(batch_size=4).attribute(many))
    assert next(drawn) == 8 * 4


# The same file, the same bytes


class Noise(Own):
    """A map that is random from the seeds of the pictures on, as of methods that sample."""

    name: ClassVar[str] = "noise"

    def attribute(self, evidence: Evidence) -> Attribution:
        drawn = [torch.rand(8, 8, generator=torch.Generator().manual_seed(seed)) for seed in evidence.seeds]
        return Attribution(evidence.input_gradient.sum(1) + torch.stack(drawn), signed=True)


def written(out: Path, method: str) -> dict[str, bytes]:
    folder = out / method
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageRef]:
    """Eight small files, of which the last two hold the same pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "7.png").write_bytes((folder / "6.png").read_bytes())
    return list(find_images([str(folder)]))


@pytest.mark.parametrize("method", [Noise(), SmoothGrad(samples=4)], ids=lambda method: method.name)
def test_noise_depends_on_the_picture_and_not_on_its_place_in_a_run(
    method: Method, photos: list[ImageRef], tmp_path: Path
) -> None:
    classifier = classifier_of(conv_net(), dtype=torch.float32)

    def run(name: str, images: list[ImageRef], shard: str | None = None) -> dict[str, bytes]:
        out = tmp_path / name
        drawing, inputs = DrawingOptions(render="none", overview=0), InputOptions(shard=shard)
        options = RunOptions(out=out, batch_size=3)
        explained(inputs.select(images), classifier, [method], options, drawing, inputs)
        return written(out, method.name)

    whole = run("whole", photos)
    assert len(whole) == len(set(whole.values())) == 8  # equal pixels under two names are two pictures
    assert run("backwards", photos[::-1]) == whole
    for number in (0, 4, 7):
        assert run(f"alone{number}", [photos[number]]).items() <= whole.items()
    shards = [run(f"shard{number}", photos, f"{number}/2") for number in (1, 2)]
    assert all(shards)
    assert shards[0] | shards[1] == whole
    assert len(run("resumed", photos[2:5])) == 3
    Path(tmp_path, f"resumed/{method.name}/3.png.npy").unlink()
    assert run("resumed", photos) == whole


def smoothed(photos: list[ImageRef], out: Path, **options: int) -> tuple[list[Row], dict[str, bytes]]:
    """The rows and the maps of a run of smoothgrad, which come of the passes of its samples alone."""
    classifier = classifier_of(conv_net(), dtype=torch.float32)
    methods, run = [SmoothGrad(samples=5)], RunOptions(out=out, target="1", **options)
    rows = explained(photos, classifier, methods, run, DrawingOptions(render="none", overview=0))
    return rows, written(out, "smoothgrad")


def test_another_seed_is_another_noise_and_the_same_seed_the_same(photos: list[ImageRef], tmp_path: Path) -> None:
    maps = {name: smoothed(photos, tmp_path / name, seed=int(name[0]))[1] for name in ("0", "1", "1 again")}
    assert maps["1"] == maps["1 again"]
    assert not set(maps["0"].values()) & set(maps["1"].values())


def test_the_bytes_are_those_of_the_inner_batch_whatever_the_batch(photos: list[ImageRef], tmp_path: Path) -> None:
    rows, maps = {}, {}
    for batch, inner in ((8, 2), (4, 2), (1, 2), (8, 8)):
        rows[batch, inner], maps[batch, inner] = smoothed(
            photos, tmp_path / f"{batch}-{inner}", batch_size=batch, inner_batch=inner
        )
        assert [row["batch"] for row in rows[batch, inner]] == [{"pictures": batch, "samples": inner}] * 8
    assert len(maps[8, 2]) == 8
    assert maps[8, 2] == maps[4, 2] == maps[1, 2]
    # Another shape takes other paths through the convolutions, and leads to the same but for rounding.
    for name, row in maps[8, 8].items():
        np.testing.assert_allclose(array(row), array(maps[8, 2][name]), rtol=1e-3, atol=1e-6)


def array(raw: bytes) -> np.ndarray:
    return np.load(BytesIO(raw))

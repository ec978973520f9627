from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merges import COLOURS, fisher_file, fisher_of, net_in, saved, weights

from xai_cli.classifiers.classifier import Classifier
from xai_cli.classifiers.loading import load_classifier
from xai_cli.classifiers.options import ModelOptions
from xai_cli.merging.inputs import Inputs, open_inputs
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.weights import Weights


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / f"{n}.safetensors", weights(torch.eye(3), n)) for n in (1, 2)]


def opened(paths: list[Path], model: ModelOptions, **options: object) -> Inputs:
    return open_inputs(paths, model, MergeOptions(method="average", **options))  # type: ignore[arg-type]


def test_a_checkpoint_is_loaded_as_it_is_in_float32(tmp_path: Path, pair: list[Path]) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in
            weights(torch.eye(3), 5).items()}  # fmt: skip
    found = [pair[0], saved(tmp_path / "half.safetensors", half)]
    inputs = opened(found, ModelOptions(model=net_in(tmp_path), dtype="bfloat16"))
    for number, path in enumerate(found):
        classifier = inputs.classifier(number)
        assert classifier.dtype == torch.float32
        assert not classifier.folded
        for name, tensor in classifier.module.state_dict().items():
            assert torch.equal(tensor, Weights(path).tensor(name).to(tensor.dtype)), name
    assert any("converted from float16" in entry.note for entry in inputs.plan.entries)


def test_statistics_are_known_by_file_or_by_weights(tmp_path: Path, pair: list[Path]) -> None:
    pickled = tmp_path / "same.pt"
    torch.save({"state_dict": weights(torch.eye(3), 2)}, pickled)
    inputs = opened([pair[0], pickled], ModelOptions(model=net_in(tmp_path)))
    for path in pair:
        fisher_of(path, 0)
    assert inputs.statistics(0, fisher_file(pair[0])).about.n == 7
    assert inputs.statistics(1, fisher_file(pair[1])).about.n == 7
    digests = [load_classifier(net_in(tmp_path), checkpoint=path, fold=False).digest[:12] for path in pair]
    with pytest.raises(ValueError, match=rf"made of other weights \({digests[1]}\) than those of .*\({digests[0]}\)"):
        inputs.statistics(0, fisher_file(pair[1]))


def test_class_names_are_given_or_numbers(tmp_path: Path, pair: list[Path]) -> None:
    net, names, two = net_in(tmp_path), tmp_path / "three.txt", tmp_path / "two.txt"
    names.write_text("\n".join(COLOURS))
    two.write_text("a\nb")
    small = saved(tmp_path / "small.safetensors", weights(torch.eye(3)[:2]))
    assert opened(pair, ModelOptions(model=net)).labels(1) == ("0", "1", "2")
    assert opened(pair, ModelOptions(model=net, labels=names)).labels(1) == COLOURS
    mixed = opened([pair[0], small], ModelOptions(model=net))
    assert (mixed.counts, mixed.usual, mixed.labels(1), len(mixed.classifier(1).labels)) == ([3, 2], 3, ("0", "1"), 2)
    named = opened([pair[0], small], ModelOptions(model=net), class_names=[names, two])
    assert (named.labels(0), named.labels(1)) == (COLOURS, ("a", "b"))
    with pytest.raises(ValueError, match=r"--class-names expects 2 names for .*small.safetensors, found 3"):
        opened([pair[0], small], ModelOptions(model=net), class_names=[names, names], head="target")
    with pytest.raises(ValueError, match=r"--labels expects 3 names for .*1.safetensors, found 2"):
        opened(pair, ModelOptions(model=net, labels=two))


def test_a_head_of_the_librarys_size_needs_no_number_of_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = load_classifier("timm/test_vit", num_classes=4, pretrained=False, fold=False).module.state_dict()
    paths = [saved(tmp_path / f"{n}.safetensors", state | {"norm.bias": state["norm.bias"] + n}) for n in range(2)]
    (tmp_path / "names.txt").write_text("a\nb\nc\nd")
    inputs = opened(paths, ModelOptions(model="timm/test_vit", labels=tmp_path / "names.txt"))
    assert (inputs.counts, inputs.usual, inputs.labels(0)) == ([4, 4], 1000, ("a", "b", "c", "d"))
    assert inputs.misfit_of_merge is None
    assert len(inputs.classifier(0).labels) == 4


def test_what_does_not_fit_the_model(tmp_path: Path, pair: list[Path]) -> None:
    inputs = opened(pair, ModelOptions(model=net_in(tmp_path)))
    fine = {name: shape for name, (_, shape) in inputs.layout.items()}
    assert inputs.misfit(fine) is None
    assert inputs.misfit(fine | {"head.weight": (9, 3), "head.bias": (9,)}) is None
    assert inputs.misfit({name: shape for name, shape in fine.items() if "tracked" not in name}) is None
    assert inputs.misfit({}) == "lacks conv.weight, norm.weight, norm.bias and 4 more of the model"
    assert inputs.misfit(fine | {"ema": ()}) == "holds ema, which the model does not have"
    assert inputs.misfit(fine | {"head.weight": (3, 9)}) == "holds head.weight in another shape than the model"
    foreign = fine | {"ema": (), "conv.weight": (9, 3, 1, 1)}
    assert inputs.misfit(foreign) == (
        "holds ema, which the model does not have, and holds conv.weight in another shape than the model"
    )
    whole = [saved(tmp_path / f"more{n}.safetensors", weights(torch.eye(3), n, aux=torch.ones(2))) for n in (1, 2)]
    with pytest.raises(ValueError, match=r"do not fit .*make \(.*more1.safetensors holds aux, which .*; give --model"):
        opened(whole, ModelOptions(model=net_in(tmp_path)))
    more = opened(whole, ModelOptions(model=net_in(tmp_path)), tensors="union")
    assert more.notes[-1] == "the merge holds aux, which the model does not have: no command can load it as it is"
    assert more.misfit_of(0) == "holds aux, which the model does not have"


def test_a_fisher_of_the_averaged_weights_is_not_one_of_the_others_in_the_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.pt" for n in (1, 2)]
    for n, path in enumerate(paths):
        torch.save({"state_dict": weights(torch.eye(3), n), "state_dict_ema": weights(torch.eye(3), n + 5)}, path)
        fisher_of(path, 0)
    assert opened(paths, ModelOptions(model=net_in(tmp_path))).statistics(0, fisher_file(paths[0])).about.n == 7
    with pytest.raises(ValueError, match=r"1.F.safetensors was made of other weights"):
        opened(paths, ModelOptions(model=net_in(tmp_path), ema=False)).statistics(0, fisher_file(paths[0]))


def test_without_its_model_no_merge_is_made(pair: list[Path]) -> None:
    shared = [saved(path, weights(torch.eye(3), n, head__0__weight=torch.ones(2))) for n, path in enumerate(pair)]
    with pytest.raises(ValueError, match=r"do not fit builtin/scenes-cnn \(.* lacks .*, and holds .*; give --model"):
        opened(shared, ModelOptions())


@pytest.mark.parametrize("how", ["path", "link", "copy"])
def test_a_checkpoint_given_twice_is_refused(tmp_path: Path, pair: list[Path], how: str) -> None:
    twice = pair[0] if how == "path" else tmp_path / "again.safetensors"
    if how == "link":
        twice.symlink_to(pair[0])
    if how == "copy":
        twice.write_bytes(pair[0].read_bytes())
    with pytest.raises(ValueError, match=r"which are the same: a checkpoint merged with itself is that checkpoint"):
        opened([*pair, twice], ModelOptions(model=net_in(tmp_path)))


def test_averaged_weights_are_told(tmp_path: Path, pair: list[Path]) -> None:
    both = tmp_path / "both.pt"
    torch.save({"state_dict": weights(torch.eye(3), 7), "state_dict_ema": weights(torch.eye(3), 8)}, both)
    note = f"{both}: its averaged weights (state_dict_ema) are read; --no-ema reads the others, if it has any"
    found = opened([pair[0], both], ModelOptions(model=net_in(tmp_path)))
    assert [each for each in found.notes if "averaged" in each] == [note]
    others = opened([pair[0], both], ModelOptions(model=net_in(tmp_path), ema=False))
    assert not [each for each in others.notes if "averaged" in each]


@pytest.mark.parametrize(
    ("signature", "sentence"),
    [
        ("classes=3", "cannot be built for 2 classes, .*unexpected keyword argument 'num_classes'"),
        ("classes=3, **others", "cannot be built for 2 classes, .*: it gives 3 scores"),
    ],
)
def test_a_builder_that_takes_no_number_of_classes_is_found_at_once(
    tmp_path: Path, pair: list[Path], signature: str, sentence: str
) -> None:
    fixed = tmp_path / "fixed.py"
    net_in(tmp_path)
    code = (tmp_path / "brightest.py").read_text().replace("num_classes=3", signature)
    fixed.write_text(code.replace("num_classes", "classes"))
    small = saved(tmp_path / "small.safetensors", weights(torch.eye(3)[:2]))
    assert opened(pair, ModelOptions(model=f"{fixed}:make")).counts == [3, 3]
    with pytest.raises(ValueError, match=rf"{sentence}.*; give the function a parameter num_classes"):
        opened([pair[0], small], ModelOptions(model=f"{fixed}:make"))


def test_positions_of_another_grid_have_statistics_of_their_own(tmp_path: Path) -> None:
    def net(size: int) -> Classifier:
        return load_classifier("timm/test_vit", num_classes=2, pretrained=False, fold=False, input_size=(size, size))

    states = {size: net(size).module.state_dict() for size in (160, 96)}
    paths = [saved(tmp_path / f"{size}.safetensors", state) for size, state in states.items()]
    model, many = ModelOptions(model="timm/test_vit", num_classes=2), {"interpolate_pos_embed": True}
    command = r"'xai fisher timm/test_vit --num-classes 2 --checkpoint .*96.safetensors --input-size HEIGHT WIDTH"
    with pytest.raises(ValueError, match=rf"--data expects .* found pos_embed in .* {command}"):
        open_inputs(paths, model, MergeOptions(data=[tmp_path], **many))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(the merge holds pos_embed in another shape .*\(--input-size"):
        opened(paths, model, target=2, **many)
    fitting = replace(model, input_size=(96, 96))
    assert opened(paths, fitting, target=2, **many).misfit_of_merge is None

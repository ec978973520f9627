from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from helpers import assert_close, run_xai
from nets import conv_net
from PIL import Image

from xai_cli import load_classifier
from xai_cli.classifiers.function import ScoreFunction, takes_pictures

SMALL = {"input_size": (8, 8), "device": "cpu"}


def means(pictures):
    """The mean of each channel as its class's score, in NumPy."""
    return pictures.numpy().mean(axis=(2, 3), dtype=np.float64)


def classifier_of(function, **options):
    return load_classifier(function, **{**SMALL, **options})


async def asynchronous(pictures):
    return means(pictures)


class Means:
    def __call__(self, pictures):
        return pictures.mean((2, 3))


@pytest.mark.parametrize("function", [means, Means(), lambda x: x.mean((2, 3)), lambda x, scale=1: scale * means(x)])
def test_gives_the_scores_of_a_function_as_a_tensor_of_the_inputs_kind(function):
    classifier = classifier_of(function)
    inputs = torch.arange(2 * 3 * 64.0).reshape(2, 3, 8, 8)
    logits = classifier.logits(inputs)
    assert logits.dtype == torch.float32
    assert_close(logits, inputs.mean((2, 3)), rtol=1e-6, atol=0)
    assert (classifier.labels, classifier.folded) == (("0", "1", "2"), {})


def test_a_function_may_work_in_place_and_return_one_array_time_and_again():
    kept = np.zeros((1, 2), np.float32)

    def careless(pictures):
        assert pictures.is_contiguous()
        pixels = pictures.numpy()
        pixels *= 2
        kept[:] = pixels.mean(), 1
        return kept[::-1, ::-1]

    classifier = classifier_of(careless)
    inputs = torch.ones(1, 3, 8, 8).to(memory_format=torch.channels_last)
    first, second = classifier.logits(inputs), classifier.logits(2 * inputs)
    assert (first.tolist(), second.tolist()) == ([[1, 2]], [[1, 4]])
    assert (inputs == 1).all()


@pytest.mark.parametrize("kind", [np.float16, np.longdouble, ">f8", np.uint16, bool])
def test_arrays_of_any_real_numbers_will_do_wherever_scores_are_found(kind):
    found = classifier_of(lambda _: {"logits": np.array([[0, 1]], kind)}).logits(torch.ones(1, 3, 8, 8))
    assert (found.dtype, found.tolist()) == (torch.float32, [[0, 1]])


def test_what_a_function_does_later_is_an_error_like_any_other():
    scores = torch.zeros(2, 3)
    classifier = classifier_of(lambda pictures: sys.exit("done") if pictures.sum() == 0 else scores[: len(pictures)])
    with pytest.raises(RuntimeError, match=r"^the function ended the process \(sys.exit done\)$"):
        classifier.logits(torch.zeros(1, 3, 8, 8))
    scores = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"^the model gave 3 scores when it was loaded, and now 4$"):
        classifier.logits(torch.ones(2, 3, 8, 8))


def test_whoever_interrupts_a_function_interrupts_us():
    def interrupted(pictures):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier_of(interrupted)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda x: x.mean((1, 2, 3)), r"of shape \(1, K\), found \(1,\); return \(B, K\), one row per picture$"),
        (lambda x: x.mean((2, 3))[..., None], r"of shape \(1, K\), found \(1, 3, 1\); return \(B, K\)"),
        (lambda x: x, r"must return class scores of shape \(1, K\), found \(1, 3, 8, 8\); return"),
        (lambda x: x.new_zeros(2, 3), r"must return class scores of shape \(1, K\), found \(2, 3\); return"),
        (lambda x: x.new_zeros(1, 0), r"^<lambda> gives no scores, found shape \(1, 0\); return \(B, K\)$"),
        (lambda _: [[0.1, 0.9]], r"scores \(B, K\) must be a tensor or a NumPy array of real numbers, found list,"),
        (lambda _: {"scores": 1}, "must be a tensor or a NumPy array of real numbers, found dict, given"),
        (lambda _: None, "must be a tensor or a NumPy array of real numbers, found NoneType, given"),
        (lambda _: np.array([["cat"]]), "^--model <lambda> fails with TypeError: scores .*, found ndarray of <U3,"),
        (lambda x: means(x).astype(object), "of real numbers, found ndarray of object, given"),
        (lambda x: means(x) * 1j, "of real numbers, found ndarray of complex128, given"),
        (lambda x: x.mean((2, 3)) * 1j, "of real numbers, found Tensor of torch.complex64, given"),
        (lambda x: x.mean((2, 3)) / 0 * 0, "scores that are NaN or infinite even for plain noise; return finite ones$"),
        (lambda _: 1 / 0, r"^--model <lambda> fails with ZeroDivisionError: .* pictures of shape \(1, 3, 8, 8\)"),
        (lambda _: sys.exit(0), r"fails with RuntimeError: the function ended the process \(sys.exit 0\), given"),
        (asynchronous, "fails with RuntimeError: the function is asynchronous, given pictures"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_what_is_no_scores_is_told_in_one_sentence(gives, message):
    with pytest.raises(ValueError, match=message) as caught:
        classifier_of(gives)
    assert "\n" not in str(caught.value)


def test_says_how_the_function_gets_its_pictures_unless_it_says_so_itself():
    plain = classifier_of(means)
    assert plain.notes == (
        "the function is given pictures normalised by ImageNet's mean and deviation: --mean 0 0 0 --std 1 1 1 gives it "
        "0..1, --input-size another size",
    )
    assert plain.preprocessing.mean == (0.485, 0.456, 0.406)

    def told(pictures):
        return means(pictures)

    told.pretrained_cfg = {"input_size": (1, 12, 16), "mean": (0.1,), "std": (0.2,)}
    classifier = load_classifier(told)
    assert classifier.notes == ()
    own = classifier.preprocessing
    assert (own.size, own.channels, own.mean, own.std) == ((12, 16), 1, (0.1,), (0.2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "a finished function keeps its classes"),
        ({"pretrained": False}, "a finished function keeps its classes and its weights"),
        ({"dtype": "bfloat16", "compile": True}, "--dtype and --compile cannot change means, which gives scores alone"),
        ({"checkpoint": "w.pt"}, "--checkpoint cannot change means, which gives scores alone"),
    ],
)
def test_refuses_what_would_look_into_the_function(options, message):
    with pytest.raises(ValueError, match=message):
        classifier_of(means, **options)


def test_has_no_layers_and_no_other_type():
    classifier = classifier_of(means)
    with pytest.raises(ValueError, match="means gives scores alone and has no layers to look at; take occlusion"):
        classifier.feature_layer("0")
    with pytest.raises(ValueError, match=r"means gives scores alone, and cannot .* in torch.bfloat16; use float32"):
        classifier.in_dtype(torch.bfloat16)


def test_what_is_no_model_at_all_is_a_type_error():
    with pytest.raises(TypeError, match=r"a function from pictures .*, with one parameter without default, found 5"):
        load_classifier(5)
    with pytest.raises(TypeError, match="found <function conv_net"):
        load_classifier(conv_net)


def test_tells_functions_of_pictures_from_those_that_build_a_model():
    def named(num_classes, in_chans):
        return num_classes, in_chans

    assert all(map(takes_pictures, (means, Means(), lambda x, *rest: (x, rest), torch.relu)))
    makers = (
        Means,
        ScoreFunction,
        conv_net,
        named,
        lambda depth=3, **rest: (depth, rest),
        lambda *, width: width,
        "no",
    )
    assert not any(map(takes_pictures, makers))


CODE = """
import torch
def predict(x):
    return torch.from_numpy(x.numpy().mean(axis=(2, 3)))
def make(num_classes=3):
    return lambda x: x.mean((2, 3))[:, :num_classes]
def picky(x, y):
    return x
def optional(x=None):
    return x.float()
def nothing(*pictures):
    return None
class Wide:
    def __init__(self, width):
        pass
def leave(num_classes=3):
    raise SystemExit(3)
async def wait():
    return predict
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    Image.new("RGB", (20, 12), "orange").save(tmp_path / "a.png")
    return "net.py"


def test_code_of_yours_may_be_a_function_or_build_one(code):
    assert load_classifier(f"{code}:predict", **SMALL).name == "net.py:predict"
    assert len(load_classifier("net:make", num_classes=2, **SMALL).labels) == 2
    with pytest.raises(ValueError, match=r"--num-classes cannot change net.py:predict, which gives scores alone; name"):
        load_classifier(f"{code}:predict", num_classes=2, **SMALL)
    with pytest.raises(ValueError, match=r"^--model net.py:picky fails with TypeError: .*'y', given pictures of shape"):
        load_classifier(f"{code}:picky", **SMALL)


MADE = (
    "called with no arguments to make a model; a function from pictures to scores needs one parameter without default"
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("optional", "fails with AttributeError: 'NoneType' object has no attribute 'float'"),
        ("nothing", r"must be a torch.nn.Module or .* scores \(B, K\), found <class 'NoneType'>"),
        ("Wide", "fails with TypeError: .* missing 1 required positional argument: 'width'"),
        ("leave", r"fails with RuntimeError: the function ended the process \(sys.exit 3\)"),
        ("wait", "fails with RuntimeError: the function is asynchronous"),
    ],
)
def test_a_maker_that_fails_is_told_what_it_was_taken_for(code, name, told):
    with pytest.raises(ValueError, match=f"^--model net.py:{name} {told}, {MADE}$"):
        load_classifier(f"{code}:{name}", **SMALL)


def test_a_maker_that_fails_is_told_with_what_it_was_called(code):
    with pytest.raises(ValueError, match=r"\(sys.exit 3\), called with num_classes to make a model"):
        load_classifier(f"{code}:leave", num_classes=2, **SMALL)


def test_a_file_that_ends_the_process_is_an_error(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ValueError, match=r"script\.py ended the process \(sys.exit 0\)$"):
        load_classifier(f"{tmp_path}/script.py:net")


@pytest.mark.parametrize("method", ["saliency", "gradcam", "lrp", "attention-rollout", "eigencam", "scorecam"])
def test_methods_that_look_inside_are_refused_on_the_command_line(code, method):
    answer = run_xai(method, "a.png", "--model", f"{code}:predict", "-o", "out")
    assert answer.code == 2
    assert re.search(r"error: .*net\.py:predict gives scores alone.*; take occlusion, rise or lime", answer.said)


def test_can_be_looked_at(code):
    layers = run_xai("layers", f"{code}:predict")
    assert (layers.code, layers.paths) == (0, [])
    assert "0 layers; gradcam finds no layer by itself" in layers.said
    operators = run_xai("layers", f"{code}:predict", "--operators")
    assert operators.code == 1
    assert "gradients are needed, and net.py:predict gives scores alone; take occlusion" in operators.said
    answer = run_xai("check", f"{code}:predict", "-m", "gradcam", "-m", "saliency")
    assert answer.code == 3
    assert "0 supported, 0 degraded, 2 refused" in answer.said


def test_what_is_guessed_of_the_preprocessing_is_told_unless_it_was_given():
    def scores(pictures):
        return pictures.mean(dim=(2, 3))

    assert "normalised by ImageNet's" in load_classifier(scores).notes[0]
    assert not load_classifier(scores, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).notes

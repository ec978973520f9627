from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import assert_close
from nets import conv_net, seeded
from torch import nn

from xai_cli import attribute, find_method, load_classifier
from xai_cli.classifiers.classifier import Classifier, output_tensor

# One net per way of being built: plain, activation in the norm, squeeze-excite, same-padding, dense, split, attention.
NETS = (
    "timm/resnet18",
    "timm/efficientnet_b0",
    "timm/tf_mobilenetv3_small_minimal_100",
    "timm/densenet121",
    "timm/regnetx_002",
    "timm/resnest14d",
    "timm/repvgg_a0",
    "timm/levit_128s",
    "timm/vit_tiny_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
    "torchvision/resnet18",
    "torchvision/vgg11_bn",
    "torchvision/densenet121",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/googlenet",
)


def bare(name):
    """The module as its library makes it, with norms that a careless folding could not survive."""
    library, architecture = name.split("/")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "timm":
            module = timm.create_model(architecture)
        else:
            module = torchvision.models.get_model(architecture, weights=None)
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.uniform_(-0.1, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", NETS)
def test_folding_and_layout_leave_the_logits_equal(name):
    module = bare(name)
    classifier = load_classifier(module)
    inputs = torch.randn(2, *classifier.example().shape[1:], generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = module(inputs)
        assert_close(classifier.logits(inputs), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def norms_in(module):
    return sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


@pytest.mark.parametrize(
    ("name", "left"), [("timm/resnet18", 0), ("timm/efficientnet_b0", 0), ("torchvision/vgg11_bn", 0)]
)
def test_folds_every_norm_that_follows_a_convolution(name, left):
    classifier = load_classifier(name, pretrained=False)
    assert norms_in(classifier.module) == left
    kernel = next(parameter for parameter in classifier.module.parameters() if parameter.ndim == 4)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_module_of_yours_is_copied_and_never_changed():
    module = bare("timm/resnet18")
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    classifier = load_classifier(module)
    assert classifier.name == "ResNet"
    assert norms_in(module) == 20
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_net_that_says_nothing_of_its_preprocessing_gets_imagenets_and_a_note():
    classifier = load_classifier(conv_net(), input_size=(32, 32))
    assert classifier.preprocessing.mean == (0.485, 0.456, 0.406)
    assert "the model says nothing of its preprocessing" in classifier.notes[0]


def test_a_softmax_at_the_end_is_noted():
    net = nn.Sequential(conv_net(), nn.Softmax(dim=1))
    assert any("seems to end in a softmax" in note for note in load_classifier(net).notes)


def test_random_weights_are_the_same_each_time():
    first, second = (load_classifier("timm/mobilenetv3_small_050", pretrained=False) for _ in range(2))
    assert first.digest == second.digest


def test_the_compiled_model_is_used_wherever_no_layer_is_looked_at(monkeypatch):
    calls, own = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda net, **_: own(net, backend=lambda graph, _: calls.append(1) or graph.forward)
    )
    plain, classifier = (load_classifier(conv_net(), input_size=(32, 32), compile=each) for each in (False, True))
    inputs = classifier.example()
    for method in ("saliency", "gradcam"):
        expected = attribute(plain, inputs, find_method(method)()).relevance
        assert_close(attribute(classifier, inputs, find_method(method)()).relevance, expected, rtol=1e-5, atol=1e-8)
        assert calls == [1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing compiles without a compiler")
def test_without_gradients_the_weights_are_packed_and_the_scores_stay(monkeypatch):
    plain, classifier = (load_classifier(conv_net(), input_size=(32, 32), compile=each) for each in (False, True))
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    expected = plain.logits(inputs)
    monkeypatch.setattr(Classifier, "compiled", property(lambda _: pytest.fail("it is made for gradients")))
    with torch.no_grad():
        found = classifier.logits(inputs)
    assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert not found.is_inference()
    # Another mode or layout is nothing new to compile.
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        again = classifier.logits((inputs + 0).to(memory_format=torch.channels_last))
    assert torch.equal(again, found)
    operators = {event.name for event in profile.events()}
    assert "mkldnn::_convolution_pointwise" in operators or not torch.backends.mkldnn.is_available()


def test_compiling_says_nothing_of_a_gpu_that_is_not_there():
    code = "import xai_cli; xai_cli.load_classifier(device='cpu', compile=True); import torch.utils.cpp_extension"
    environment = {**os.environ, "CUDA_HOME": "/nowhere", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_scores_and_gradients(dtype):
    whole, half = load_classifier("builtin/scenes-cnn"), load_classifier("builtin/scenes-cnn", dtype=dtype)
    inputs = whole.example().requires_grad_()
    expected = torch.autograd.grad(whole.logits(inputs)[:, 0].sum(), inputs)[0]
    logits = half.logits(inputs)
    assert logits.dtype == torch.float32
    gradient = half.gradient(logits[:, 0], [inputs])[0]
    assert gradient.dtype == torch.float32
    similarity = torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0)
    assert similarity > (0.98 if dtype == "bfloat16" else 0.999)


def test_preprocessing_can_be_overridden_field_by_field():
    own = load_classifier("timm/resnet18", pretrained=False).preprocessing
    assert (own.size, own.resize, own.interpolation) == ((224, 224), 235, "bicubic")
    larger = load_classifier("timm/resnet18", pretrained=False, input_size=(448, 448)).preprocessing
    assert (larger.size, larger.resize) == ((448, 448), 470)
    options = {
        "resize": 300,
        "interpolation": "bilinear",
        "crop_mode": "squash",
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 1.0, 2.0),
    }
    changed = load_classifier("timm/resnet18", pretrained=False, **options).preprocessing
    assert {name: getattr(changed, name) for name in options} == options


def test_a_transformer_takes_another_input_size():
    classifier = load_classifier("timm/vit_tiny_patch16_224", pretrained=False, input_size=(160, 160))
    assert classifier.feature_layer().height == 10


def test_labels_are_imagenets_a_files_or_the_indices(tmp_path):
    imagenet = load_classifier("timm/mobilenetv3_small_050", pretrained=False).labels
    assert imagenet[281] == "tabby, tabby cat"
    assert load_classifier(conv_net()).labels == ("0", "1", "2")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    (tmp_path / "names.json").write_text('{"1": "bee", "0": "ant", "2": "cat"}')
    for file in ("names.txt", "names.json"):
        assert load_classifier(conv_net(), labels=tmp_path / file).labels == ("ant", "bee", "cat")


def test_normalises_as_the_model_was_trained():
    classifier = load_classifier("builtin/scenes-cnn")
    pixels = torch.randint(0, 256, (2, 128, 128, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    transform = torchvision.transforms.Normalize(classifier.preprocessing.mean, classifier.preprocessing.std)
    expected = transform(pixels.permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(classifier.prepare(list(pixels.numpy())), expected)


def test_the_output_of_any_usual_model_is_understood():
    logits = torch.zeros(2, 3)
    holder = type("ModelOutput", (), {"logits": logits})()
    for output in (logits, (logits, None), {"logits": logits}, holder):
        assert output_tensor(output) is logits
    with pytest.raises(ValueError, match="must return a tensor of class scores"):
        output_tensor({"boxes": logits})


class Segmenter(nn.Module):
    def forward(self, x):
        return x


FAULTS = {
    "unknown timm model": (
        "timm/resnet51",
        {},
        LookupError,
        "no timm model is named 'resnet51'; did you mean 'resnet5",
    ),
    "unknown tag": (
        "timm/resnet18.a9_in1k",
        {},
        LookupError,
        r"no weights of timm/resnet18 is named 'a9_in1k'; did you mean",
    ),
    "unknown torchvision model": ("torchvision/resnet_18", {}, LookupError, "did you mean 'resnet18'"),
    "unknown torchvision weights": (
        "torchvision/resnet18:IMAGENET1K_V9",
        {},
        LookupError,
        "did you mean 'IMAGENET1K_V1'",
    ),
    "unknown embedded model": ("builtin/scene-cnn", {}, LookupError, "did you mean 'scenes-cnn'"),
    "no library": (
        "resnet50",
        {},
        LookupError,
        "--model expects timm/NAME, .* no model is named 'resnet50'; did you mean 'timm/resnet50'",
    ),
    "no such module": ("nowhere.nets:net", {}, LookupError, "'nowhere.nets' cannot be imported"),
    "no such file": ("nowhere.py:net", {}, LookupError, "found nothing at nowhere.py"),
    "backbone": ("timm/eva02_tiny_patch14_224", {"pretrained": False}, ValueError, "is a backbone without a head"),
    "wrong size": (
        "torchvision/alexnet",
        {"pretrained": False, "input_size": (16, 16)},
        ValueError,
        "fails on an input of shape .*RuntimeError.*; leave out --input-size",
    ),
    "no scores": (Segmenter(), {}, ValueError, r"must return class scores of shape \(1, K\), found \(1, 3, 224, 224\)"),
    "device": ("builtin/scenes-cnn", {"device": "abacus"}, ValueError, "--device abacus cannot be used here"),
    "option": (
        "builtin/scenes-cnn",
        {"dtype": "int8"},
        ValueError,
        "--dtype expects one of float32, bfloat16, float16",
    ),
    "few labels": (conv_net(), {"labels": "few"}, ValueError, "--labels expects 3 class names for this model, found 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tells_in_one_sentence_what_cannot_be(fault, tmp_path):
    model, options, error, message = FAULTS[fault]
    if options.get("labels"):
        (tmp_path / "few.txt").write_text("ant\n")
        options = {"labels": tmp_path / "few.txt"}
    with pytest.raises(error, match=message) as caught:
        load_classifier(model, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"), ("torchvision/resnet18", "resnet18-f37072fd.pth")],
)
def test_weights_that_cannot_be_had_are_told_with_three_ways_on(name, file, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", refuse)
    monkeypatch.setattr("torchvision.models.get_model", refuse)
    with pytest.raises(
        ValueError, match=r"neither in the cache.*copy them.*--checkpoint.*builtin/scenes-cnn"
    ) as caught:
        load_classifier(name)
    assert f"the weights of {name} ({file})" in str(caught.value)


def test_code_of_yours_is_loaded_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "def broken():\n    raise KeyError('weights')\n"
        "def text():\n    return 'a net'\n"
    )
    assert load_classifier(f"{tmp_path}/mine.py:net").labels == ("0", "1")
    with pytest.raises(ValueError, match=r"--random-weights cannot undo what .*mine\.py:net builds"):
        load_classifier(f"{tmp_path}/mine.py:net", pretrained=False)
    with pytest.raises(ValueError, match="broken fails with KeyError: 'weights'"):
        load_classifier(f"{tmp_path}/mine.py:broken")
    with pytest.raises(ValueError, match=r"must be a torch\.nn.Module or a function that returns one, or .* found"):
        load_classifier(f"{tmp_path}/mine.py:text")
    with pytest.raises(LookupError, match="did you mean 'net'"):
        load_classifier(f"{tmp_path}/mine.py:nett")


def test_a_checkpoint_replaces_the_librarys_weights_without_asking_for_them(tmp_path):
    source = seeded(lambda: timm.create_model("mobilenetv3_small_050", num_classes=7), seed=9)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "mine.pth")
    classifier = load_classifier("timm/mobilenetv3_small_050", checkpoint=tmp_path / "mine.pth", num_classes=7)
    inputs = classifier.example()
    with torch.no_grad():
        expected = source.eval()(inputs)
        assert_close(classifier.logits(inputs), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


class Reading(nn.Module):
    """Reads what folding would remove or change."""

    def __init__(self, what):
        super().__init__()
        self.conv, self.norm, self.what = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), what
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = self.norm(self.conv(x)).mean(dim=(2, 3))
        return y + {"buffer": lambda: self.norm.running_var, "bias": lambda: self.conv.bias.data}[self.what]()


@pytest.mark.parametrize("what", ["buffer", "bias"])
def test_a_net_that_reads_what_folding_would_change_runs_as_it_is(what):
    net = seeded(lambda: Reading(what)).eval()
    classifier = load_classifier(net, input_size=(32, 32))
    assert classifier.folded == {}
    inputs = classifier.example()
    with torch.no_grad():
        assert_close(classifier.logits(inputs), net(inputs), rtol=1e-5, atol=1e-6)


def test_a_norm_that_is_used_twice_is_not_folded():
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    twice = nn.Sequential(net[0], net[1], nn.Conv2d(3, 3, 3), net[1], *net[2:])
    assert load_classifier(twice, input_size=(32, 32)).folded == {}


@pytest.mark.parametrize("form", ["dict", "object", "tuple"])
def test_a_net_with_any_usual_output_can_be_explained(form):
    net = conv_net()
    net.register_forward_hook(
        lambda _m, _i, logits: {
            "dict": {"logits": logits}, "object": type("Output", (), {"logits": logits})(), "tuple": (logits, None)
        }[form]
    )  # fmt: skip
    relevance = attribute(load_classifier(net, input_size=(32, 32)), torch.ones(1, 3, 32, 32), find_method("gradcam")())
    assert relevance.layer


@pytest.mark.parametrize("error", [TypeError, KeyError, OSError, ZeroDivisionError])
def test_whatever_a_net_raises_is_told_with_its_name(error):
    net = conv_net()

    def fail(*_):
        raise error("first line\nsecond line")

    net.register_forward_hook(fail)
    with pytest.raises(ValueError, match=rf"^Sequential fails on an input of shape .*{error.__name__}: [^\n]*$"):
        load_classifier(net)


def test_a_net_that_ends_the_process_is_an_error():
    net = conv_net()
    net.register_forward_hook(lambda *_: sys.exit(0))
    with pytest.raises(ValueError, match=r"^Sequential fails on .*: the function ended the process \(sys.exit 0\)\);"):
        load_classifier(net)


def test_half_precision_survives_gradients_that_are_too_small_and_too_large():
    tiny, large = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)) for _ in range(2))
    nn.init.constant_(tiny[1].weight, 1e-9)
    nn.init.constant_(large[1].weight, 30.0)
    for net, expected in ((tiny, 0.0), (large, 30.0)):
        classifier = load_classifier(net, input_size=(32, 32), dtype="float16")
        relevance = attribute(classifier, torch.zeros(1, 3, 32, 32), find_method("saliency")(), "0").relevance
        assert_close(relevance, torch.full((1, 32, 32), expected), rtol=1e-3, atol=1e-8)


def test_half_precision_keeps_gradients_that_would_vanish_on_the_way():
    scale = 2.0**-20
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    nn.init.constant_(net[1].weight, scale)
    net.register_forward_hook(lambda _m, _i, logits: logits * 2.0**-8)
    classifier = load_classifier(net, input_size=(32, 32), dtype="float16")
    relevance = attribute(classifier, torch.zeros(1, 3, 32, 32), find_method("saliency")(), "0").relevance
    assert float(relevance.max()) > 0


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18", "builtin/scenes-cnn"])
def test_a_head_that_nobody_trained_is_refused(name):
    with pytest.raises(ValueError, match="and a head for 7 would be untrained; give its weights with --checkpoint"):
        load_classifier(name, num_classes=7)
    assert len(load_classifier(name, num_classes=7, pretrained=False).labels) == 7


def test_a_module_of_yours_keeps_its_classes_and_has_no_names_but_indices():
    with pytest.raises(ValueError, match="a finished module keeps its classes"):
        load_classifier(conv_net(), num_classes=7)
    many = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    assert load_classifier(many).labels[281] == "281"


def test_a_wide_input_covers_the_picture_as_timms_own_transform_does():
    preprocessing = load_classifier("timm/resnet18", pretrained=False, input_size=(112, 224)).preprocessing
    assert preprocessing.resize == (118, 235)  # the share of 0.95 that timm crops, on both sides


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_a_grey_model_sees_the_mean_of_what_a_coloured_one_expects(name):
    classifier = load_classifier(name, pretrained=False, in_chans=1, input_size=(96, 160))
    coloured = load_classifier(name, pretrained=False, input_size=(96, 160)).preprocessing
    own = classifier.preprocessing
    assert (own.channels, own.size, own.resize) == (1, (96, 160), coloured.resize)
    assert_close([own.mean, own.std], [[sum(coloured.mean) / 3], [sum(coloured.std) / 3]], rtol=1e-12, atol=0)
    grey = classifier.prepare(np.full((2, 96, 160, 1), 255, np.uint8))
    assert_close(grey, torch.full((2, 1, 96, 160), (1 - own.mean[0]) / own.std[0]), rtol=1e-6, atol=0)
    assert attribute(classifier, grey, find_method("saliency")()).relevance.shape == (2, 96, 160)


def test_the_channels_are_those_asked_for_wherever_they_can_be_chosen(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import timm\nfrom torch import nn\n"
        "def told(in_chans=3):\n    return timm.create_model('resnet10t', in_chans=in_chans)\n"
        "def any(**options):\n    return told(**options)\n"
        "def fixed():\n    return told(1)\n"
    )
    for function in ("told", "any", "fixed"):
        classifier = load_classifier(f"{tmp_path}/mine.py:{function}", in_chans=1, input_size=(64, 64))
        assert classifier.example().shape == (1, 1, 64, 64)
    told = load_classifier(f"{tmp_path}/mine.py:told", in_chans=1, mean=(0.3, 0.4, 0.5), std=(1, 2, 3))
    assert (told.preprocessing.mean, told.preprocessing.std) == ((0.3,), (1,))
    means = load_classifier(lambda pictures: pictures.mean((2, 3)), in_chans=1)
    assert (means.labels, means.preprocessing.channels) == (("0",), 1)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "builtin/scenes-cnn"])
def test_channels_that_cannot_be_chosen_are_three(name):
    message = f"--in-chans expects 3 for {name}, whose channels cannot be chosen, found 1; take a timm model"
    with pytest.raises(ValueError, match=message):
        load_classifier(name, pretrained=False, in_chans=1)
    assert load_classifier(name, pretrained=False, in_chans=3).preprocessing.channels == 3

"""The verdict on each method: a map of which all is well, one with a warning, or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from nets import classifier_of, conv_net, linear_net
from torch import Tensor, nn

from xai_cli import find_method
from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.check import Case, Verdict, verdicts
from xai_cli.engine.outcomes import HopelessError
from xai_cli.images.decode import Broken
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs


@dataclass(frozen=True)
class Fake(Method):
    """The absolute gradient, and whatever a subclass does wrong."""

    name: ClassVar[str] = "fake"
    family: ClassVar[str] = "gradient"

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(input_gradient=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        assert evidence.input_gradient is not None
        return Attribution(evidence.input_gradient.abs().amax(dim=1), signed=False)


class Unfit(Fake):
    def needs(self, classifier: Classifier) -> Needs:
        raise ValueError("the model has no ears")


class Careless(Fake):
    def needs(self, classifier: Classifier) -> Needs:
        raise KeyError("ears")


class Failing(Fake):
    def attribute(self, evidence: Evidence) -> Attribution:
        raise ValueError("no ears\nnor eyes")


class Ending(Fake):
    def attribute(self, evidence: Evidence) -> Attribution:
        raise SystemExit("enough")


class Infinite(Fake):
    def attribute(self, evidence: Evidence) -> Attribution:
        return Attribution(evidence.inputs.sum(dim=1) / 0, signed=True)


class Flat(Fake):
    def attribute(self, evidence: Evidence) -> Attribution:
        return Attribution(torch.ones_like(evidence.inputs[:, 0]), signed=False)


class Leaving(Fake):
    def attribute(self, evidence: Evidence) -> Attribution:
        evidence.classifier.module.train()
        return super().attribute(evidence)


class Bending(Fake):
    family = "propagation"


class Telling(Fake):
    def attribute(self, evidence: Evidence) -> Attribution:
        checks = {"completeness_gap": torch.full((len(evidence.inputs),), torch.nan)}
        relevance = super().attribute(evidence).relevance
        return Attribution(relevance, signed=False, checks=checks, layer="ear", rule="loud", notes=("it is loud",))


class Moody(nn.Module):
    """A linear net whose scores depend on something else than the picture."""

    def __init__(self, mood: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mood, self.net = mood, linear_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.mood(x))


def verdict(method: Method, module: nn.Module | None = None) -> Verdict:
    [found] = verdicts(Case.of(classifier_of(module or conv_net())), [method])
    return found


def test_a_map_of_which_all_is_well_is_supported() -> None:
    found = verdict(Fake())
    assert (found.status, found.reason, found.warnings) == ("supported", None, [])
    assert found.checks.pop("batch_gap") == pytest.approx(0, abs=1e-12)
    assert found.checks == {"degenerate": False, "repeatable": 0, "model_untouched": True}
    assert found.seconds is not None
    assert 0 < found.seconds < 10


@pytest.mark.parametrize(
    ("method", "foreseen", "reason"),
    [
        (Unfit(), True, "the model has no ears"),
        (Careless(), False, "KeyError: 'ears'"),
        (Failing(), False, "ValueError: no ears"),
        (Ending(), False, "SystemExit: enough"),
        (Infinite(), False, "NonFinite: the map of fake holds NaN or infinity"),
    ],
)
def test_without_a_map_a_method_is_refused_with_the_reason(method: Method, foreseen: bool, reason: str) -> None:
    found = verdict(method)
    assert (found.status, found.foreseen, found.reason) == ("refused", foreseen, reason)
    assert found.checks == {"model_untouched": True}


@pytest.mark.parametrize(
    ("method", "module", "warning"),
    [
        (Flat(), None, "degenerate 1: the map is the same everywhere and shows nothing"),
        (Bending(), None, "equals_gradient 1: the map is that of the plain gradient"),
        (Leaving(), None, "model_untouched 0: weights, hooks, gradients or modes of the model are not as they were"),
        (Fake(), Moody(lambda x: x * torch.rand(())), "repeatable "),
        (Fake(), Moody(lambda x: x * x.abs().mean()), "batch_gap "),
    ],
)  # fmt: skip
def test_a_broken_check_degrades(method: Method, module: nn.Module | None, warning: str) -> None:
    found = verdict(method, module)
    assert found.status == "degraded"
    assert any(each.startswith(warning) for each in found.warnings), found.warnings


def test_rules_that_bend_the_gradient_do_not_equal_it() -> None:
    [found] = verdicts(Case.of(classifier_of(conv_net(), dtype=torch.float32)), [find_method("lrp")()])
    assert found.checks["equals_gradient"] is False


def test_what_one_method_leaves_behind_is_not_blamed_on_the_next() -> None:
    found = verdicts(Case.of(classifier_of(conv_net())), [Leaving(), Fake()])
    assert [each.checks["model_untouched"] for each in found] == [False, True]


def test_notes_layer_and_rule_are_told_and_json_holds_every_number() -> None:
    row = json.loads(json.dumps(verdict(Telling()).as_row(), allow_nan=False))
    assert row["warnings"][0] == "it is loud"
    assert row["warnings"][1].startswith("completeness_gap nan: ")
    assert (row["status"], row["layer"], row["rule"]) == ("degraded", "ear", "loud")
    assert row["checks"]["completeness_gap"] is None


def test_the_case_is_the_example_or_a_picture_for_its_prediction_or_a_given_class(pictures: Path) -> None:
    classifier = classifier_of(conv_net(), dtype=torch.float32)
    case = Case.of(classifier)
    assert torch.equal(case.inputs, torch.cat(classifier.probes()))
    assert [target.index for target in case.targets] == classifier.logits(case.inputs).argmax(1).tolist()
    assert torch.equal(Case.of(classifier, pictures / "a.png").inputs[:1], classifier.read([pictures / "a.png"]))
    assert [(each.index, each.against) for each in Case.of(classifier, target="c-vs-a").targets] == [(2, 0)] * 2


def test_a_case_that_cannot_be_is_told(pictures: Path) -> None:
    classifier = classifier_of(conv_net())
    with pytest.raises(Broken, match="truncated"):
        Case.of(classifier, pictures / "cut.png")
    with pytest.raises(LookupError, match="no class is named 'd'"):
        Case.of(classifier, target="d")
    for target in ("label", "top:2"):
        with pytest.raises(ValueError, match=f"--target expects predicted, a class or A-vs-B .*, found '{target}'"):
            Case.of(classifier, target=target)
    classifier.module[4].forward = lambda x: 1 / 0
    with pytest.raises(HopelessError, match=r"the model fails on the picture \(ZeroDivisionError: division by zero\)"):
        Case.of(classifier)

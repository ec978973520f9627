"""Every family of timm: each operator has a rule, and what a method says adds up to what the model says.

Two pictures with different targets go through one small model of each family; in float32 as a user has it, and where
two ways must give the same numbers in float64, because a deep net at random weights makes much of rounding.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import timm
import torch
from families.families import CONSERVING, FAMILIES, Family
from families.measuring import completeness_gap, evidence_of, explained, likeness_to_gradient
from helpers import assert_close

from xai_cli.methods.contract import Evidence

pytestmark = pytest.mark.families


@pytest.fixture(scope="module", params=FAMILIES, ids=[family.name for family in FAMILIES])
def evidence(request: pytest.FixtureRequest) -> Evidence:
    return evidence_of(request.param.classifier(), 2)


@pytest.fixture(scope="module")
def precise(evidence: Evidence) -> Evidence:
    """The same in float64."""
    module = deepcopy(evidence.classifier.module).double()
    classifier = replace(evidence.classifier, module=module, dtype=torch.float64, _layers={})
    inputs = evidence.inputs.double()
    return replace(evidence, classifier=classifier, inputs=inputs, logits=classifier.logits(inputs))


def test_the_list_has_a_model_of_every_family_of_timm() -> None:
    assert {family.name for family in FAMILIES} == set(timm.list_modules())
    assert all(family.model in timm.list_models(module=family.name) for family in FAMILIES)


def test_every_operator_has_a_rule(evidence: Evidence) -> None:
    plan = evidence.classifier.plan
    assert plan.refused == ()
    assert plan.calls("convolution") + plan.calls("linear") > 3


def test_lrp_accounts_for_the_whole_score_of_the_same_net(evidence: Evidence) -> None:
    checks = explained(evidence, "lrp").checks
    assert checks["forward_gap"].max() <= 1e-4
    assert checks["account_gap"].max() <= 1e-3


def test_attnlrp_accounts_for_the_whole_score(precise: Evidence) -> None:
    checks = explained(precise, "lrp", composite="attnlrp").checks
    assert checks["account_gap"].max() <= 1e-6


def test_each_picture_has_a_map_and_an_account_of_its_own(precise: Evidence) -> None:
    assert precise.logits is not None
    second = slice(1, 2)
    alone = replace(
        precise, inputs=precise.inputs[second], targets=precise.targets[second], logits=precise.logits[second], chunk=1
    )
    together, single = explained(precise, "lrp"), explained(alone, "lrp")
    assert_close(together.relevance[1:], single.relevance, rtol=1e-4, atol=1e-6 * float(single.relevance.abs().max()))
    for name, share in single.checks.items():
        assert_close(together.checks[name][1:], share, rtol=1e-5, atol=1e-6)


def test_deeplift_adds_up_to_the_change_of_the_score(evidence: Evidence) -> None:
    assert completeness_gap(evidence, explained(evidence, "deeplift").relevance).max() <= 1e-3


def test_guided_backprop_is_not_the_gradient(evidence: Evidence) -> None:
    assert likeness_to_gradient(evidence, explained(evidence, "guided-backprop").relevance).max() < 0.9999


@pytest.mark.parametrize("family", CONSERVING, ids=lambda family: family.model)
def test_without_constants_the_whole_score_reaches_the_pixels(family: Family) -> None:
    checks = explained(evidence_of(family.classifier(constants=False), 2), "lrp").checks
    assert_close(checks["conservation"], torch.ones(2), rtol=0, atol=0.02)

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input
from torch import nn

from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.methods.fills import still
from xai_cli.methods.masking import Masking, rank_correlation
from xai_cli.targets import Target

RANKS = [[Target(0), Target(1)], [Target(2), Target(0)]]
SAMPLES = 5


def evidence_of(net=None, *, chunk=4, batch=2, pictures=2, dtype=torch.float64):
    passed = plain_pass(
        classifier_of(net or conv_net(), dtype=dtype), random_input(batch, dtype=dtype), Needs(logits=True)
    )
    return next(passed.evidences([rank[:pictures] for rank in RANKS], chunk=chunk))


def stripes(rows, samples):
    """Of picture b, sample s shows all but column b + s."""
    visible = torch.ones(len(rows), 1, 8, 8)
    visible[torch.arange(len(rows)), :, :, rows + samples] = 0
    return visible


def masking_of(evidence, rows=4, **options):
    return Masking(evidence, stripes, still(torch.zeros_like(evidence.inputs)), [SAMPLES, SAMPLES], rows, **options)


def masked(inputs, row, sample):
    return (inputs[row] * stripes(torch.tensor([row]), torch.tensor([sample]))[0].to(inputs))[None]


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_scores_are_those_of_the_masked_pictures_for_every_target_whatever_the_size_of_a_pass(rows):
    evidence = evidence_of()
    scores = masking_of(evidence, rows).first([0, 1], SAMPLES)
    assert scores.shape == (2, SAMPLES, 2)
    for row in range(2):
        for sample in range(SAMPLES):
            logits = evidence.classifier.logits(masked(evidence.inputs, row, sample))[0]
            expected = [logits[rank[row].index] for rank in RANKS]
            assert_close(scores[row, sample], torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_later_samples_and_some_of_the_pictures_can_be_asked_for():
    masking = masking_of(evidence_of())
    every = masking.first([0, 1], SAMPLES)
    assert torch.equal(masking.first([1], 4, start=2), every[1:, 2:4])
    pairs = masking.scores(torch.tensor([1, 0, 1]), torch.tensor([4, 0, 0]))
    assert torch.equal(pairs, every[[1, 0, 1], [4, 0, 0]])


def test_every_pass_has_the_same_size(monkeypatch):
    evidence, sizes = evidence_of(), set()
    forward = evidence.classifier.module.forward

    def watched(inputs):
        sizes.add(len(inputs))
        assert torch.is_inference_mode_enabled()
        return forward(inputs)

    monkeypatch.setattr(evidence.classifier.module, "forward", watched)
    masking_of(evidence, rows=4).first([0, 1], SAMPLES)
    assert sizes == {4}


def test_scores_can_be_differentiated_with_others_afterwards():
    # What a pass without a graph leaves behind must not spoil a later one with it.
    evidence = evidence_of()
    scores = masking_of(evidence).first([0, 1], SAMPLES)
    assert not scores.is_inference()
    assert evidence.score_gradient(evidence.inputs, torch.arange(2)).any()


def test_the_whole_pictures_have_the_scores_of_the_plain_pass():
    evidence = evidence_of()
    whole = masking_of(evidence).whole()
    assert torch.equal(whole, torch.stack([evidence.logits[[0, 1], [0, 1]], evidence.logits[[0, 1], [2, 0]]], dim=1))


class Rounding(nn.Module):
    """Scores that differ by so little that bfloat16 cannot tell them, for pictures that are positive at the corner."""

    def forward(self, x):
        level = x.flatten(1).mean(dim=1, keepdim=True)
        far = 1000 * (x[:, 0, 0, :1] > 0) * x.new_tensor([1.0])
        return torch.cat([level + far, -level - far, 2 * level + far], dim=1)


def test_bfloat16_is_taken_only_where_it_ranks_the_scores_like_float32():
    evidence = evidence_of(Rounding(), dtype=torch.float32)
    evidence.inputs[0, 0, 0, 0], evidence.inputs[1, 0, 0, 0] = -1, 1
    masking, agreement = masking_of(evidence).in_bfloat16()
    assert masking.reduced.tolist() == [True, False]
    assert agreement[0] > 0.99 > agreement[1]
    scores, exact = masking.first([0, 1], SAMPLES), masking_of(evidence).first([0, 1], SAMPLES)
    assert torch.equal(scores[1], exact[1])
    assert not torch.equal(scores[0], exact[0])
    assert_close(scores[0], exact[0], rtol=2e-2, atol=1e-3)
    assert torch.equal(masking.whole()[1], masking_of(evidence).whole()[1])


def test_rank_correlation_is_spearmans():
    left = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    right = torch.tensor([[10.0, 20, 30, 99], [4, 3, 2, 1], [1, 2, 4, 3]])
    assert_close(rank_correlation(left, right), torch.tensor([1.0, -1, 0.8]), rtol=1e-6, atol=0)
    assert rank_correlation(left[:, :1], right[:, :1]).tolist() == [1, 1, 1]

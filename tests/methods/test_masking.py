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


def first(masking, rows, stop, start=0):
    return torch.stack(masking.of(rows, [torch.arange(start, stop)] * len(rows)))


def masked(inputs, row, sample):
    return (inputs[row] * stripes(torch.tensor([row]), torch.tensor([sample]))[0].to(inputs))[None]


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_scores_are_those_of_the_masked_pictures_for_every_target_whatever_the_size_of_a_pass(rows):
    evidence = evidence_of()
    scores = first(masking_of(evidence, rows), [0, 1], SAMPLES)
    assert scores.shape == (2, SAMPLES, 2)
    for row in range(2):
        for sample in range(SAMPLES):
            logits = evidence.classifier.logits(masked(evidence.inputs, row, sample))[0]
            expected = [logits[rank[row].index] for rank in RANKS]
            assert_close(scores[row, sample], torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_later_samples_and_some_of_the_pictures_can_be_asked_for():
    masking = masking_of(evidence_of())
    every = first(masking, [0, 1], SAMPLES)
    assert torch.equal(first(masking, [1], 4, start=2), every[1:, 2:4])
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
    first(masking_of(evidence, rows=4), [0, 1], SAMPLES)
    assert sizes == {4}


def test_scores_are_plain_tensors():
    evidence = evidence_of()
    scores = first(masking_of(evidence), [0, 1], SAMPLES)
    assert not scores.is_inference()


class Rounding(nn.Module):
    """Scores that differ by so little that bfloat16 cannot tell them, for pictures that are positive at the corner."""

    def forward(self, x):
        level = x.flatten(1).mean(dim=1, keepdim=True)
        far = 1000 * (x[:, 0, 0, :1] > 0) * x.new_tensor([1.0])
        return torch.cat([level + far, -level - far, 2 * level + far], dim=1)


TRIED = [torch.arange(SAMPLES)] * 2


def rounding_evidence():
    evidence = evidence_of(Rounding(), dtype=torch.float32)
    evidence.inputs[0, 0, 0, 0], evidence.inputs[1, 0, 0, 0] = -1, 1
    return evidence


def test_bfloat16_is_taken_only_where_it_ranks_what_is_made_of_the_scores_like_float32():
    evidence = rounding_evidence()
    plain, asked = (masking_of(evidence, precision=each) for each in ("float32", "bfloat16"))
    masking, tried, agreement = asked.settled(TRIED, lambda _, scores: scores.T)
    assert masking.reduced.tolist() == [True, False]
    assert agreement[0] > 0.99 > agreement[1]
    scores, exact = first(masking, [0, 1], SAMPLES), first(plain, [0, 1], SAMPLES)
    assert torch.equal(torch.stack(tried), scores)
    assert torch.equal(scores[1], exact[1])
    assert not torch.equal(scores[0], exact[0])
    assert_close(scores[0], exact[0], rtol=2e-2, atol=1e-3)


def test_the_worst_target_decides_and_the_map_not_the_scores():
    evidence = rounding_evidence()
    asked = masking_of(evidence, precision="bfloat16")
    ends = {0: torch.tensor([[1.0, 2, 3], [1, 2, 3]]), 1: torch.tensor([[1.0, 2, 3], [3, 2, 1]])}

    def maps(row, scores):
        rounded = not torch.equal(scores, first(masking_of(evidence), [row], SAMPLES)[0])
        return ends[1] if rounded else ends[0]

    assert asked.settled(TRIED, maps)[2].tolist() == pytest.approx([-1, -1])
    assert asked.settled(TRIED, maps)[0].reduced.tolist() == [False, False]


def test_without_bfloat16_nothing_is_tried():
    masking = masking_of(evidence_of())
    settled, scores, agreement = masking.settled(TRIED, lambda *_: pytest.fail("a map is made"))
    assert settled is masking
    assert agreement is None
    assert torch.equal(torch.stack(scores), first(masking, [0, 1], SAMPLES))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4], [1, 2, 4, 3], 0.8),
        ([1, 2, 2, 4], [1, 2, 2, 4], 1),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.948683298),  # scipy.stats.spearmanr
        ([1, 2, 3, 4], [5, 5, 5, 5], 0),
        ([5, 5], [7, 7], 1),
        ([3], [4], 1),
    ],
)
def test_rank_correlation_is_spearmans(left, right, expected):
    assert_close(rank_correlation(torch.tensor([left]), torch.tensor([right])), [expected], rtol=1e-6, atol=0)

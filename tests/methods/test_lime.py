from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import assert_close
from lime.lime_base import LimeBase
from lime.lime_image import LimeImageExplainer
from nets import classifier_of, conv_net, linear_net, random_input
from torch import nn

from xai_cli import attribute
from xai_cli.methods.lime import Lime
from xai_cli.targets import Target

QUARTERS = {"segmentation": "grid", "segments": 4, "fill": "mean"}
SIXTEEN = {"segmentation": "grid", "segments": 16, "fill": "mean"}


def explained(inputs, module=None, *, chunk=64, seed=0, targets=None, **options):
    classifier = classifier_of(module or conv_net())
    return attribute(classifier, inputs, Lime(**options), targets or [Target(1)] * len(inputs), chunk=chunk, seed=seed)


def values(*arguments, name="value", **options):
    return torch.tensor(explained(*arguments, **options).segments[0][name], dtype=torch.float64)


def drawn(samples, segments, seed=0):
    """Masks, the first of the whole picture, and scores that are not linear in them."""
    masks = np.random.RandomState(seed).randint(0, 2, (samples, segments)).astype(float)
    masks[0] = 1
    slopes = np.random.RandomState(9).randn(2, segments, 5)
    return masks, np.stack([np.maximum(masks @ each - each.sum(0) / 2, 0).sum(1) for each in slopes], axis=1)


def package(masks, scores, target, features=1000, method="none", weights=None):
    """The weights, and the R2, of the `lime` package."""
    base = LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / 0.25**2)) if weights is None else weights)
    distances = 1 - np.sqrt(masks.mean(axis=1))
    found = base.explain_instance_with_data(masks, scores, distances, target, features, method)
    coefficients = np.zeros(masks.shape[1])
    coefficients[[place for place, _ in found[1]]] = [weight for _, weight in found[1]]
    return coefficients, found[2]


@pytest.mark.parametrize("sampling", ["paired", "independent"])
def test_a_linear_model_shows_its_own_terms(sampling):
    inputs, module = random_input(1), linear_net()
    # The penalty of 1 is nothing beside thousands of samples.
    found = explained(inputs, module, samples=4000, sampling=sampling, **QUARTERS)
    terms = (module[1].weight[1].view(3, 8, 8) * inputs[0]).sum(dim=0).unflatten(0, (2, 4)).unflatten(2, (2, 4))
    expected = terms.sum(dim=(1, 3)).flatten()
    assert_close(found.segments[0]["value"], expected, rtol=0, atol=3e-3)
    assert float(found.checks["r2"]) == pytest.approx(1, abs=1e-4)
    assert found.signed


def test_the_penalty_shrinks_balanced_weights_by_what_it_says():
    # So wide a kernel weighs all samples alike.
    masks = drawn_masks(17, 4)
    fit = Lime(kernel_width=1e6).fitted(masks, masks @ torch.tensor([[1.0], [2], [3], [4]]).double())
    columns = torch.cat([masks, torch.ones(len(masks), 1)], dim=1)
    penalty = torch.diag(torch.tensor([1.0, 1, 1, 1, 0])).double()
    right = columns.T @ (masks @ torch.tensor([1.0, 2, 3, 4]).double())
    assert_close(fit.coefficients[0], torch.linalg.solve(columns.T @ columns + penalty, right)[:4], rtol=1e-9, atol=0)


@pytest.mark.parametrize(("top", "method"), [(None, "none"), (5, "highest_weights")])
def test_weights_and_r2_are_those_of_the_package(top, method):
    masks, scores = drawn(300, 20)
    fit = Lime(sampling="independent", top=top).fitted(torch.tensor(masks), torch.tensor(scores))
    for target in range(2):
        coefficients, r2 = package(masks, scores, target, top or 1000, method)
        assert_close(fit.coefficients[target], coefficients, rtol=1e-5, atol=1e-9)
        assert float(fit.r2[target]) == pytest.approx(r2, abs=1e-9)
    assert (fit.coefficients != 0).sum() == 2 * (top or 20)


def test_both_of_a_pair_have_the_mean_of_their_weights():
    masks, scores = drawn(301, 20)
    masks[2::2] = 1 - masks[1::2]
    kernel = np.exp(-((1 - np.sqrt(masks.mean(axis=1))) ** 2) / 2 / 0.25**2)
    kernel[1:] = kernel[1:].reshape(-1, 2).mean(axis=1).repeat(2)
    fit = Lime().fitted(torch.tensor(masks), torch.tensor(scores))
    assert_close(fit.coefficients[1], package(masks, scores, 1, weights=kernel)[0], rtol=1e-5, atol=1e-9)


def test_a_whole_run_of_the_package_has_the_same_weights(monkeypatch):
    classifier = classifier_of(conv_net())
    pixels = np.random.RandomState(1).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    quarters = np.arange(8)[:, None] // 4 * 2 + np.arange(8) // 4

    def scores(pictures):
        return classifier.logits(torch.tensor(pictures / 255 - 0.5).permute(0, 3, 1, 2) * 4).numpy()

    explainer = LimeImageExplainer(feature_selection="none", random_state=3)
    made = explainer.explain_instance(
        pixels, scores, labels=(2,), top_labels=None, hide_color=0, num_samples=60, segmentation_fn=lambda _: quarters
    )
    state = np.random.RandomState(3)
    state.randint(0, high=1000)  # the seed of its segmentation
    masks = torch.tensor(state.randint(0, 2, 240).reshape(60, 4)).bool()
    masks[0] = True  # of the whole picture
    monkeypatch.setattr(Lime, "_masks", lambda *_: masks)
    inputs = torch.tensor(pixels / 255 - 0.5)[None].permute(0, 3, 1, 2) * 4
    options = {**QUARTERS, "fill": "black", "samples": 60, "sampling": "independent"}
    found = values(inputs, targets=[Target(2)], **options)
    assert_close(found, [weight for _, weight in sorted(made.local_exp[2])], rtol=1e-5, atol=1e-9)


def drawn_masks(samples, segments, sampling="paired", seed=0):
    """Masks `(samples, segments)` as a picture of that seed gets them, the first of the whole picture."""
    generator = lambda _, row, block: torch.Generator().manual_seed(10_000 * seed + block)  # noqa: E731
    drawn = Lime(samples=samples, sampling=sampling)._masks(type("", (), {"generator": generator})(), 0, segments)
    assert drawn.dtype == torch.bool
    return drawn.double()


@pytest.mark.parametrize("segments", [1, 3, 4, 40])
def test_pairs_of_masks_are_complements_and_free_of_what_segments_do_in_twos(segments):
    masks = drawn_masks(1 + 4 * (1 << segments.bit_length()), segments)
    assert set(masks.unique().tolist()) == {0, 1}
    assert torch.equal(masks[1::2], 1 - masks[2::2])
    signs = 2 * masks[1:] - 1
    assert torch.equal(signs.T @ signs, len(signs) * torch.eye(segments, dtype=signs.dtype))
    assert not torch.einsum("na,nb,nc->abc", signs, signs, signs).any()


@pytest.mark.parametrize("sampling", ["paired", "independent"])
def test_a_sample_is_the_same_however_many_there_are(sampling):
    few, many = (drawn_masks(samples, 20, sampling) for samples in (70, 400))
    assert torch.equal(few, many[:70])
    assert len(many.unique(dim=0)) > 390


def test_bytes_depend_on_the_seed_alone():
    inputs = random_input(1)
    first, again, other = (values(inputs, samples=50, seed=seed, **SIXTEEN) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_maps_are_the_same_for_any_chunk_and_neighbours():
    inputs = random_input(3)
    inputs[2] = inputs[2, :, :1, :1]  # of one colour, and fewer segments than its neighbours
    options = {"segmentation": "felzenszwalb", "segments": 4, "samples": 60}
    together = explained(inputs, **options)
    others = explained(inputs.roll(1, dims=0), **options)
    assert len({len(each["value"]) for each in together.segments}) > 1
    assert torch.equal(together.relevance, others.relevance.roll(-1, dims=0))
    small = explained(inputs, chunk=7, **options)
    assert_close(small.relevance, together.relevance, rtol=1e-9, atol=1e-12)


def test_several_targets_are_fitted_as_each_alone():
    masks, scores = (torch.tensor(each) for each in drawn(200, 20))
    both = Lime(top=6).fitted(masks, scores)
    for target in range(2):
        alone = Lime(top=6).fitted(masks, scores[:, target, None])
        assert_close(both.coefficients[target], alone.coefficients[0], rtol=1e-12, atol=1e-15)
        assert_close(both.errors[target], alone.errors[0], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("sampling", "samples"), [("paired", 65), ("paired", 400), ("independent", 400)])
def test_errors_are_those_of_runs_with_other_seeds(sampling, samples):
    inputs = random_input(1)
    options = {**SIXTEEN, "samples": samples, "sampling": sampling, "chunk": samples}
    runs = [explained(inputs, seed=seed, **options).segments[0] for seed in range(30)]
    found = torch.tensor([run["value"] for run in runs]).std(dim=0)
    told = torch.tensor([run["error"] for run in runs]).square().mean(dim=0).sqrt()
    assert 0.8 < float(told.norm() / found.norm()) < 1.25


def hinges(masks):
    """A game with interactions of any number of segments."""
    slopes = torch.randn(masks.shape[1], 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (masks @ slopes - slopes.sum(dim=0) / 2 - 2.5).relu().sum(dim=1)


def nearly_linear(masks):
    slopes = torch.randn(masks.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return masks @ slopes + 0.01 * hinges(masks)


def three_signs(masks):
    """A game of three segments together; it can hide behind a fourth."""
    return 3 * (2 * masks[:, :3] - 1).prod(dim=1)


def told_and_actual(game, samples, segments=50, runs=60, **options):
    """What the errors of runs with other seeds say, over how far their values are apart."""
    fits = []
    for seed in range(runs):
        masks = drawn_masks(samples, segments, options.get("sampling", "paired"), seed)
        fits.append(Lime(**options).fitted(masks, game(masks)[:, None]))
    told = torch.cat([fit.errors for fit in fits]).square().mean(dim=0).sum().sqrt()
    return float(told / torch.cat([fit.coefficients for fit in fits]).std(dim=0).norm())


@pytest.mark.parametrize(
    ("game", "samples", "least", "most"),
    [
        (hinges, 129, 0.75, 1.5),
        (hinges, 513, 0.93, 1.15),
        (hinges, 1000, 0.9, 1.15),
        (nearly_linear, 129, 0.75, 1.5),
        (nearly_linear, 257, 0.75, 1.5),
        (nearly_linear, 513, 0.93, 1.15),
        (nearly_linear, 1000, 0.9, 1.2),
        (three_signs, 513, 0.9, 1.15),
        (three_signs, 1000, 0.9, 1.15),
        # All of one block of these is told by pairs of which each leaves a little.
        (three_signs, 129, 0.4, 1.5),
    ],
)
def test_errors_of_paired_masks_are_those_of_other_seeds(game, samples, least, most):
    assert least < told_and_actual(game, samples) < most


@pytest.mark.parametrize("width", [0.25, 0.1])
def test_errors_of_independent_masks_are_those_of_other_seeds(width):
    ratio = told_and_actual(hinges, 400, 20, sampling="independent", kernel_width=width)
    assert 0.85 < ratio < 1.15


def test_errors_of_segments_that_are_chosen_know_of_those_that_were_not():
    # Of the chosen alone it would be 0.2.
    assert 0.5 < told_and_actual(hinges, 1000, top=5) < 1


@pytest.mark.parametrize(
    ("samples", "segments", "sampling", "known"),
    [
        (121, 50, "paired", True),
        (119, 50, "paired", False),
        (129, 62, "paired", False),
        (257, 62, "paired", True),
        (68, 50, "independent", True),
        (58, 50, "independent", False),
    ],
)
def test_errors_are_infinite_until_ten_more_were_drawn_than_there_are_segments(samples, segments, sampling, known):
    # So wide a kernel weighs all samples alike.
    masks = drawn_masks(samples, segments, sampling)
    errors = Lime(sampling=sampling, kernel_width=1e6).fitted(masks, hinges(masks)[:, None]).errors
    assert errors.isfinite().all() if known else errors.isinf().all()


def test_samples_that_weigh_nothing_tell_no_errors():
    masks = drawn_masks(200, 20, "independent")
    assert Lime(sampling="independent", kernel_width=0.01).fitted(masks, hinges(masks)[:, None]).errors.isinf().all()


def test_the_package_chooses_segments_with_a_small_penalty():
    masks, _ = drawn(40, 4)
    masks[:, 0] = 1
    masks[3:6, 0] = 0  # a larger penalty would hold back what is known of three samples alone
    scores = masks @ [[1], [0.8], [0.1], [0.1]]
    fit = Lime(sampling="independent", top=1).fitted(torch.tensor(masks), torch.tensor(scores))
    assert fit.coefficients[0].nonzero().flatten().tolist() == [0]
    assert_close(fit.coefficients[0], package(masks, scores, 0, 1, "highest_weights")[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_have_finite_maps(dtype):
    found = attribute(
        classifier_of(conv_net(), dtype=dtype), random_input(1).to(dtype), Lime(samples=60, **SIXTEEN), [Target(1)]
    )
    assert found.relevance.isfinite().all()
    assert found.relevance.any()
    assert found.checks["spread"].isfinite().all()


def test_errors_fall_with_the_root_of_the_samples():
    few, many = (values(random_input(1), name="error", samples=n, **SIXTEEN).norm() for n in (129, 129 * 16))
    assert 3 < float(few / many) < 5.5


def test_pairs_leave_weights_alone_of_what_two_segments_do_together():
    class Squared(nn.Module):
        def forward(self, x):
            mean = x.mean(dim=(1, 2, 3))
            return torch.stack([mean, mean + 10 * (mean - 0.5) ** 2, -mean], dim=1)

    ones = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    paired, independent = (
        values(ones, Squared(), samples=257, sampling=sampling, **SIXTEEN).std()
        for sampling in ("paired", "independent")
    )
    assert paired < 0.2 * independent


def test_tolerance_stops_early_at_the_map_of_so_many_samples():
    inputs = random_input(2)
    found = explained(inputs, samples=3000, tolerance=0.1, **SIXTEEN)
    # All 32 rows of the matrix and their complements, beside the whole picture.
    used = found.checks["evaluations"].long().tolist()
    assert all(each < 3000 and each % 64 == 1 for each in used)
    assert (found.checks["spread"] <= 0.1).all()
    for row, samples in enumerate(used):
        fixed = explained(inputs, samples=samples, **SIXTEEN)
        assert_close(found.relevance[row], fixed.relevance[row], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("given", [{}, {"top": 2}, {"samples": 3}, {"kernel_width": 0.01}])
@pytest.mark.parametrize("inputs", [torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.3), None])
def test_nothing_is_nan(inputs, given):
    options = {"samples": 65, **SIXTEEN, "fill": "segment", **given}
    found = explained(random_input(1) if inputs is None else inputs.double(), **options)
    assert found.relevance.isfinite().all()
    assert not any(each.isnan().any() for each in found.checks.values())
    if inputs is not None:
        assert not found.relevance.any()
        assert float(found.checks["r2"]) == 1
        assert float(found.checks["spread"]) == (torch.inf if {"samples", "kernel_width"} & {*given} else 0)


def test_one_segment_has_one_value():
    found = explained(random_input(1), segmentation="grid", segments=1, fill="mean")
    assert len(found.relevance.unique()) == 1
    assert found.checks["single_segment"].all()
    assert found.relevance.any()


def test_two_samples_are_refused():
    with pytest.raises(ValueError, match="samples"):
        Lime(samples=2)

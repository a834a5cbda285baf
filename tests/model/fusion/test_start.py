"""Operators that begin with the principal components of standardised streams."""

import pytest
import torch
from helpers.fusion_operators import DIM, DIMS, MAKE, NAMES, streams
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.model.attenuated_whitening import ATTENUATION, attenuate_components
from uniaudio.model.fusion.encoder import FeatureScale, find_components, fit_scale
from uniaudio.model.fusion.wq import WqFusion
from uniaudio.model.fusion_start import whiten_answers

LENGTHS = [3, 1, 9]


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:])


def begin(kind, dim=DIM):
    """The frames of an operator at its start, and the parts that its streams become by the maps."""
    torch.manual_seed(0)
    make = {"wq": lambda: WqFusion(NAMES, DIMS, DIM, heads=2, head_dim=32, project_all=True)} | {
        "wq_residual": lambda: WqFusion(
            NAMES, DIMS, DIM, heads=2, head_dim=4, residual=True, project_all=True
        )
    }
    operator = make.get(kind, MAKE.get(kind))().double().eval()
    given = streams(LENGTHS)
    states = [
        torch.stack([s.values for s in stream]).mean(0) if kind == "layers" else stream[-1].values
        for stream in given
    ]
    joined = torch.cat(states, 1).detach()
    maps = find_components(joined, torch.full((len(joined),), 1 / len(joined), dtype=torch.float64), dim)
    parts = maps.split(list(DIMS), 1)
    operator.start_from(parts)
    return operator(given).frames.values.detach(), [
        s.detach() @ p.T for s, p in zip(states, parts, strict=True)
    ]


@pytest.mark.parametrize("kind", ["concat", "sum", "mix", "layers"])
def test_linear_operators_begin_as_the_sum_of_the_maps(kind):
    fused, parts = begin(kind)
    torch.testing.assert_close(fused, sum(parts))


@pytest.mark.parametrize("kind", ["gate", "explicit"])
def test_gated_operators_begin_as_its_norm(kind):
    fused, parts = begin(kind)
    torch.testing.assert_close(fused, layer_norm(sum(parts)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["moe_concat", "moe_proj"])
def test_experts_begin_as_the_sum_of_the_maps_but_for_the_size_of_a_frame(kind):
    fused, parts = begin(kind)
    assert F.cosine_similarity(fused, sum(parts)).min() > 1 - 1e-9
    assert 0.9 < (fused.norm(dim=1) / sum(parts).norm(dim=1)).mean() < 1.3


def test_swiglu_experts_begin_as_its_direction_without_the_last_component():
    fused, parts = begin("unimoe")
    assert fused[:, -1].abs().max() == 0
    assert F.cosine_similarity(fused[:, :-1], sum(parts)[:, :-1]).min() > 1 - 1e-9


@pytest.mark.parametrize("kind", ["wq", "wq_residual"])
def test_attention_begins_with_the_frames_of_one_time(kind):
    fused, parts = begin(kind)
    torch.testing.assert_close(fused, sum(layer_norm(part) for part in parts), atol=0.05, rtol=0)


def test_components_are_ordered_and_keep_distances():
    torch.manual_seed(0)
    frames = torch.randn(200, 5).double() * torch.tensor([1.0, 5.0, 0.1, 3.0, 2.0])
    components = find_components(frames, torch.full((200,), 1 / 200).double(), 7)
    projected = frames @ components.T
    torch.testing.assert_close(
        torch.cdist(projected, projected), torch.cdist(frames, frames), atol=1e-3, rtol=0
    )
    assert projected.std(0)[:5].diff().max() < 0
    assert projected[:, 5:].abs().max() == 0


def test_a_scale_gives_features_one_size_around_zero_and_leaves_silent_ones_small():
    torch.manual_seed(0)
    frames = 7 + torch.randn(300, 4).double() * torch.tensor([1.0, 20.0, 0.5, 1e-6])
    scale, shares = FeatureScale(4).double(), torch.full((300,), 1 / 300).double()
    torch.testing.assert_close(scale(frames), frames)
    weight, bias = fit_scale(frames, shares)
    scaled = frames * weight + bias
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled[:, :3].std(0, correction=0), torch.ones(3).double(), atol=1e-3, rtol=0)
    assert scaled[:, 3].abs().max() < 1e-3


@pytest.mark.parametrize(
    "frames", [torch.randn(1, 4), torch.full((9, 4), 0.1), torch.full((9, 4), torch.nan)]
)
def test_a_scale_is_not_fitted_to_what_does_not_vary(frames):
    with pytest.raises(
        UserError, match=f"^start: the {len(frames)} frames .* do not differ, or are not finite"
    ):
        fit_scale(frames, torch.full((len(frames),), 1 / len(frames)))


def test_whitening_brings_components_closer_without_turning_them():
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(4, 4).double()).Q
    clips = torch.linalg.qr(torch.randn(900, 4).double()).Q * 30  # of covariance 1
    variances = torch.tensor([100.0, 4.0, 1.0, 0.0]).double()
    clips = clips * variances.sqrt() @ turn.T
    white = clips @ attenuate_components(clips)
    covariance = turn.T @ (white.T @ white / len(white)) @ turn
    expected = variances * (variances + 0.1 * variances.mean()) ** -ATTENUATION
    torch.testing.assert_close(covariance, torch.diag(expected / expected.mean()), atol=1e-9, rtol=0)


def test_whitening_leaves_clips_without_any_difference_as_they_are():
    torch.testing.assert_close(attenuate_components(torch.zeros(3, 2)), torch.eye(2), atol=0, rtol=0)


def test_whitening_by_answers_makes_small_what_differs_among_equal_answers():
    torch.manual_seed(0)
    answer = torch.randint(0, 3, (300,))
    loud = torch.randn(300) * 5  # says nothing of the answer
    clips = torch.stack([loud, answer + torch.randn(300) * 0.1, torch.randn(300)], 1).double()
    white = clips @ whiten_answers(clips, [[(0, int(label))] for label in answer])
    apart = torch.cat([white[answer == label] - white[answer == label].mean(0) for label in range(3)])
    assert clips[:, 0].std() == pytest.approx(5, abs=0.5)
    assert apart.std(0)[0] == pytest.approx(0.86, abs=0.02)
    means = torch.stack([white[answer == label].mean(0) for label in range(3)])
    assert (means.max(0).values - means.min(0).values).argmax() == 1


def test_answers_that_occur_once_cannot_be_compared():
    clips = torch.randn(3, 2)
    with pytest.raises(UserError, match=r"wccn .* 3 rows of the first recipe contain no such clips"):
        whiten_answers(clips, [[(0, 1)], [(0, 2)], [(1, 1)]])  # tasks are apart
    whiten_answers(clips, [[(0, 1)], [(0, 2), (1, 1)], [(1, 1)]])

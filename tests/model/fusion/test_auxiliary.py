"""Auxiliary losses: their equations over real frames, and the same for any cut of the global batch."""

import pytest
import torch
from helpers.fusion_operators import make, streams
from torch.nn import functional as F

from uniaudio.model.fusion.stft_residual import StftBranch
from uniaudio.ragged import Ragged
from uniaudio.train.auxiliary_losses import AuxiliaryLosses

LENGTHS = [3, 1, 5, 2]


def load_balance(operator, given):
    """Switch Transformer, eq. 4-6, over the slots of top-k."""
    x = torch.cat([states[-1].values for states in given], -1)
    probabilities = torch.stack([(operator.router.weight @ t + operator.router.bias).softmax(0) for t in x])
    experts = probabilities.shape[1]
    slots = torch.zeros(experts, dtype=torch.float64)
    for row in probabilities:
        for e in row.topk(operator.top_k).indices:
            slots[e] += 1 / operator.top_k
    shares = slots / len(x)
    return 1e-2 * experts * (shares * probabilities.mean(0)).sum()


def explicit(operator, given):
    """Dual-encoder fusion, eq. 11 and 12."""
    base, other = (states[-1].values.detach() for states in given)
    residual = torch.stack([d - operator.predict[0].weight @ w for w, d in zip(base, other, strict=True)])
    recon = sum(r @ r for r in residual) / len(residual)
    u = torch.stack([operator.project_base.weight @ w for w in base])
    v = torch.stack([operator.project_residual[0].weight @ r for r in residual])
    covariance = sum(torch.outer(a - u.mean(0), b - v.mean(0)) for a, b in zip(u, v, strict=True)) / len(u)
    return {"recon": 1e-2 * recon, "decor": 1e-2 * covariance.square().sum()}


def losses_of(operator, given):
    operator.train()
    return operator(given).losses


def test_load_balance_equals_its_equation_and_reaches_the_router_alone():
    operator, given = make("moe_concat"), streams(LENGTHS)
    loss = losses_of(operator, given)["load_balance"].value()
    wanted = load_balance(operator, given)
    torch.testing.assert_close(loss.double(), wanted, atol=1e-6, rtol=1e-5)
    router = list(operator.router.parameters())
    ours = torch.autograd.grad(loss, router, retain_graph=True)
    theirs = torch.autograd.grad(wanted, router)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    loss.backward()
    assert {n.split(".")[0] for n, p in operator.named_parameters() if p.grad is not None} == {"router"}
    assert given[0][-1].values.grad is None


def test_explicit_losses_equal_their_equations():
    operator, given = make("explicit"), streams(LENGTHS)
    losses = losses_of(operator, given)
    wanted = explicit(operator, given)
    variables = [
        operator.predict[0].weight,
        operator.project_base.weight,
        operator.project_residual[0].weight,
    ]
    for name, equation in wanted.items():
        torch.testing.assert_close(losses[name].value().double(), equation, atol=1e-6, rtol=1e-5)
        ours, theirs = (
            torch.autograd.grad(x, variables, retain_graph=True, allow_unused=True)
            for x in (losses[name].value(), equation)
        )
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_they_exist_in_training_only():
    for kind in ("moe_proj", "explicit"):
        assert not make(kind).eval()(streams(LENGTHS)).losses


@pytest.mark.parametrize("kind", ["moe_concat", "moe_proj", "explicit"])
@pytest.mark.parametrize("cut", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3, 0], [2], [1]]])
def test_any_cut_of_the_batch_gives_the_same_loss_and_gradient(kind, cut):
    operator, given = make(kind).train(), streams(LENGTHS)
    whole = sum(loss.value() for loss in operator(given).losses.values())
    variables = list(operator.parameters())
    wanted = torch.autograd.grad(whole, variables, allow_unused=True)
    collected = AuxiliaryLosses()
    for clips in cut:
        part = operator([[state.select(clips) for state in states] for states in given])
        collected.add(part.losses)
        # the task's graph is freed; that of the losses is not
        part.frames.values.sum().backward(inputs=variables)
    objective, values = collected.compute_objective()
    assert values.keys() == set(operator.auxiliary)
    got = torch.autograd.grad(objective, variables, allow_unused=True)
    torch.testing.assert_close(objective, whole, atol=1e-7, rtol=1e-6)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


def test_spectral_branch_equals_its_equation_frame_by_frame():
    torch.manual_seed(0)
    branch = StftBranch(8, rate=25.0, mels=16).double()
    samples = [1, 640, 3000]
    audio = Ragged.from_rows([torch.randn(n) * 0.1 for n in samples])
    frames = Ragged(torch.randn(1 + 1 + 5, 8, dtype=torch.float64), torch.tensor([1, 1, 5]))
    got = branch(frames, audio).rows()
    assert branch.gamma.item() == pytest.approx(1e-2)
    for clip, wave in enumerate(audio.rows()):
        for t, frame in enumerate(frames.rows()[clip]):
            window = torch.zeros(1024, dtype=torch.float64)
            for i in range(1024):
                place = 640 * t - 192 + i  # the middle of the window is the middle of the frame
                if 0 <= place < len(wave):
                    window[i] = wave[place]
            magnitude = torch.fft.rfft(window * torch.hann_window(1024)).abs()
            bands = (magnitude @ branch.bands.filters.double()).clamp(min=1e-5).log()
            wanted = frame + branch.gamma * (branch.project.weight @ bands)
            torch.testing.assert_close(got[clip][t], wanted, atol=2e-6, rtol=0)


def test_spectral_branch_learns_its_scale():
    branch = StftBranch(8, rate=25.0, mels=16)
    frames = Ragged(torch.zeros(1, 8), torch.tensor([1]))
    branch(frames, Ragged(torch.randn(640), torch.tensor([640]))).values.sum().backward()
    assert branch.gamma.grad.abs() > 0
    assert F.relu(branch.project.weight.grad.abs()).max() > 0

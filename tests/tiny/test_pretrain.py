"""Muon in float32 against its singular values and torch's own in bfloat16."""

from __future__ import annotations

import pytest
import torch

from uniaudio.tiny.pretrain import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.mT @ orthogonalize(matrix) @ right.mT
    values = inner.diagonal()
    assert 0.5 < values.min() < values.max() < 1.3
    assert (inner - values.diag()).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_steps_are_those_of_torch_up_to_bfloat16(shape):
    torch.manual_seed(0)
    start = torch.randn(shape)
    gradients = torch.randn(4, *shape)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [Muon([weights[0]], lr=0.03), torch.optim.Muon([weights[1]], lr=0.03, weight_decay=0.0)]
    for gradient in gradients:
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = weights[1] - start
    assert moved.abs().max() > 0.01
    assert (weights[0] - weights[1]).norm() < 0.02 * moved.norm()

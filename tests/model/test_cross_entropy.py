import pytest
import torch
from torch.nn import functional as F

from uniaudio.model.cross_entropy import frozen_head_cross_entropy


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss_and_gradient_equal_the_plain_way_in_fp64(chunk, with_bias):
    torch.manual_seed(0)
    hidden = torch.randn(20, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64)
    bias = torch.randn(50, dtype=torch.float64) if with_bias else None
    labels = torch.randint(0, 50, (20,))
    total, per_token, right = frozen_head_cross_entropy(hidden, weight, bias, labels, chunk)
    (3 * total).backward()
    plain = hidden.detach().clone().requires_grad_()
    logits = F.linear(plain, weight, bias)
    losses = F.cross_entropy(logits, labels, reduction="none")
    (3 * losses.sum()).backward()
    torch.testing.assert_close(total, losses.sum())
    torch.testing.assert_close(per_token, losses)
    assert torch.equal(right, logits.argmax(-1) == labels)
    torch.testing.assert_close(hidden.grad, plain.grad, atol=1e-12, rtol=1e-12)


def test_no_labels_give_zero():
    hidden = torch.zeros(0, 16, requires_grad=True)
    total, per_token, right = frozen_head_cross_entropy(
        hidden, torch.randn(5, 16), None, torch.zeros(0, dtype=torch.long), 8
    )
    total.backward()
    assert total == 0
    assert len(per_token) == len(right) == 0

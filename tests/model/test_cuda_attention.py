"""The way of CUDA through packed attention, on a CPU: torch's operation with loops in the place of its kernel."""

import pytest
import torch
from plain_kernel import forward
from torch.nn import functional as F
from torch.nn.attention import varlen

from uniaudio.model import attention
from uniaudio.model.attention import Segments, packed_attention, variable_length_attention


@pytest.fixture
def calls(monkeypatch):
    """Put the loops in the place of the kernel; return what it was called with."""
    seen = []

    def varlen_attn(query, key, value, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), **more):
        if key.shape[1] != query.shape[1]:  # as torch has it since 2.12; before, all heads are needed
            assert more["enable_gqa"]
        seen.append((cu_q.dtype, cu_k.dtype, max_q, max_k, window_size))
        return forward(query, key, value, cu_q, cu_k, max_q, max_k, window_size == (-1, 0), scale)[0]

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    return seen


def alone(query, key, value, causal, scale):
    """Attend with torch's own function for one segment; where it is causal the last query stands at the last key."""
    mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query)) if causal else None
    heads = [x.transpose(0, 1)[None] for x in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True)
    return mixed[0].transpose(0, 1)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("single", [True, False])
def test_the_kernel_gets_what_every_segment_alone_would(
    calls, monkeypatch, single, groups, causal, scale, native
):
    monkeypatch.setattr(attention, "GROUPED", native)
    torch.manual_seed(0)
    requests, inputs = [3, 1, 6], [3, 1, 6] if single else [5, 4, 6]
    query = torch.randn(sum(requests), 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, sum(inputs), groups, 8, dtype=torch.float64)
    segments, keys = (Segments.of(lengths, query.device) for lengths in (requests, inputs))
    result = variable_length_attention(query, key, value, segments, keys, causal, scale)
    rows = (query.split(requests), key.split(inputs), value.split(inputs))
    expected = torch.cat([alone(*row, causal, scale) for row in zip(*rows, strict=True)])
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)
    window = (-1, 0) if causal else (-1, -1)
    assert calls == [(torch.int32, torch.int32, 6, 6, window)]
    looped = packed_attention(query, key, value, segments, causal, scale, key_segments=keys)
    torch.testing.assert_close(result, looped, atol=1e-12, rtol=1e-12)

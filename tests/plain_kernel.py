"""What torch's variable-length attention kernel computes, written as loops for a CPU, forward and backward."""

from itertools import pairwise

import torch
from torch.nn.attention import varlen


def segments(cu_query, cu_key, longest_query, longest_key):
    """Yield the slices of every segment, and check what is said of the longest ones."""
    ends = [cu.tolist() for cu in (cu_query, cu_key)]
    for cu, longest in zip(ends, (longest_query, longest_key), strict=True):
        assert max(b - a for a, b in pairwise(cu)) == longest
    for query, key in zip(*map(pairwise, ends), strict=True):
        yield slice(*query), slice(*key)


def weights(query, key, causal, scale):
    """Return ``[H, q, k]``: where it is causal, the last query stands at the last key."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        seen = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1)


def spread(heads, query):
    return heads.repeat_interleave(query.shape[1] // heads.shape[1], 1)


def forward(query, key, value, cu_query, cu_key, max_q, max_k, causal=False, scale=None, *_):
    mixed = torch.empty_like(query)
    for q, k in segments(cu_query, cu_key, max_q, max_k):
        single = weights(query[q], spread(key[k], query), causal, scale)
        mixed[q] = torch.einsum("hqk,khd->qhd", single, spread(value[k], query))
    return mixed, query.new_zeros(query.shape[1], len(query)).float(), torch.zeros(2, dtype=torch.uint64)


def backward(
    gradient, query, key, value, mixed, sums, cu_query, cu_key, max_q, max_k, causal, state, scale=None, *_
):
    result = [torch.zeros_like(x) for x in (query, key, value)]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    for q, k in segments(cu_query, cu_key, max_q, max_k):
        keys, values = spread(key[k], query), spread(value[k], query)
        single = weights(query[q], keys, causal, scale)
        arriving = torch.einsum("qhd,khd->hqk", gradient[q], values)
        scores = single * (arriving - (single * arriving).sum(-1, keepdim=True)) * factor
        result[0][q] = torch.einsum("hqk,khd->qhd", scores, keys)
        for place, whole in (
            (1, torch.einsum("hqk,qhd->khd", scores, query[q])),
            (2, torch.einsum("hqk,qhd->khd", single, gradient[q])),
        ):
            groups = result[place].shape[1]
            result[place][k] = whole.unflatten(1, (groups, -1)).sum(2)
    return tuple(result)


def register():
    """Let torch's own operation run on CPUs in this process; its autograd and shapes stay torch's."""
    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)

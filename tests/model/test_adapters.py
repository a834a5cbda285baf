"""Adapters against loops over clips, in float64: values and gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.model.adapters.conv import ConvAdapter
from uniaudio.model.adapters.fixed_tokens import TokensAdapter
from uniaudio.model.adapters.pool import PoolAdapter
from uniaudio.model.adapters.qformer_perceiver import QueryAdapter
from uniaudio.model.adapters.stack import LinearAdapter, StackAdapter
from uniaudio.ragged import Ragged

E, D = 6, 10
MAKE = {
    "stack": lambda: StackAdapter(E, 50, D, 12.5),
    "linear": lambda: LinearAdapter(E, 50, D, 12.5),
    "pool": lambda: PoolAdapter(E, 50, D, 12.5),
    "conv": lambda: ConvAdapter(E, 50, D, 12.5, hidden=8),
    "qformer": lambda: QueryAdapter(E, 50, D, 0.08, queries=2, layers=2, heads=2),
    "single": lambda: QueryAdapter(E, 50, D, 0.08, queries=1, layers=2, heads=2),
    "perceiver": lambda: QueryAdapter(E, 50, D, None, queries=3, layers=1, heads=2, hidden=8),
    "tokens": lambda: TokensAdapter(E, 50, D, tokens=3, stack=4, hidden=7),
}


def make(kind):
    torch.manual_seed(0)
    adapter = MAKE[kind]().double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return adapter


def stack(a, clip):
    tokens = []
    for begin in range(0, len(clip), 4):
        group = [clip[min(begin + i, len(clip) - 1)] for i in range(4)]
        tokens.append(a.down(F.gelu(a.up(a.norm(torch.cat(group))))))
    return tokens


def linear(a, clip):
    tokens = []
    for begin in range(0, len(clip), 4):
        group = torch.cat([clip[min(begin + i, len(clip) - 1)] for i in range(4)])
        tokens.append(a.out.bias + torch.stack([row @ group for row in a.out.weight]))
    return tokens


def pool(a, clip):
    groups = [clip[begin : begin + 4] for begin in range(0, len(clip), 4)]
    return [a.down(F.gelu(a.up(a.norm(sum(group) / len(group))))) for group in groups]


def conv(a, clip):
    rows = [a.norm(frame) for frame in clip]
    for convolution in a.convolve:
        padded = [torch.zeros_like(rows[0])] * 2 + rows + [torch.zeros_like(rows[0])] * 3
        count = math.ceil(len(rows) / 2)
        rows = [
            F.gelu(convolution.bias + sum(convolution.weight[:, :, k] @ padded[2 * t + k] for k in range(5)))
            for t in range(count)
        ]
    return [a.out(row) for row in rows]


def attend(queries, keys, values, heads):
    width = len(queries[0]) // heads
    results = []
    for q in queries:
        parts = []
        for h in range(heads):
            single = slice(h * width, (h + 1) * width)
            scores = torch.stack([q[single] @ k[single] for k in keys]) / math.sqrt(width)
            parts.append(sum(w * v[single] for w, v in zip(scores.softmax(0), values, strict=True)))
        results.append(torch.cat(parts))
    return results


def query(a, clip):
    window = a.window or len(clip)
    tokens = []
    for begin in range(0, len(clip), window):
        frames = []
        for t, frame in enumerate(clip[begin : begin + window]):
            angles = [t * 10_000.0 ** (-i / (a.dim // 2)) for i in range(a.dim // 2)]
            place = [math.sin(x) for x in angles] + [math.cos(x) for x in angles]
            frames.append(a.norm(a.project(frame)) + torch.tensor(place, dtype=torch.float64))
        queries = list(a.queries)
        for layer in a.layers:
            normed = [layer.norm_read(q) for q in queries]
            read = attend(
                [layer.read_q(q) for q in normed],
                [layer.read_k(f) for f in frames],
                [layer.read_v(f) for f in frames],
                layer.heads,
            )
            queries = [q + layer.read_out(r) for q, r in zip(queries, read, strict=True)]
            if len(queries) > 1:
                normed = [layer.norm_share(q) for q in queries]
                shared = attend(
                    [layer.share_q(q) for q in normed],
                    [layer.share_k(q) for q in normed],
                    [layer.share_v(q) for q in normed],
                    layer.heads,
                )
                queries = [q + layer.share_out(s) for q, s in zip(queries, shared, strict=True)]
            queries = [q + layer.feed(layer.norm_feed(q)) for q in queries]
        tokens += [a.out(a.norm_out(q)) for q in queries]
    return tokens


def fixed(a, clip):
    rows = [a.norm(frame) for frame in clip]
    tokens = []
    for i in range(a.tokens):
        sampled = []
        for j in range(a.stack):
            place = (i * a.stack + j + 0.5) * len(rows) / (a.tokens * a.stack) - 0.5
            place = min(max(place, 0), len(rows) - 1)
            low = int(place)
            high = min(low + 1, len(rows) - 1)
            sampled.append(rows[low] * (1 - (place - low)) + rows[high] * (place - low))
        hidden = F.silu(a.narrow(torch.cat(sampled)))
        tokens.append(a.out(F.silu(a.gate(hidden)) * a.up(hidden)))
    return tokens


LOOP = {
    "stack": stack,
    "linear": linear,
    "pool": pool,
    "conv": conv,
    "qformer": query,
    "single": query,
    "perceiver": query,
    "tokens": fixed,
}


@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 13), min_size=1, max_size=4), seed=st.integers(0, 10_000))
@pytest.mark.parametrize("kind", MAKE)
def test_values_and_gradients_equal_the_loop_over_clips(kind, lengths, seed):
    adapter = make(kind)
    torch.manual_seed(seed)
    values = torch.randn(sum(lengths), E, dtype=torch.float64, requires_grad=True)
    frames = Ragged(values, torch.tensor(lengths))
    tokens = adapter(frames)
    assert tokens.lengths.tolist() == [adapter.num_tokens(n) for n in lengths]
    wanted = torch.stack([token for clip in frames.rows() for token in LOOP[kind](adapter, list(clip))])
    torch.testing.assert_close(tokens.values, wanted, atol=1e-10, rtol=1e-9)
    direction = torch.randn_like(wanted)
    variables = [values, *adapter.parameters()]
    ours, theirs = (torch.autograd.grad((x * direction).sum(), variables) for x in (tokens.values, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("kind", MAKE)
def test_no_clips_give_no_tokens_and_bfloat16_works(kind):
    adapter = make(kind)
    none = Ragged(torch.zeros(0, E, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert adapter(none).values.shape == (0, D)
    frames = Ragged(torch.randn(5, E), torch.tensor([2, 3]))
    exact = adapter.float()(frames).values
    rough = adapter.to(torch.bfloat16)(frames.with_values(frames.values.to(torch.bfloat16))).values
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1


@pytest.mark.parametrize("kind", MAKE)
def test_a_clip_alone_equals_the_clip_in_any_batch(kind):
    adapter = make(kind).float()
    lengths = [17, 1, 7, 2, 333, 16, 1]
    frames = Ragged(torch.randn(sum(lengths), E), torch.tensor(lengths))
    together = adapter(frames).rows()
    for clip, tokens in zip(frames.rows(), together, strict=True):
        alone = adapter(Ragged.from_rows([clip])).values
        torch.testing.assert_close(tokens, alone, atol=2e-6, rtol=0)
    loud = Ragged.from_rows([clip if i == 2 else clip * 1e4 + 1 for i, clip in enumerate(frames.rows())])
    torch.testing.assert_close(adapter(loud).rows()[2], together[2], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("stack", [1, 1, 1, 2, 2, 3]),
        ("linear", [1, 1, 1, 2, 2, 3]),
        ("pool", [1, 1, 1, 2, 2, 3]),
        ("conv", [1, 1, 1, 2, 2, 3]),
        ("qformer", [2, 2, 2, 4, 4, 6]),
        ("perceiver", [3] * 6),
        ("tokens", [3] * 6),
    ],
)
def test_num_tokens_is_the_real_count(kind, counts):
    adapter = make(kind)
    lengths = [1, 3, 4, 5, 8, 9]
    frames = Ragged(torch.randn(sum(lengths), E, dtype=torch.float64), torch.tensor(lengths))
    assert adapter(frames).lengths.tolist() == [adapter.num_tokens(n) for n in lengths] == counts


@pytest.mark.parametrize("kind", MAKE)
def test_gradients_reach_every_parameter(kind):
    adapter = make(kind)
    frames = Ragged(torch.randn(12, E, dtype=torch.float64), torch.tensor([3, 9]))
    adapter(frames).values.square().sum().backward()
    unreached = {
        name for name, p in adapter.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12
    }
    assert not unreached


@pytest.mark.parametrize("kind", MAKE)
def test_bfloat16_autocast_is_near_and_trains(kind):
    adapter = make(kind).float()
    frames = Ragged(torch.randn(12, E), torch.tensor([3, 9]))
    exact = adapter(frames).values
    with torch.autocast("cpu", torch.bfloat16):
        rough = adapter(frames).values
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.05
    rough.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())


def test_a_full_window_is_plain_stacking():
    """1500 frames and 100 tokens of 15, as the padded original has them."""
    adapter = TokensAdapter(E, 50, D).double()
    values = torch.randn(1500, E, dtype=torch.float64)
    stacked = adapter.norm(values).view(100, 15 * E)
    hidden = F.silu(adapter.narrow(stacked))
    wanted = adapter.out(F.silu(adapter.gate(hidden)) * adapter.up(hidden))
    torch.testing.assert_close(
        adapter(Ragged(values, torch.tensor([1500]))).values, wanted, atol=1e-12, rtol=0
    )
    assert adapter.narrow.out_features == 5 * E


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoolAdapter(E, 50, D, 20), r"adapter\.rate: 20 does not divide the encoder's 50 frames"),
        (lambda: ConvAdapter(E, 50, D, 50 / 3), "are 3 times 16.6667, but each convolution halves"),
        (lambda: ConvAdapter(E, 50, D, 25, kernel=4), "4 has no centre"),
        (lambda: QueryAdapter(E, 50, D, 0.001, heads=2), "contain no frame"),
        (lambda: QueryAdapter(E, 50, D, heads=4), "4 does not divide the width 6"),
    ],
)
def test_settings_that_do_not_fit_are_reported(make, message):
    with pytest.raises(UserError, match=message):
        make()

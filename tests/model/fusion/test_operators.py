"""Every operator against its equation written as loops over frames, in float64: values and gradients."""

import math

import pytest
import torch
from helpers.fusion_operators import LAYERS, MAKE, make, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.model.fusion.base import average_per_clip
from uniaudio.model.fusion.concat_sum_mix import ConcatFusion, ScalarMix, SumFusion
from uniaudio.model.fusion.hconv import HierarchicalConvolution, count_convolutions
from uniaudio.model.fusion.wq import WqFusion
from uniaudio.ragged import Ragged

LENGTHS = [3, 1, 5]


def linear(module, x):
    result = module.weight @ x
    return result if module.bias is None else result + module.bias


def layer_norm(module, x, eps=1e-5):
    centred = x - x.mean()
    scaled = centred / torch.sqrt(centred.square().mean() + eps)
    return scaled if module is None else scaled * module.weight + module.bias


def gated(module, parts):
    projected = [linear(p, x) for p, x in zip(module.project, parts, strict=True)]
    logits = linear(module.gate, torch.cat(projected))
    weights = logits.exp() / logits.exp().sum()
    mixed = sum(w * p for w, p in zip(weights, projected, strict=True))
    return layer_norm(module.norm_out, layer_norm(module.norm_mixed, mixed) + sum(projected))


def moe_token(operator, parts):
    if operator.project is not None:
        parts = [linear(p, x) for p, x in zip(operator.project, parts, strict=True)]
    x = torch.cat(parts)
    logits = linear(operator.router, x)
    probabilities = logits.exp() / logits.exp().sum()
    chosen = sorted(range(len(probabilities)), key=lambda e: -probabilities[e].item())[: operator.top_k]
    total = 0
    for e in chosen:
        up, _, down = operator.experts[e]
        total = total + probabilities[e] * linear(down, F.gelu(linear(up, x)))
    return linear(operator.out, total)


def swiglu(module, x):
    gate = linear(module.gate, x)
    return linear(module.down, gate * torch.sigmoid(gate) * linear(module.up, x))


def rms(module, x):
    return x / torch.sqrt(x.square().mean() + 1e-6) * module.weight


def unimoe_token(operator, parts):
    x = rms(operator.norm_in, torch.cat([linear(p, h) for p, h in zip(operator.project, parts, strict=True)]))
    inner = linear(operator.router[0], x)
    logits = linear(operator.router[3], inner * torch.sigmoid(inner))
    chosen = sorted(range(len(logits)), key=lambda e: -logits[e].item())[:2]
    best = logits[chosen].exp()
    routed = sum(w / best.sum() * swiglu(operator.experts[e], x) for w, e in zip(best, chosen, strict=True))
    g = torch.sigmoid(operator.balance)
    return rms(operator.norm_out, g * swiglu(operator.shared, x) + (1 - g) * routed)


def explicit_token(operator, parts):
    base, other = parts
    residual = other - operator.predict[0].weight @ base
    return gated(operator.gated, [base, residual])


def softmax(x):
    return x.exp() / x.exp().sum()


def layers_token(operator, stacks):
    total = 0
    for m, states in enumerate(stacks):
        weights = softmax(operator.logits[m])
        summed = sum(w * h for w, h in zip(weights, states, strict=True))
        total = total + 2 * softmax(operator.models)[m] * linear(operator.project[m], summed)
    return total


def hconv_token(operator, stacks):
    wanted = max(LAYERS)
    matched = []
    for states in stacks:
        rows = []
        for i in range(wanted):
            place = i * (len(states) - 1) / (wanted - 1)
            low = min(int(place), len(states) - 2)
            rows.append(states[low] + (states[low + 1] - states[low]) * (place - low))
        matched.append(rows)
    if operator.merge == "concat":
        merged = [linear(operator.project[0], torch.cat(pair)) for pair in zip(*matched, strict=True)]
    else:
        projected = [
            [row if isinstance(p, torch.nn.Identity) else linear(p, row) for row in rows]
            for p, rows in zip(operator.project, matched, strict=True)
        ]
        merged = [sum(pair) for pair in zip(*projected, strict=True)]
    for convolution in operator.hierarchy.convolve:
        padded = [torch.zeros_like(merged[0])] * 2 + merged + [torch.zeros_like(merged[0])] * 2
        merged = [
            torch.relu(
                convolution.bias + sum(convolution.weight[:, :, k] @ padded[start + k] for k in range(5))
            )
            for start in range(0, len(padded) - 4, 3)
        ]
    flat = torch.stack(merged, 1).flatten()  # channels first, then layers
    return linear(operator.hierarchy.out, flat)


TOKEN = {
    "concat": lambda o, parts: linear(o.out, torch.cat(parts)),
    "sum": lambda o, parts: sum(linear(p, x) for p, x in zip(o.project, parts, strict=True)),
    "mix": lambda o, parts: (
        o.gamma * sum(s * linear(p, x) for s, p, x in zip(softmax(o.theta), o.project, parts, strict=True))
    ),
    "gate": lambda o, parts: gated(o.gated, parts),
    "moe_concat": moe_token,
    "moe_proj": moe_token,
    "explicit": explicit_token,
    "unimoe": unimoe_token,
    "layers": layers_token,
    "hconv": hconv_token,
    "chconv": hconv_token,
}


def reference(kind, operator, given):
    """Apply the equation to one frame after the other."""
    frames = []
    for t in range(len(given[0][-1].values)):
        if operator.uses_layers:
            frames.append(TOKEN[kind](operator, [[state.values[t] for state in states] for states in given]))
        else:
            frames.append(TOKEN[kind](operator, [states[-1].values[t] for states in given]))
    return torch.stack(frames)


def rotate(x, position):
    half = len(x) // 2
    result = x.clone()
    for i in range(half):
        angle = position * 10_000.0 ** (-i / half)
        result[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        result[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return result


def wq_reference(operator, given):
    """Clip by clip, frame by frame, head by head."""
    clips = []
    lengths = given[0][-1].lengths.tolist()
    for clip, length in enumerate(lengths):
        rows, positions = [], []
        for s, states in enumerate(given):
            for t, frame in enumerate(states[-1].rows()[clip]):
                p = operator.project[s]
                x = frame if isinstance(p, torch.nn.Identity) else linear(p, frame)
                gamma, beta = linear(operator.modulation[s].modulate, x).chunk(2)
                rows.append((1 + gamma) * layer_norm(None, x, 1e-6) + beta + operator.source[s])
                positions.append(t)
        for index, attention in enumerate(operator.attention):
            inner = attention.heads * attention.head_dim
            queries, gates, keys, values = [], [], [], []
            for x in rows:
                both = linear(attention.q_proj, x)
                queries.append(both[:inner])
                gates.append(torch.sigmoid(both[inner:]))
                keys.append(linear(attention.k_proj, x))
                values.append(linear(attention.v_proj, x))
            mixed = []
            for i in range(len(rows)):
                heads = []
                for h in range(attention.heads):
                    part = slice(h * attention.head_dim, (h + 1) * attention.head_dim)
                    q = rotate(queries[i][part], positions[i])
                    scores = torch.stack(
                        [q @ rotate(k[part], p) for k, p in zip(keys, positions, strict=True)]
                    ) / math.sqrt(attention.head_dim)
                    heads.append(sum(w * v[part] for w, v in zip(softmax(scores), values, strict=True)))
                mixed.append(attention.o_proj.weight @ (torch.cat(heads) * gates[i]))
            if operator.residual:
                rows = [x + m for x, m in zip(rows, mixed, strict=True)]
                norm, up, _, down = operator.feed_forward[index]
                rows = [x + linear(down, F.gelu(linear(up, layer_norm(norm, x)))) for x in rows]
            else:
                rows = mixed
        clips.append(
            rows if operator.output == "both" else [rows[t] + rows[length + t] for t in range(length)]
        )
    return torch.stack([frame for clip in clips for frame in clip])


def expected(kind, operator, given):
    return wq_reference(operator, given) if kind.startswith("wq") else reference(kind, operator, given)


@settings(max_examples=5)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 10_000))
@pytest.mark.parametrize("kind", MAKE)
def test_values_and_gradients_equal_the_equation(kind, lengths, seed):
    operator = make(kind, seed).eval()
    given = streams(lengths, seed)
    inputs = [state.values for states in given for state in states]
    inputs = inputs if operator.uses_layers else [states[-1].values for states in given]
    variables = [*inputs, *(p for n, p in operator.named_parameters() if "project_" not in n)]
    direction = None
    results = []
    for values in (operator(given).frames.values, expected(kind, operator, given)):
        direction = torch.randn_like(values) if direction is None else direction
        gradients = torch.autograd.grad((values * direction).sum(), variables, allow_unused=True)
        results.append((values, gradients))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-10, rtol=1e-8)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        # an expert that nobody chose: a gradient of zero here, none in the loop
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("kind", MAKE)
def test_a_clip_alone_equals_the_clip_in_a_batch(kind):
    operator = make(kind).eval()
    given = streams(LENGTHS)
    together = operator(given)
    for clip in range(len(LENGTHS)):
        alone = operator([[state.select([clip]) for state in states] for states in given])
        torch.testing.assert_close(alone.frames.values, together.frames.rows()[clip], atol=1e-12, rtol=0)
        for name, values in alone.stats.items():
            torch.testing.assert_close(values[0], together.stats[name][clip], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", MAKE)
def test_padding_changes_nothing(kind):
    """What a padded implementation computes at real places equals the ragged result, whatever stands in the padding."""
    operator = make(kind).eval()
    given = streams(LENGTHS)
    ragged = operator(given).frames
    if kind.startswith("wq"):
        pytest.skip("frames of a clip see each other: the loop over clips above is its padded form")
    padded = []
    for states in given:
        padded.append([])
        for state in states:
            table = torch.full((len(LENGTHS), max(LENGTHS), state.values.shape[1]), 1e3, dtype=torch.float64)
            for i, row in enumerate(state.rows()):
                table[i, : len(row)] = row
            flat = Ragged(table.flatten(0, 1), torch.full((len(LENGTHS),), max(LENGTHS)))
            padded[-1].append(flat)
    full = operator(padded).frames
    kept = Ragged.from_padded(full.values.unflatten(0, (len(LENGTHS), -1)), ragged.lengths)
    torch.testing.assert_close(kept.values, ragged.values, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", [ConcatFusion, SumFusion, ScalarMix])
def test_training_starts_from_the_base_encoder(kind):
    operator = kind(("w", "d"), (6, 10), 6).double()
    given = streams(LENGTHS)
    torch.testing.assert_close(operator(given).frames.values, given[0][-1].values, atol=1e-12, rtol=0)
    operator(given).frames.values.square().sum().backward()
    assert given[0][-1].values.grad.abs().max() > 0
    moved = [p.grad.abs().max().item() for p in operator.parameters()]
    assert max(moved) > 0  # the second stream can come in


def test_wq_can_start_from_the_sum_of_normalised_streams():
    operator = WqFusion(("w", "d"), (6, 6), 6, heads=2, head_dim=4, residual=True, zero_start=True).double()
    given = streams(LENGTHS, dims=(6, 6))
    wanted = sum(F.layer_norm(states[-1].values, (6,), eps=1e-6) for states in given)
    torch.testing.assert_close(operator(given).frames.values, wanted, atol=1e-12, rtol=0)


def test_gate_says_what_it_chose():
    operator, given = make("gate"), streams(LENGTHS)
    stats = operator(given).stats
    assert list(stats) == ["gate/w", "gate/d"]
    torch.testing.assert_close(stats["gate/w"] + stats["gate/d"], torch.ones(3))


def test_experts_run_on_their_frames_only_and_the_others_get_a_gradient_of_zero():
    operator = make("moe_concat")
    with torch.no_grad():
        operator.router.weight.zero_()
        operator.router.bias.copy_(torch.tensor([5.0, 0.0, 3.0, -1.0]))  # experts 0 and 2, always
    seen = {}
    for index, expert in enumerate(operator.experts):
        expert.register_forward_hook(lambda m, x, y, index=index: seen.update({index: len(x[0])}))
    fused = operator(streams(LENGTHS))
    assert seen == {0: 9, 1: 0, 2: 9, 3: 0}
    fused.frames.values.sum().backward()
    assert all(p.grad is not None for p in operator.experts.parameters())
    assert operator.experts[1][0].weight.grad.abs().max() == 0
    assert operator.experts[0][0].weight.grad.abs().max() > 0
    assert fused.stats["expert/0"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("layers", "width", "sizes"),
    [
        (13, 768, (2, 384)),
        (25, 1024, (3, 341)),
        (33, 1280, (2, 640)),
        (7, 512, (3, 170)),
        (27, 1024, (1, 1024)),
    ],
)
def test_hierarchy_has_the_published_sizes(layers, width, sizes):
    left, last = sizes
    with torch.device("meta"):
        hierarchy = HierarchicalConvolution(layers, width, width)
    assert hierarchy.convolve[-1].out_channels == last
    assert hierarchy.out.in_features == left * last
    assert hierarchy.out.out_features == width


def test_the_number_of_convolutions_is_exact_at_powers_of_three():
    assert [count_convolutions(n) for n in (1, 2, 3, 8, 9, 26, 27, 80, 81, 242, 243)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
    ]
    with pytest.raises(UserError, match="2 hidden states are too few"):
        HierarchicalConvolution(2, 8, 8)


def test_per_clip_is_the_mean_over_real_frames():
    frames = Ragged(torch.zeros(4, 1), torch.tensor([1, 3]))
    assert average_per_clip(frames, torch.tensor([1.0, 2.0, 4.0, 6.0])).tolist() == [1.0, 4.0]
